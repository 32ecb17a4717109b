"""Causal attention with a Δt bias, forward or forward and backward, at times that a Poisson process gives.

Peers are what a good user of them would write. What does not depend on parameters (the differences of times, where the future is hidden) they
find ready; what is learned is in the graph:

    torch-plain   scaled_dot_product_attention(is_causal=True): PyTorch's own blocked kernel, without any bias
    torch-bias    the bias built from its parameters and passed as attn_mask: what the same model costs in PyTorch
    numpy         the oracle, ttr_ref.attention
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
from ttr_fast.bench.case import OURS, Prepared, at_least, chosen_peers
from ttr_fast.errors import UserError
from ttr_ref.config import BiasKind, BlockConfig, TimeConfig
from ttr_ref.float_dtype import FloatDType
from ttr_ref.time_bias import ExpBias, LinearBias, LogBias, NoBias, TableBias, TimeBias, time_bias_init
from ttr_ref.timeline import Timeline, timeline_from_lengths
from ttr_ref.tree import named_leaves, tree_map

PassName = Literal["forward", "both"]
PeerName = Literal["torch-plain", "torch-bias", "numpy"]
NOW, MEAN_GAP, SHORTEST = 1_700_000_000, 3600.0, 60.0
MOST_SCORES = 2**25
"""The oracle holds several float arrays of this many numbers."""
TABLE_KNOTS = 32


@dataclass(frozen=True, kw_only=True)
class Case(common.Case):
    """B rows of T events, H heads of width D."""

    kind: ClassVar[str] = "attention"
    length: int
    heads: int
    head_dim: int
    batch: int
    bias: BiasKind
    passes: PassName

    @property
    def flops(self) -> int:
        """Two products over half of the T × T pairs; backward has five."""
        forward = 2 * self.batch * self.heads * self.length**2 * self.head_dim
        return forward if self.passes == "forward" else forward * 7 // 2

    @property
    def bytes(self) -> int:
        """Q, K, V and O; backward reads them and dO, and writes dQ, dK, dV."""
        arrays = 4 if self.passes == "forward" else 4 + 8
        return arrays * self.batch * self.heads * self.length * self.head_dim * FloatDType(self.dtype).storage.itemsize

    @property
    def size(self) -> float:
        """T."""
        return self.length

    @property
    def series(self) -> str:
        """Without T."""
        return f"{self.dtype} B{self.batch} H{self.heads} D{self.head_dim} {self.bias} {self.passes}, {self.threads} threads"

    @property
    def label(self) -> str:
        """As a row of the table begins."""
        return f"attention {self.dtype} B{self.batch} T{self.length} H{self.heads} D{self.head_dim} {self.bias} {self.passes}, {self.threads} threads"

    def small(self) -> Self:
        """One row of a few events."""
        return replace(self, batch=1, length=min(self.length, 64))

    def shared_with(self, peer: str) -> Self:
        """PyTorch's own kernel knows no bias, so ours is compared without."""
        return replace(self, bias="none") if peer == "torch-plain" else self

    def limit(self, name: str) -> float:
        """Each side's scores are off by D/2 eps of the terms of D products, √D of unit variance after scaling, and a sum over T keys by T/2 eps; the
        exponential and the backward pass double it.

        Gradients of the bias's parameters sum T rows, each of both signs: of the terms' size only 1/√T may be left.
        """
        shared = 4 * float(np.finfo(FloatDType(self.dtype).compute).eps) * (self.head_dim**1.5 + self.length)
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
    """The same for every side: drawn from the case's seed alone."""
    rng = np.random.default_rng(case.seed)
    dtype = FloatDType(case.dtype).storage
    q, k, v, do = (rng.standard_normal((case.batch, case.heads, case.length, case.head_dim)).astype(dtype) for _ in range(4))
    times = NOW + np.cumsum(rng.exponential(MEAN_GAP, (case.batch, case.length)), 1).astype(np.int64)
    time = TimeConfig(origin=NOW, unit=MEAN_GAP, shortest=SHORTEST, span=MEAN_GAP * max(case.length, 2))
    start = time_bias_init(BlockConfig(2 * case.heads, 1, case.heads, time_bias=case.bias, time=time, table_knots=TABLE_KNOTS))
    moved = tree_map(lambda a: (a + 0.5 * rng.standard_normal(a.shape)).astype(dtype), start)  # exp and table start at no bias at all
    return Inputs(q, k, v, do, timeline_from_lengths(times, np.full(case.batch, case.length)), moved, time)


def named(results: tuple[Any, ...]) -> dict[str, ndarray]:
    """(o,) or (o, dq, dk, dv, dbias) by name."""
    arrays = dict(zip(("o", "dq", "dk", "dv"), results, strict=False))
    return arrays | {f"dbias.{name}": leaf for name, leaf in named_leaves(results[4]).items()} if len(results) > 4 else arrays


def with_our_names(module: str) -> Callable[[Case], Prepared]:
    """The oracle and the core have the same functions."""

    def prepare(case: Case) -> Prepared:
        functions = importlib.import_module(module)
        p = inputs(case)

        def call() -> tuple[Any, ...]:
            o, _, cache = functions.attention_forward(p.q, p.k, p.v, p.at, p.at, p.bias, p.time)
            return (o,) if case.passes == "forward" else (o, *functions.attention_backward(p.do, None, cache))

        return Prepared(call, named)

    return prepare


