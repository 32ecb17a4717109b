"""One training step of the whole model: loss, gradients, clipping, AdamW. No dropout, no next-time head, rotary embedding by position.

Peers compute the same from the same weights, as a good user of PyTorch would: fused AdamW, autocast to bf16 over float32 masters.

    torch-plain     causal attention of PyTorch's own, without any bias
    torch-bias      the Δt bias as attn_mask, built in the graph for every layer and head
    torch-compile   torch-bias through torch.compile
    numpy           the oracle
    ours-none       ours without checkpointing
"""

import importlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy import ndarray

from ttr_fast.bench import case as common
from ttr_fast.bench.case import OURS, Prepared, at_least, chosen_peers, given_all, stored_eps
from ttr_fast.bench.events import event_times, time_config
from ttr_fast.bench.network import NetworkSizes
from ttr_fast.errors import UserError
from ttr_fast.model import Backend, load_backend
from ttr_ref.adamw import adamw_init
from ttr_ref.config import BiasKind, BlockConfig, ModelConfig, TrainConfig
from ttr_ref.float_dtype import FloatDType
from ttr_ref.gradient_checkpointing import blocks_per_checkpoint
from ttr_ref.loss_scaling import LossScale
from ttr_ref.model import model_init
from ttr_ref.next_event import Batch
from ttr_ref.timeline import timeline_from_lengths
from ttr_ref.tree import named_leaves

PeerName = Literal["torch-plain", "torch-bias", "torch-compile", "numpy", "ours-none"]
UNBIASED = ("torch-plain",)
COMPARED_LAYERS, COMPARED_LENGTH = 2, 512
TRAIN = TrainConfig(schedule="constant", warmup=0, learning_rate=1e-4)


@dataclass(frozen=True, kw_only=True)
class Case(NetworkSizes, common.Case):
    """B rows of T events through L blocks."""

    kind: ClassVar[str] = "step"
    axis: ClassVar[str] = "T"
    length: int
    batch: int
    bias: BiasKind
    checkpointing: str = "none"

    @property
    def config(self) -> ModelConfig:
        """Raises ValueError for sizes that do not fit together."""
        block = BlockConfig(
            self.embed_dim, self.hidden_dim, self.heads, time_bias=self.bias, time=time_config(self.length), float_dtype=FloatDType(self.dtype)
        )
        return ModelConfig(self.vocabulary, self.layers, block)

    @property
    def flops(self) -> int:
        """Three products for each matrix, and attention with its backward over half of the pairs."""
        return self.batch * self.length * (6 * self.weights + 7 * self.length * self.embed_dim * self.layers)

    @property
    def bytes(self) -> int:
        """Weights read forward and backward; gradient, master and moments written and read."""
        dtype = FloatDType(self.dtype)
        return self.weights * (2 * dtype.storage.itemsize + 8 * dtype.compute.itemsize)

    @property
    def size(self) -> float:
        """T."""
        return self.length

    @property
    def series(self) -> str:
        """Without T."""
        return f"{self.dtype} B{self.batch} {self.rest}"

    @property
    def label(self) -> str:
        """As a row of the table begins."""
        return f"step {self.dtype} B{self.batch} T{self.length} {self.rest}"

    @property
    def rest(self) -> str:
        """The network."""
        kept = "" if self.checkpointing == "none" else f" checkpointing {self.checkpointing}"
        return f"{self.network} {self.bias}{kept}, {self.where}"

    def small(self) -> Self:
        """One row of a few events through one block."""
        return replace(self, batch=1, length=min(self.length, 32), layers=1, vocabulary=min(self.vocabulary, 64))

    def shared_with(self, peer: str) -> Self:
        """What PyTorch's own kernel has no bias for, ours computes without. On a GPU the first blocks and events are enough: all are alike."""
        shared = replace(self, bias="none") if peer in UNBIASED else self
        if self.backend == "cuda":
            shared = replace(shared, layers=min(self.layers, COMPARED_LAYERS), length=min(self.length, COMPARED_LENGTH))
        return shared

    def limit(self, name: str) -> float:
        """Each block's sums of E, F and T terms round that often, and of n roundings of either sign √n are left (Higham & Mary 2019, 4 for λ); the
        next block takes the error over and adds its own, forward and backward.

        16-bit sides also round about ten arrays a block to storage, and as many on the way back. Sums over places need no more: like their terms,
        which have both signs, the errors of N places leave √N of themselves.
        """
        dtype, sums = FloatDType(self.dtype), self.embed_dim + self.hidden_dim + self.length
        return self.layers * (4 * float(np.finfo(dtype.compute).eps) * sums**0.5 + 4 * stored_eps(dtype) * 10**0.5)


def inputs(case: Case) -> Batch:
    """Random tokens; every place has a next event to predict."""
    rng = np.random.default_rng(case.seed)
    tokens = rng.integers(0, case.vocabulary, (case.batch, case.length + 1))
    times = event_times(rng, case.batch, case.length + 1)
    at = timeline_from_lengths(times[:, :-1], np.full(case.batch, case.length))
    return Batch(tokens[:, :-1], at, tokens[:, 1:], times[:, 1:], np.ones((case.batch, case.length), bool))


