"""Causal attention with a Δt bias, forward or forward and backward, at times that a Poisson process gives.

Peers are what a good user of them would write. What does not depend on parameters (the differences of times, where the future is hidden) they
find ready; what is learned is in the graph:

    torch-plain   scaled_dot_product_attention(is_causal=True): PyTorch's own blocked kernel, without any bias
    torch-bias    the bias built from its parameters and passed as attn_mask: what the same model costs in PyTorch
    torch-flex    the bias as score_mod of FlexAttention, compiled; on a GPU only
    numpy         the oracle, ttr_ref.attention
    ours-plain    ours without dropout
"""

import importlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import tyro
from numpy import ndarray

from ttr_fast.bench import case as common
from ttr_fast.bench.case import OURS, Prepared, at_least, chosen_peers, given_all, stored_eps
from ttr_fast.bench.events import event_times, time_config
from ttr_fast.errors import UserError
from ttr_ref.config import BiasKind, BlockConfig, TimeConfig
from ttr_ref.dropout import Dropout, DropoutKey
from ttr_ref.float_dtype import FloatDType, to_storage
from ttr_ref.time_bias import TimeBias, time_bias_init
from ttr_ref.timeline import Timeline, timeline_from_lengths
from ttr_ref.tree import named_leaves, tree_map

PassName = Literal["forward", "both"]
PeerName = Literal["torch-plain", "torch-bias", "torch-flex", "numpy", "ours-plain"]
MOST_SCORES = {"numpy": 2**25, "torch-bias": 2**28}
"""These hold several float arrays of this many numbers."""
MOST_SCORES_ON_GPU = MOST_SCORES | {"torch-bias": 2**31}
COMPARED_LENGTH = 4096
"""Longer rows are not compared: their products would take longer than what is timed."""
TABLE_KNOTS = 32


@dataclass(frozen=True, kw_only=True)
class Case(common.Case):
    """B rows of T events, H heads of width D."""

    kind: ClassVar[str] = "attention"
    axis: ClassVar[str] = "T"
    length: int
    heads: int
    head_dim: int
    batch: int
    bias: BiasKind
    passes: PassName
    dropout: float = 0.0

    @property
    def flops(self) -> int:
        """Two products over half of the T × T pairs; backward has five."""
        forward = 2 * self.batch * self.heads * self.length**2 * self.head_dim
        return forward if self.passes == "forward" else forward * 7 // 2

    @property
    def bytes(self) -> int:
        """Q, K, V and O; backward reads them and dO, and writes dQ, dK, dV."""
        arrays = 4 if self.passes == "forward" else 4 + 8
        return arrays * self.numbers * FloatDType(self.dtype).storage.itemsize

    def result_bytes(self, side: str) -> int:
        """O, dQ, dK and dV; the gradients are in storage type with PyTorch, in that of arithmetic with ours and the oracle."""
        dtype = FloatDType(self.dtype)
        gradient = dtype.storage if side.startswith("torch") else dtype.compute
        return self.numbers * (dtype.storage.itemsize + (0 if self.passes == "forward" else 3 * gradient.itemsize))

    @property
    def numbers(self) -> int:
        """In one of the arrays."""
        return self.batch * self.heads * self.length * self.head_dim

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
        return f"attention {self.dtype} B{self.batch} T{self.length} {self.rest}"

    @property
    def rest(self) -> str:
        """Heads and what is done with them."""
        dropped = f" dropout {self.dropout:g}" if self.dropout else ""
        return f"H{self.heads} D{self.head_dim} {self.bias}{dropped} {self.passes}, {self.where}"

    def small(self) -> Self:
        """One row of a few events."""
        return replace(self, batch=1, length=min(self.length, 64))

    def shared_with(self, peer: str) -> Self:
        """PyTorch's own kernel knows no bias, so ours is compared without; only the oracle drops the same weights."""
        return replace(
            self,
            bias="none" if peer == "torch-plain" else self.bias,
            dropout=self.dropout if peer == "numpy" else 0.0,
            length=min(self.length, COMPARED_LENGTH),
        )

    def limit(self, name: str) -> float:
        """Each side's scores are off by D/2 eps of the terms of D products, √D of unit variance after scaling, and a sum over T keys by T/2 eps; the
        exponential and the backward pass double it.

        16-bit sides also round to storage P, O, dS and their results; the rounding of O reaches dS as that of √D terms.
        Gradients of the bias's parameters sum T rows, each of both signs: of the terms' size only 1/√T may be left.
        """
        dtype = FloatDType(self.dtype)
        shared = 4 * float(np.finfo(dtype.compute).eps) * (self.head_dim**1.5 + self.length)
        shared += stored_eps(dtype) * (4 + self.head_dim**0.5)
        return shared * self.length**0.5 if name.startswith("dbias") else shared


