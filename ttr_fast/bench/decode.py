"""One more token in every row, with the keys and values of the past in a ring buffer: the token's state and its logits over the vocabulary.

    torch-plain      float32, buffers of W keys and values made once, no Δt bias, torch.inference_mode
    numpy            the oracle
    ours-at-window   ours where W tokens have been seen: what a longer past costs
"""

import importlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from ttr_fast.bench import case as common
from ttr_fast.bench.case import OURS, Prepared, at_least, chosen_peers, given_all, stored_eps
from ttr_fast.bench.events import NOW, gaps_between, time_config
from ttr_fast.bench.network import NetworkSizes
from ttr_fast.errors import UserError
from ttr_fast.model import BackendName, load_backend
from ttr_ref.config import BiasKind, BlockConfig, ModelConfig
from ttr_ref.float_dtype import FloatDType
from ttr_ref.model import compute_copy, model_init

PeerName = Literal["torch-plain", "numpy", "ours-at-window"]
COMPARED_WINDOW = 24
"""Results are compared after this window has been passed: they are right or wrong at any size."""
DRAWN_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class Case(NetworkSizes, common.Case):
    """B rows that have seen `position` tokens, a window of W, L blocks."""

    kind: ClassVar[str] = "decode"
    axis: ClassVar[str] = "position"
    position: int
    window: int
    batch: int
    bias: BiasKind

    @property
    def config(self) -> ModelConfig:
        """Raises ValueError for sizes that do not fit together."""
        block = BlockConfig(
            self.embed_dim, self.hidden_dim, self.heads, window=self.window, time_bias=self.bias, time=time_config(self.window),
            float_dtype=FloatDType(self.dtype),
        )  # fmt: skip
        return ModelConfig(self.vocabulary, self.layers, block)

    @property
    def cached(self) -> int:
        """Keys and values that a token reads, as numbers."""
        return 2 * self.layers * self.batch * min(self.window, self.position + 1) * self.embed_dim

    @property
    def flops(self) -> int:
        """Two for each weight and row, two for each number of a key or value."""
        return 2 * (self.batch * self.weights + self.cached)

    @property
    def bytes(self) -> int:
        """Every weight, key and value once."""
        return (self.weights + self.cached) * FloatDType(self.dtype).storage.itemsize

    @property
    def size(self) -> float:
        """How many tokens were seen."""
        return self.position

    @property
    def series(self) -> str:
        """Without the position."""
        return self.rest

    @property
    def label(self) -> str:
        """As a row of the table begins."""
        return f"decode at {self.position} {self.rest}"

    @property
    def rest(self) -> str:
        """The network."""
        return f"{self.dtype} B{self.batch} W{self.window} {self.network} {self.bias}, {self.where}"

    def small(self) -> Self:
        """A few tokens through one block."""
        return replace(self, position=2, window=min(self.window, COMPARED_WINDOW), layers=1, vocabulary=min(self.vocabulary, 64))

    def shared_with(self, peer: str) -> Self:
        """A window that is passed after a few tokens; PyTorch's side has no bias."""
        window = min(self.window, COMPARED_WINDOW)
        past = window if peer == "ours-at-window" else min(self.position, 2 * window + 1)
        return replace(self, position=past, window=window, bias="none" if peer == "torch-plain" else self.bias)

    def limit(self, name: str) -> float:
        """Each block's sums of E, F and W terms round that often, and of n roundings of either sign √n are left (Higham & Mary 2019, 4 for λ).

        16-bit storage also rounds about ten arrays a block; the next block takes the error over and adds its own.
        """
        dtype, sums = FloatDType(self.dtype), self.embed_dim + self.hidden_dim + self.window
        return self.layers * (4 * float(np.finfo(dtype.compute).eps) * sums**0.5 + 4 * stored_eps(dtype) * 10**0.5)