def torch_bias(torch: Any, p: Inputs) -> Callable[[TimeBias], Any]:
    """From parameters as tensors to the bias (B, H, T, T), −∞ at the future. The differences of times, which have no parameters, are made here."""
    times = torch.from_numpy(p.at.time)
    dtype = torch.from_numpy(p.q).dtype
    delta = (times[:, :, None] - times[:, None]).clamp(min=0).to(dtype)[:, None]
    hidden = torch.full(delta.shape[-2:], -torch.inf, dtype=dtype).triu(1)
    below: Any = None
    fraction: Any = None
    if isinstance(p.bias, TableBias):
        last = p.bias.table.shape[1] - 1
        u = torch.log2(1 + delta[:, 0] / p.time.shortest).clamp(max=last)
        below = u.long().clamp(max=last - 1)
        fraction = u - below

    def per_head(a: Any) -> Any:
        return a[:, None, None]

    def build(bias: Any) -> Any:
        match bias:
            case NoBias():
                return hidden
            case LinearBias(a):
                return hidden - per_head(torch.nn.functional.softplus(a)) * (delta / p.time.unit)
            case LogBias(a, rho):
                return hidden - per_head(torch.nn.functional.softplus(a)) * torch.log1p(delta / per_head(torch.exp(rho)))
            case ExpBias(alpha, log_rate):
                rate = torch.exp(log_rate)
                return hidden + sum(per_head(alpha[:, m]) * torch.exp(-per_head(rate[:, m]) * delta) for m in range(alpha.shape[1]))
            case TableBias(table):
                return hidden + torch.lerp(table[:, below], table[:, below + 1], fraction).transpose(0, 1)

    return build


def with_torch(biased: bool) -> Callable[[Case], Prepared]:
    """scaled_dot_product_attention, with the bias as attn_mask or without any."""

    def prepare(case: Case) -> Prepared:
        torch = importlib.import_module("torch")  # it need not be installed
        torch.set_num_threads(case.threads)
        p = inputs(case)
        both = case.passes == "both"
        q, k, v = (torch.from_numpy(a).requires_grad_(both) for a in (p.q, p.k, p.v))
        do = torch.from_numpy(p.do)
        parameters = tree_map(lambda a: torch.from_numpy(a).requires_grad_(both), p.bias) if biased else NoBias()
        leaves = tuple(parameters)  # each bias is one flat tuple
        build = torch_bias(torch, p) if biased else None
        attend = torch.nn.functional.scaled_dot_product_attention

        def forward() -> Any:
            return attend(q, k, v, is_causal=True) if build is None else attend(q, k, v, attn_mask=build(parameters))

        def call() -> tuple[Any, ...]:
            if not both:
                with torch.no_grad():
                    return (forward(),)
            o = forward()
            return (o, *torch.autograd.grad(o, (q, k, v, *leaves), do))

        def arrays(results: tuple[Any, ...]) -> dict[str, ndarray]:
            found = [tensor.detach().numpy() for tensor in results]
            names = (f"dbias.{name}" for name in parameters._fields)
            return named(tuple(found[:4])) | dict(zip(names, found[4:], strict=both))

        return Prepared(call, arrays)

    return prepare


SIDES: dict[str, Callable[[Case], Prepared]] = {
    OURS: with_our_names("ttr_fast.cpu.attention"),
    "torch-plain": with_torch(biased=False),
    "torch-bias": with_torch(biased=True),
    "numpy": with_our_names("ttr_ref.attention"),
}


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(common.Options):
    """Causal attention with a Δt bias against PyTorch or the NumPy oracle. Most options take several values; every combination is a case.

    torch-plain is scaled_dot_product_attention without a bias, torch-bias the same with the learned bias in its graph.

    Examples:

        ttr bench attention

        ttr bench attention --length 1024 2048 4096 --pass forward both --peer torch-plain torch-bias --plot attention.png

        ttr bench attention --length 256 --bias none log table --peer numpy --json -
    """

    dtype: tuple[Literal["f32", "f64"], ...] = ("f32",)
    length: tuple[int, ...] = (1024,)
    """Events of a row, T."""
    heads: tuple[int, ...] = (8,)
    head_dim: tuple[int, ...] = (64,)
    batch: tuple[int, ...] = (1,)
    """Rows."""
    bias: tuple[BiasKind, ...] = ("log",)
    passes: Annotated[tuple[PassName, ...], tyro.conf.arg(name="pass")] = ("both",)
    """forward alone, or forward and backward."""
    peer: tuple[PeerName, ...] = ()
    """What to compare with; not given: torch-plain and torch-bias."""

    def comparisons(self) -> list[tuple[common.Case, str | None]]:
        """The product of all options."""
        self.check()
        for name in ("length", "heads", "head_dim", "batch"):
            at_least(f"--{name.replace('_', '-')}", getattr(self, name), 1)
        for name in ("dtype", "bias", "passes"):
            if not getattr(self, name):
                raise UserError(f"--{name.replace('passes', 'pass')} must be given a value")
        peers = chosen_peers(self.against, self.peer, ("torch-plain", "torch-bias"))
        found: list[tuple[common.Case, str | None]] = []
        for dtype, batch, heads, head_dim, bias, passes, threads, length, peer in itertools.product(
            self.dtype, self.batch, self.heads, self.head_dim, self.bias, self.passes, self.threads, self.length, peers
        ):
            if peer == "numpy" and batch * heads * length**2 > MOST_SCORES:
                scores = batch * heads * length**2
                raise UserError(f"--peer numpy holds all B·H·T² scores at once, {MOST_SCORES:,} at most, got {scores:,}: try a smaller --length")
            case = Case(
                dtype=dtype, threads=threads, seed=self.seed, length=length, heads=heads, head_dim=head_dim, batch=batch, bias=bias, passes=passes
            )
            found.append((case, peer))
        return found