class Inputs(NamedTuple):
    """The arguments of attention_forward, and dO."""

    q: ndarray
    k: ndarray
    v: ndarray
    do: ndarray
    at: Timeline
    bias: TimeBias
    time: TimeConfig


def inputs(case: Case) -> Inputs:
    """The same for every side: drawn from the case's seed alone. Matrices are in storage type, parameters in that of arithmetic."""
    rng, dtype = np.random.default_rng(case.seed), FloatDType(case.dtype)
    shape = case.batch, case.heads, case.length, case.head_dim
    q, k, v, do = (to_storage(rng.standard_normal(shape).astype(dtype.compute), dtype) for _ in range(4))
    times, time = event_times(rng, case.batch, case.length), time_config(case.length)
    start = time_bias_init(BlockConfig(2 * case.heads, 1, case.heads, time_bias=case.bias, time=time, table_knots=TABLE_KNOTS))
    # exp and table start at no bias at all
    moved = tree_map(lambda a: (a + 0.5 * rng.standard_normal(a.shape)).astype(dtype.compute), start)
    return Inputs(q, k, v, do, timeline_from_lengths(times, np.full(case.batch, case.length)), moved, time)


def prepared(case: Case, module: str, taken: Callable[[ndarray], ndarray], given: Callable[[ndarray], ndarray]) -> Prepared:
    """The oracle and the core have the same functions; what differs is how arrays in storage type are taken and given back."""
    functions = importlib.import_module(module)
    p = inputs(case)
    q, k, v, do = map(taken, p[:4])
    drop = Dropout(case.dropout, DropoutKey(case.seed, 0), 0) if case.dropout else None

    def call() -> tuple[Any, ...]:
        o, _, cache = functions.attention_forward(q, k, v, p.at, p.at, p.bias, p.time, drop=drop)
        return (o,) if case.passes == "forward" else (o, *functions.attention_backward(do, None, cache))

    def arrays(results: tuple[Any, ...]) -> dict[str, ndarray]:
        found = dict(zip(("o", "dq", "dk", "dv"), (given(results[0]), *results[1:4]), strict=False))
        return found | {f"dbias.{name}": leaf for name, leaf in named_leaves(results[4] if len(results) > 4 else ()).items()}

    return Prepared(call, arrays)


def ours(case: Case) -> Prepared:
    """The core takes carriers."""
    half = importlib.import_module("ttr_fast.cpu.half")  # Numba comes with it
    return prepared(case, "ttr_fast.cpu.attention", half.as_bits, lambda bits: half.as_storage(bits).astype(FloatDType(case.dtype).compute))


def with_numpy(case: Case) -> Prepared:
    """The oracle computes with stored values in the type of arithmetic."""
    return prepared(case, "ttr_ref.attention", lambda a: a.astype(FloatDType(case.dtype).compute), lambda o: o)


def with_torch(case: Case, bias: str, device: str = "cpu") -> Prepared:
    """PyTorch's module is imported by the process that needs it. bias: none, mask or flex."""
    side: Prepared = importlib.import_module("ttr_fast.bench.torch_attention").prepared(case, bias, device)
    return side


