"""Memory: of attention forward and backward against T, and of a step's activations with checkpointing against without.

Two kinds of cases, those of attention.py and step.py, measured once each: peaks of memory need no second sample.
"""

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ttr_fast.bench import attention, case as common, step
from ttr_fast.bench.case import at_least, chosen_peers, given_all
from ttr_ref.config import BiasKind

if TYPE_CHECKING:
    from ttr_fast.bench.measure import Result


@dataclass(frozen=True, kw_only=True)
class MemoryOptions(common.Options):
    """How far memory rises beyond inputs and results in attention, forward and backward; and what checkpointing every block saves and costs.

    Examples:

        ttr bench memory

        ttr bench memory --length 1024 4096 16384 65536 --against none --plot memory.png

        ttr bench memory --length --layers 24
    """

    samples: int = 1
    """Samples of each side's time; memory's peak is that of all."""
    least_ms: float = 1.0
    """A sample repeats the call until it takes about this long."""
    dtype: tuple[Literal["f32", "bf16", "f16"], ...] = ("f32",)
    """Of attention."""
    length: tuple[int, ...] = (4096, 16384, 65536)
    """Events of a row in attention, T; none: no attention."""
    heads: tuple[int, ...] = (2,)
    head_dim: tuple[int, ...] = (64,)
    bias: tuple[BiasKind, ...] = ("log",)
    layers: tuple[int, ...] = (12,)
    """Blocks of the model that is trained with and without checkpointing (E 256, F 1024, H 8, V 4096, T 512, 4 rows); none: no model."""
    peer: tuple[Literal["torch-plain", "torch-bias", "numpy"], ...] = ()
    """What to compare attention with; not given: torch-plain."""

    def comparisons(self) -> list[tuple[common.Case, str | None]]:
        """Attention with its peers, then the model with checkpointing against without."""
        self.check()
        for name in ("length", "heads", "head_dim", "layers"):
            if getattr(self, name) or name not in ("length", "layers"):
                at_least(f"--{name.replace('_', '-')}", getattr(self, name), 1)
        given_all({"--dtype": self.dtype, "--bias": self.bias, "--length or --layers": self.length + self.layers})
        peers = chosen_peers(self.against, self.peer, ("torch-plain",), self.backend)
        cases = [
            attention.Case(
                dtype=dtype, **self.setting(threads), length=length, heads=heads, head_dim=head_dim, batch=1, bias=bias, passes="both"
            )
            for dtype, heads, head_dim, bias, threads, length in itertools.product(
                self.dtype, self.heads, self.head_dim, self.bias, self.threads, self.length
            )
        ]
        models: list[tuple[common.Case, str | None]] = [
            (step.StepOptions(**self.setting(threads) | {"threads": (threads,)}, layers=layers, checkpointing=("block",)).cases()[0], "ours-none")
            for layers, threads in itertools.product(self.layers, self.threads)
        ]
        return attention.checked([(case, peer) for case in cases for peer in peers]) + models

    def text(self, results: list["Result"]) -> str:
        """Memory instead of speed."""
        from ttr_fast.bench.report import memory_table

        return memory_table(results)