def events(case: Case) -> Iterator[tuple[Int64[ndarray, "B"], Int64[ndarray, "B"]]]:
    """(tokens, times) without end, drawn many at once so that drawing is no part of what is timed."""
    rng, now = np.random.default_rng(case.seed), np.full(case.batch, NOW)
    while True:
        tokens = rng.integers(0, case.vocabulary, (DRAWN_AT_ONCE, case.batch))
        times = now + np.cumsum(gaps_between(rng, (DRAWN_AT_ONCE, case.batch)), 0).astype(np.int64)
        now = times[-1]
        yield from zip(tokens, times, strict=True)


def prepared(case: Case, name: BackendName) -> Prepared:
    """`position` tokens are decoded beforehand."""
    config, backend, coming = case.config, load_backend(name), events(case)
    params = model_init(config, case.seed)
    table = compute_copy(params, config).embedding
    state = backend.decode_start(params, config, case.batch, np.int64)

    def advance() -> ndarray:
        nonlocal state
        tokens, times = next(coming)
        z, state = backend.decode(state, tokens, times, config)
        return z

    for _ in range(case.position):
        advance()

    def logits() -> ndarray:
        z = advance()
        return state.logits() if name == "cpu" else z @ table.T

    return Prepared(logits, lambda last: {"logits": last})


def with_torch(case: Case, device: str = "cpu") -> Prepared:
    """PyTorch's module is imported by the process that needs it."""
    side: Prepared = importlib.import_module("ttr_fast.bench.torch_decode").prepared(case, device)
    return side


SIDES: dict[str, Callable[[Case], Prepared]] = {
    OURS: lambda case: prepared(case, "cpu"),
    "ours-at-window": lambda case: prepared(replace(case, position=case.window), "cpu"),
    "torch-plain": with_torch,
    "numpy": lambda case: prepared(case, "reference"),
}


@dataclass(frozen=True, kw_only=True)
class DecodeOptions(NetworkSizes, common.Options):
    """The time of one more token against PyTorch, or against ours with a shorter past. Positions, types, biases and peers are combined.

    Examples:

        ttr bench decode

        ttr bench decode --window 128 --position 128 1280 12800 --peer ours-at-window --plot decode.png

        ttr bench decode --window 1024 --embed-dim 768 --hidden-dim 2048 --heads 12 --layers 12 --vocabulary 32768 --dtype f32 f16

        ttr bench decode --backend cuda --dtype bf16 --batch 128 --window 2048 --embed-dim 1024 --hidden-dim 4096 --heads 16 --layers 24
    """

    dtype: tuple[Literal["f32", "bf16", "f16"], ...] = ("f32",)
    """Of our side; PyTorch's is float32 always."""
    window: int = 512
    """Keys that a token sees, W."""
    position: tuple[int, ...] = ()
    """Tokens decoded before anything is timed; not given: W."""
    batch: int = 1
    """Rows."""
    bias: tuple[BiasKind, ...] = ("log",)
    peer: tuple[PeerName, ...] = ()
    """What to compare with; not given: torch-plain."""

    def comparisons(self) -> list[tuple[common.Case, str | None]]:
        """The product of all options."""
        self.check()
        self.check_sizes()
        at_least("--window", self.window, 1)
        at_least("--batch", self.batch, 1)
        at_least("--position", self.position or (self.window,), 1)
        given_all({"--dtype": self.dtype, "--bias": self.bias})
        cases = [
            Case(
                dtype=dtype, position=position, window=self.window, batch=self.batch, bias=bias, **(self.setting(threads) | self.sizes)
            )
            for dtype, bias, threads, position in itertools.product(self.dtype, self.bias, self.threads, self.position or (self.window,))
        ]  # fmt: skip
        try:
            assert all(case.config for case in cases)
        except ValueError as error:
            raise UserError(str(error)) from error
        peers = chosen_peers(self.against, self.peer, ("torch-plain",), self.backend)
        return [(case, peer) for case in cases for peer in peers]