def clipped(grads: Any, norm: float) -> dict[str, ndarray]:
    """By name, as AdamW gets them."""
    factor = min(1.0, TRAIN.clip_norm / norm) if norm > 0 else 1.0
    return {f"d{name}": g * factor for name, g in named_leaves(grads).items()}


def prepared(case: Case, backend: Backend) -> Prepared:
    """Steps on one and the same batch."""
    config, batch = case.config, inputs(case)
    params = model_init(config, case.seed)
    optimizer = adamw_init(params)
    train = replace(TRAIN, checkpointing=case.checkpointing)

    def call() -> tuple[float, float, Any]:
        nonlocal params, optimizer
        loss, grads = backend.loss_and_gradients(params, batch, config, train, 0, 1.0)
        params, optimizer, norm = backend.update(params, grads, optimizer, LossScale(1.0, 1.0), train.learning_rate, config, train)
        return float(loss), norm, grads

    def arrays(result: tuple[float, float, Any]) -> dict[str, ndarray]:
        loss, norm, grads = result
        return {"loss": np.array(loss), "norm": np.array(norm)} | clipped(backend.on_host(grads), norm)

    return Prepared(call, arrays)


def ours(case: Case) -> Prepared:
    """The core."""
    backend: Any = load_backend("cpu")

    def activation_bytes() -> int:
        """The workspace but for gradients, which are as large as the parameters whatever is kept."""
        memory: dict[str, ndarray] = backend.model.workspace.memory
        return sum(array.nbytes for name, array in memory.items() if not name.startswith("d."))

    return prepared(case, backend)._replace(activation_bytes=activation_bytes)


def with_torch(case: Case, biased: bool, compiled: bool = False, device: str = "cpu") -> Prepared:
    """PyTorch's module is imported by the process that needs it."""
    side: Prepared = importlib.import_module("ttr_fast.bench.torch_step").prepared(case, biased, compiled, device)
    return side


SIDES: dict[str, Callable[[Case], Prepared]] = {
    OURS: ours,
    "ours-none": lambda case: ours(replace(case, checkpointing="none")),
    "torch-plain": lambda case: with_torch(case, biased=False),
    "torch-bias": lambda case: with_torch(case, biased=True),
    "torch-compile": lambda case: with_torch(case, biased=True, compiled=True),
    "numpy": lambda case: prepared(case, load_backend("reference")),
}


@dataclass(frozen=True, kw_only=True)
class StepOptions(NetworkSizes, common.Options):
    """Training steps against the same model in PyTorch. Lengths, types, biases, ways of checkpointing and peers are combined.

    Examples:

        ttr bench step

        ttr bench step --dtype f32 bf16 --peer torch-plain torch-bias torch-compile

        ttr bench step --length 4096 --batch 1 --heads 4 --peer torch-bias

        ttr bench step --layers 12 --checkpointing block --peer ours-none

        ttr bench step --against none --cold

        ttr bench step --backend cuda --dtype bf16 --length 4096 --batch 1 --embed-dim 1024 --hidden-dim 4096 --heads 16 --layers 24
    """

    dtype: tuple[Literal["f32", "bf16"], ...] = ("f32",)
    length: tuple[int, ...] = (512,)
    """Events of a row, T."""
    batch: int = 4
    """Rows."""
    bias: tuple[BiasKind, ...] = ("log",)
    checkpointing: tuple[str, ...] = ("none",)
    """none, block, or every:k: which activations are kept for backward, on both sides but for ours-none."""
    peer: tuple[PeerName, ...] = ()
    """What to compare with; not given: torch-plain and torch-bias."""

    def comparisons(self) -> list[tuple[common.Case, str | None]]:
        """The product of all options."""
        self.check()
        peers = chosen_peers(self.against, self.peer, ("torch-plain", "torch-bias"), self.backend)
        return [(case, peer) for case in self.cases() for peer in peers]

    def cases(self) -> list[Case]:
        """Raises UserError for a model that cannot be."""
        self.check_sizes()
        at_least("--length", self.length, 1)
        at_least("--batch", self.batch, 1)
        given_all({"--dtype": self.dtype, "--bias": self.bias, "--checkpointing": self.checkpointing})
        cases = [
            Case(
                dtype=dtype, length=length, batch=self.batch, bias=bias, checkpointing=checkpointing, **(self.setting(threads) | self.sizes)
            )
            for dtype, bias, checkpointing, threads, length in itertools.product(
                self.dtype, self.bias, self.checkpointing, self.threads, self.length
            )
        ]  # fmt: skip
        try:
            for case in cases:
                assert case.config
                blocks_per_checkpoint(case.checkpointing)
        except ValueError as error:
            raise UserError(str(error)) from error
        return cases
