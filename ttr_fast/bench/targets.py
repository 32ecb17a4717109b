"""The speeds that this project sets itself, measured one after the other: `ttr bench table`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ttr_fast.bench import attention, case as common, decode, gemm, step
from ttr_fast.bench.case import BenchBackend, processors, torch_is_there
from ttr_fast.errors import UserError

if TYPE_CHECKING:
    from ttr_fast.bench.measure import Failure, Result

QUICK = 3, 20.0
"""Samples and milliseconds of each with --quick."""
GPU_LIMIT_S = 150.0
"""Seconds for one answer of a process on a GPU; compiling the kernels of a step is the longest part."""
LONG_ROW = 65536
"""Events of the row whose memory is measured, once: its attention takes half a minute."""


class Target(NamedTuple):
    """What one measure of one comparison should be: at least or at most `wanted`."""

    case: common.Case
    peer: str | None
    measure: str
    least: bool
    wanted: float

    def is_met(self, measured: float) -> bool:
        """Whether it is."""
        return measured >= self.wanted if self.least else measured <= self.wanted

    def share(self, measured: float) -> float:
        """Of what is wanted: 1 and above is met."""
        return measured / self.wanted if self.least else self.wanted / measured


def over(ours: float | None, theirs: float | None) -> float | None:
    """Their quotient where both are known."""
    return None if ours is None or not theirs else ours / theirs


MEASURES: dict[str, Callable[["Result"], float | None]] = {
    "peer's time / ours": lambda r: r.ratio,
    "our time / peer's": lambda r: over(r.ours.ms, r.peer.ms if r.peer else None),
    "our memory / peer's": lambda r: over(r.ours.peak_mib, r.peer.peak_mib if r.peer else None),
    "our activations / peer's": lambda r: over(r.ours.activations_mib, r.peer.activations_mib if r.peer else None),
    "share of peak": lambda r: r.share_of_peak,
    "share of reading": lambda r: r.share_of_reading,
    "TFLOP/s": lambda r: r.gflops(r.ours) / 1e3,
    "MiB beyond results": lambda r: r.extra_mib,
    "first call, nothing compiled, s": lambda r: r.ours.cold_seconds and r.ours.cold_seconds[0],
    "first call, compiled before, s": lambda r: r.ours.cold_seconds and r.ours.cold_seconds[1],
}
FASTER, SLOWER, LESS_MEMORY, FEWER_ACTIVATIONS, OF_PEAK, OF_READING, TFLOPS, EXTRA, COLD, WARM = MEASURES


def attention_targets(threads: int, seed: int) -> list[Target]:
    """H=8 and D=64 unless told otherwise, causal, with a log bias on our side."""
    base = attention.Case(dtype="f32", threads=threads, seed=seed, length=1024, heads=8, head_dim=64, batch=1, bias="log", passes="both")

    def faster(peer: str, wanted: float, **changed: Any) -> Target:
        return Target(replace(base, **changed), peer, FASTER, True, wanted)

    found = [faster("torch-plain", w, length=n, passes=p) for p, n, w in (
        ("forward", 1024, 1.9), ("forward", 4096, 1.5), ("both", 1024, 1.8), ("both", 4096, 1.5)
    )]  # fmt: skip
    found.append(Target(replace(base, length=4096), "torch-plain", OF_PEAK, True, 0.8))
    found += [faster("torch-bias", 11, passes="forward"), faster("torch-bias", 13)]
    for dtype, forward, both in (("bf16", 2.6, 2.0), ("f16", 3.0, 8.0)):
        found += [
            faster("torch-plain", w, dtype=dtype, length=n, passes=p) for p, w in (("forward", forward), ("both", both)) for n in (1024, 4096)
        ]
    found += [faster("torch-plain", 1.3, head_dim=d) for d in (32, 96, 128)]
    found.append(faster("torch-plain", 1.3, length=1000))
    found.append(Target(replace(base, dropout=0.1), "ours-plain", SLOWER, False, 1.3))
    found.append(Target(replace(base, length=LONG_ROW, heads=2), None, EXTRA, False, 600))
    return found


def gemm_targets(threads: int, seed: int) -> list[Target]:
    """1024³."""
    rows = (("f32", "numpy", 0.95), ("bf16", "torch", 0.9), ("f16", "ours-f32", 0.9))
    return [Target(gemm.Case(dtype=d, threads=threads, seed=seed, m=1024, k=1024, n=1024), peer, FASTER, True, w) for d, peer, w in rows]


def step_targets(threads: int, seed: int) -> list[Target]:
    """A model of 4.9 million weights, four rows of 512 events."""
    base = step.Case(
        dtype="f32", threads=threads, seed=seed, length=512, batch=4, embed_dim=256, hidden_dim=1024, heads=8, layers=4, vocabulary=4096, bias="log"
    )
    long, deep = replace(base, length=4096, batch=1, heads=4), replace(base, layers=12, checkpointing="block")
    return [
        *(Target(base, peer, FASTER, True, w) for peer, w in (("torch-bias", 3.0), ("torch-plain", 1.5), ("torch-compile", 1.5))),
        Target(replace(base, dtype="bf16"), "torch-plain", FASTER, True, 1.5),
        Target(long, "torch-bias", FASTER, True, 8.0),
        Target(long, "torch-bias", LESS_MEMORY, False, 1 / 5),
        Target(deep, "ours-none", FEWER_ACTIVATIONS, False, 1 / 4),
        Target(deep, "ours-none", SLOWER, False, 1.35),
        Target(base, None, COLD, False, 40),
        Target(base, None, WARM, False, 3),
    ]


def decode_targets(threads: int, seed: int) -> list[Target]:
    """A small model, whose weights the caches hold, and one that has to be read from memory."""
    small = decode.Case(
        dtype="f32", threads=threads, seed=seed, position=512, window=512, batch=1, embed_dim=256, hidden_dim=1024, heads=8, layers=4,
        vocabulary=4096, bias="log",
    )  # fmt: skip
    large = replace(small, position=1024, window=1024, embed_dim=768, hidden_dim=2048, heads=12, layers=12, vocabulary=32768)
    half = replace(large, dtype="f16")
    return [
        Target(replace(small, position=100 * small.window), "ours-at-window", SLOWER, False, 1.05),
        Target(small, "torch-plain", FASTER, True, 4.0),
        Target(large, "torch-plain", FASTER, True, 1.8),
        Target(large, "torch-plain", OF_READING, True, 0.7),
        Target(half, "torch-plain", FASTER, True, 3.2),
        Target(half, "torch-plain", OF_READING, True, 0.7),
    ]


def gpu_targets(seed: int) -> list[Target]:
    """Of one H200. Attention of 8192 events, causal, E = 2048; a model of 0.4 billion weights.

    Decoding reads keys and values of 128 rows: where one row alone is decoded, launching kernels takes longer than reading weights.
    """
    on: dict[str, Any] = {"threads": processors(), "seed": seed, "backend": "cuda"}
    base = attention.Case(dtype="bf16", length=8192, heads=32, head_dim=64, batch=1, bias="log", passes="forward", **on)
    wide = replace(base, heads=16, head_dim=128)
    cases = [replace(case, passes=passes) for case in (base, wide) for passes in ("forward", "both")]
    readable = replace(base, dtype="f32", length=4096)
    product = gemm.Case(dtype="bf16", m=8192, k=8192, n=8192, **on)
    model: dict[str, Any] = {"dtype": "bf16", "embed_dim": 1024, "hidden_dim": 4096, "heads": 16, "layers": 24, "vocabulary": 32768, "bias": "log"}
    return [
        *(Target(case, None, TFLOPS, True, 300 if case.passes == "forward" else 200) for case in cases),
        Target(product, "torch", FASTER, True, 0.5),
        Target(replace(product, dtype="f32"), None, OF_PEAK, True, 0.3),
        *(Target(replace(readable, passes=passes), None, OF_PEAK, True, 0.3) for passes in ("forward", "both")),
        Target(step.Case(length=4096, batch=1, **model, **on), "torch-plain", FASTER, True, 0.5),
        Target(decode.Case(position=2048, window=2048, batch=128, **model, **on), None, OF_READING, True, 0.7),
        *(Target(case, "torch-bias", FASTER, True, 10) for case in cases),
    ]


def all_targets(threads: int, seed: int, backend: BenchBackend = "cpu") -> list[Target]:
    """In the order in which they are measured."""
    if backend == "cuda":
        return gpu_targets(seed)
    return [target for part in (attention_targets, gemm_targets, step_targets, decode_targets) for target in part(threads, seed)]


@dataclass(frozen=True, kw_only=True)
class TableOptions(common.Options):
    """Every speed that this project sets itself as a goal: measured, wanted, and whether that is met. Takes a quarter of an hour, --quick less.

    Examples:

        ttr bench table

        ttr bench table --quick --json table.jsonl

        ttr bench table --backend cuda
    """

    goes_on: ClassVar[bool] = True
    quick: bool = False
    """Fewer and shorter samples."""

    def comparisons(self) -> list[tuple[common.Case, str | None]]:
        """Each once, whatever is asked of it."""
        self.check()
        if self.plot is not None:
            raise UserError("--plot draws what one benchmark measures at several sizes: use it with attention, gemm, step, decode or memory")
        if self.cold or len(self.threads) != 1:
            raise UserError("the table has cold starts of its own and takes one number of --threads: leave --cold and further numbers out")
        with_torch = self.against == "torch" and torch_is_there(self.backend)
        return [(case, peer) for case, peer in dict.fromkeys((t.case, t.peer) for t in self.targets()) if with_torch or "torch" not in (peer or "")]

    def targets(self) -> list[Target]:
        """On so many threads, or on a GPU."""
        return all_targets(self.threads[0], self.seed, self.backend)

    @property
    def limit_s(self) -> float | None:
        """A kernel that never ends must not keep the others from being measured."""
        return GPU_LIMIT_S if self.backend == "cuda" else None

    def targets_of(self, result: "Result | Failure") -> list[Target]:
        """What is asked of this comparison."""
        return [t for t in self.targets() if (t.case, t.peer) == (result.case, result.peer_name)]

    def sampling(self, case: common.Case) -> tuple[int, float]:
        """Once where it takes long."""
        if isinstance(case, attention.Case) and case.length == LONG_ROW:
            return 1, self.least_ms
        return QUICK if self.quick else super().sampling(case)

    def starts_cold(self, case: common.Case, peer: str | None) -> bool:
        """Where a target says so."""
        return any((t.case, t.peer) == (case, peer) and t.measure in (COLD, WARM) for t in self.targets())

    def record(self, result: "Result | Failure") -> dict[str, Any]:
        """With the targets."""
        from ttr_fast.bench.measure import Result

        told = []
        for t in self.targets_of(result):
            measured = MEASURES[t.measure](result) if isinstance(result, Result) else None
            bound = "at least" if t.least else "at most"
            met = None if measured is None else t.is_met(measured)
            told.append({"measure": t.measure, "measured": measured, bound: t.wanted, "met": met})
        return result.record() | {"label": result.case.label, "targets": told}

    def text(self, results: list["Result"]) -> str:
        """A row for each target."""
        from ttr_fast.bench.report import aligned

        by_comparison = {(r.case, r.peer_name): r for r in results}
        rows = [("case", "peer", "measure", "measured", "wanted", "share", "verdict")]
        for t in self.targets():
            result = by_comparison.get((t.case, t.peer))
            measured = None if result is None else MEASURES[t.measure](result)
            wanted = f"{'≥' if t.least else '≤'} {t.wanted:.3g}"
            label = t.case.label.removesuffix(f", {t.case.where}")
            if measured is None:
                rows.append((label, t.peer or "–", t.measure, "–", wanted, "–", "not measured"))
            else:
                verdict = "met" if t.is_met(measured) else "falls short"
                rows.append((label, t.peer or "–", t.measure, f"{measured:.3g}", wanted, f"{t.share(measured):.0%}", verdict))
        return "\n".join(aligned(rows, {"case", "peer", "measure", "verdict"}))