SIDES: dict[str, Callable[[Case], Prepared]] = {
    OURS: ours,
    "ours-plain": lambda case: ours(replace(case, dropout=0.0)),
    "torch-plain": lambda case: with_torch(case, "none"),
    "torch-bias": lambda case: with_torch(case, "mask"),
    "numpy": with_numpy,
}


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(common.Options):
    """Causal attention with a Δt bias against PyTorch or the NumPy oracle. Most options take several values; every combination is a case.

    torch-plain is scaled_dot_product_attention without a bias, torch-bias the same with the learned bias in its graph.

    Examples:

        ttr bench attention

        ttr bench attention --length 1024 2048 4096 --pass forward both --peer torch-plain torch-bias --plot attention.png

        ttr bench attention --length 256 --bias none log table --peer numpy --json -

        ttr bench attention --dtype bf16 f16 --peer torch-plain

        ttr bench attention --dropout 0.1 --peer ours-plain

        ttr bench attention --backend cuda --dtype bf16 --length 8192 --heads 16 --head-dim 128
    """

    dtype: tuple[Literal["f32", "f64", "bf16", "f16"], ...] = ("f32",)
    length: tuple[int, ...] = (1024,)
    """Events of a row, T."""
    heads: tuple[int, ...] = (8,)
    head_dim: tuple[int, ...] = (64,)
    batch: tuple[int, ...] = (1,)
    """Rows."""
    bias: tuple[BiasKind, ...] = ("log",)
    passes: Annotated[tuple[PassName, ...], tyro.conf.arg(name="pass")] = ("both",)
    """forward alone, or forward and backward."""
    dropout: float = 0.0
    """Probability of dropping an attention weight, on both sides but for ours-plain."""
    peer: tuple[PeerName, ...] = ()
    """What to compare with; not given: torch-plain and torch-bias, on a GPU torch-flex too."""

    def comparisons(self) -> list[tuple[common.Case, str | None]]:
        """The product of all options."""
        self.check()
        for name in ("length", "heads", "head_dim", "batch"):
            at_least(f"--{name.replace('_', '-')}", getattr(self, name), 1)
        given_all({"--dtype": self.dtype, "--bias": self.bias, "--pass": self.passes})
        if not 0 <= self.dropout < 1:
            raise UserError(f"--dropout must be in [0, 1), got {self.dropout:g}")
        usual = ("torch-plain", "torch-bias", "torch-flex") if self.backend == "cuda" else ("torch-plain", "torch-bias")
        peers = chosen_peers(self.against, self.peer, usual, self.backend)
        cases = [
            Case(
                dtype=dtype, **self.setting(threads), length=length, heads=heads, head_dim=head_dim, batch=batch, bias=bias, passes=passes,
                dropout=self.dropout,
            )
            for dtype, batch, heads, head_dim, bias, passes, threads, length in itertools.product(
                self.dtype, self.batch, self.heads, self.head_dim, self.bias, self.passes, self.threads, self.length
            )
        ]  # fmt: skip
        return checked([(case, peer) for case in cases for peer in peers])


def checked(comparisons: list[tuple[common.Case, str | None]]) -> list[tuple[common.Case, str | None]]:
    """Raises UserError where a peer would hold more scores than memory has room for."""
    for case, peer in comparisons:
        most = MOST_SCORES_ON_GPU if case.backend == "cuda" else MOST_SCORES
        if isinstance(case, Case) and peer in most and (scores := case.batch * case.heads * case.length**2) > most[peer]:
            raise UserError(f"--peer {peer} holds all B·H·T² scores at once, {most[peer]:,} at most, got {scores:,}: try a smaller --length")
        if peer == "torch-flex" and case.backend == "cpu":
            raise UserError("--peer torch-flex is compiled for GPUs: take --backend cuda with it")
    return comparisons
