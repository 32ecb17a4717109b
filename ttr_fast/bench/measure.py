"""How a comparison is made: the results agree first, then samples of ours, of the peer and of the machine's peak in turn.

So a slow moment of the machine falls on all three.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from ttr_fast.bench.case import OURS, Case, Options, is_simulated, torch_is_there
from ttr_fast.bench.client import Worker
from ttr_fast.errors import UserError
from ttr_ref.float_dtype import HALF_FORMATS

PAUSE = 0.02
"""Seconds between turns: threads of the other side that wait by spinning fall asleep."""


@dataclass(frozen=True)
class Machine:
    """What the hardware did at most on that many threads: the best sample of products in the run so far, and reading; on a GPU, copying."""

    peak_gflops: float
    read_gb_per_s: float


@dataclass(frozen=True)
class Timing:
    """One side: milliseconds of a call, how far memory rose beyond the inputs, and what of it backward needs where that is known."""

    ms: float
    quartiles_ms: tuple[float, float]
    peak_mib: float | None
    activations_mib: float | None = None
    cold_seconds: tuple[float, float] | None = None
    """From the start of a process to the end of a first call: without and with compiled kernels on disk."""


@dataclass(frozen=True)
class Result:
    """One comparison."""

    case: Case
    machine: Machine
    ours: Timing
    peer_name: str | None
    peer: Timing | None

    @property
    def share_of_peak(self) -> float:
        """Of ours."""
        return self.gflops(self.ours) / self.machine.peak_gflops

    @property
    def gb_per_s(self) -> float:
        """Of what ours has to read or write."""
        return self.case.bytes / self.ours.ms / 1e6

    @property
    def share_of_reading(self) -> float:
        """Of what the machine reads at most; above 1 where caches hold everything."""
        return self.gb_per_s / self.machine.read_gb_per_s

    @property
    def extra_mib(self) -> float | None:
        """The rise of memory beyond inputs and results."""
        return self.beyond_results(OURS, self.ours)

    @property
    def peer_extra_mib(self) -> float | None:
        """The same of the peer."""
        return self.beyond_results(str(self.peer_name), self.peer)

    def beyond_results(self, side: str, timing: Timing | None) -> float | None:
        """None where memory is not known."""
        return None if timing is None or timing.peak_mib is None else timing.peak_mib - self.case.result_bytes(side) / 2**20

    @property
    def ratio(self) -> float | None:
        """Above 1 ours is faster."""
        return None if self.peer is None else self.peer.ms / self.ours.ms

    def gflops(self, timing: Timing) -> float:
        """Of either side."""
        return self.case.flops / timing.ms / 1e6

    def record(self) -> dict[str, Any]:
        """The line of --json."""
        ours, peer, gflops = self.ours, self.peer, self.gflops(self.ours)
        record = {
            "case": {"kind": self.case.kind} | asdict(self.case), "ours_ms": ours.ms, "ours_quartiles_ms": ours.quartiles_ms,
            "peer": self.peer_name, "peer_ms": peer and peer.ms, "peer_quartiles_ms": peer and peer.quartiles_ms, "ratio": self.ratio,
            "threads": self.case.threads, "gflops": gflops, "peer_gflops": peer and self.gflops(peer),
            "share_of_peak": self.share_of_peak, "gb_per_s": self.gb_per_s, "share_of_reading": self.share_of_reading,
            "peak_mib": ours.peak_mib, "peer_peak_mib": peer and peer.peak_mib, "results_mib": self.case.result_bytes(OURS) / 2**20,
            "activations_mib": ours.activations_mib, "peer_activations_mib": peer and peer.activations_mib, "machine": asdict(self.machine),
        }  # fmt: skip
        if is_simulated(self.case.backend):
            record["simulated"] = True
        if ours.cold_seconds is not None:
            record |= {"ours_cold_seconds": ours.cold_seconds, "peer_cold_seconds": peer and peer.cold_seconds}
        return record


@dataclass(frozen=True)
class Failure:
    """A comparison that could not be made, and why."""

    case: Case
    peer_name: str | None
    reason: str

    def record(self) -> dict[str, Any]:
        """The line of --json."""
        return {"case": {"kind": self.case.kind} | asdict(self.case), "peer": self.peer_name, "error": self.reason}


def compare_all(comparisons: list[tuple[Case, str | None]], options: Options, say: Callable[[str], None]) -> Iterator[Result | Failure]:
    """Every comparison, with a progress bar on stderr; `say` is told what runs. Raises UserError, but where the options go on after a failure."""
    from tqdm import tqdm

    machines: dict[tuple[str, int], MachineWorker] = {}
    told: set[tuple[str, int]] = set()
    total = sum(options.sampling(case)[0] for case, _ in comparisons)
    with ExitStack() as run, tqdm(total=total, unit="sample", file=sys.stderr, dynamic_ncols=True, disable=None) as bar:
        for case, peer in comparisons:
            bar.set_description(case.label + (f" against {peer}" if peer else ""))
            try:
                with ExitStack() as stack:
                    workers = {side: stack.enter_context(Worker(side, case.threads, options.limit_s)) for side in (OURS, peer) if side is not None}
                    for side, worker in workers.items():
                        if (side, case.threads) not in told:
                            say(f"{side}: {worker.ask('describe', backend=case.backend)['text']}")
                            told.add((side, case.threads))
                    key = machine_key(case)
                    if key not in machines:
                        machines[key] = MachineWorker(run.enter_context(Worker(machine_side(case), case.threads, options.limit_s)), key[0], case)
                    found: Result | Failure = compared(case, peer, workers, machines[key], options, bar.update)
            except UserError as error:
                if not options.goes_on:
                    raise
                say(str(error))
                found = Failure(case, peer, str(error))
            yield found
    for (_, threads), m in machines.items():
        moved = "copies" if m.backend == "cuda" else "reads"
        say(f"the machine: {m.best:.0f} GF/s of {m.text}, {moved} {m.read_gb_per_s:.1f} GB/s{'' if m.backend == 'cuda' else f', {threads} threads'}")


def machine_key(case: Case) -> tuple[str, int]:
    """(the type whose products are the machine's peak, threads): the CPU sums 16-bit numbers as float32, a GPU has instructions for them."""
    kept = ("f64", "bf16", "f16") if case.backend == "cuda" else ("f64",)
    return case.dtype if case.dtype in kept else "f32", case.threads


def machine_side(case: Case) -> str:
    """Who measures the peak: 16-bit products of a GPU are best made by PyTorch's cuBLAS, if it is there."""
    return "torch" if case.backend == "cuda" and case.dtype in HALF_FORMATS and torch_is_there("cuda") else OURS


class MachineWorker:
    """A process that measures the machine itself."""

    def __init__(self, worker: Worker, dtype: str, case: Case) -> None:
        self.worker, self.best, self.backend = worker, 0.0, case.backend
        answer = worker.ask("machine", backend=case.backend, dtype=dtype)
        self.read_gb_per_s: float = answer["read_gb_per_s"]
        self.text: str = answer["text"]

    def sample(self) -> None:
        """The best of the run is kept."""
        self.best = max(self.best, self.worker.ask("peak")["gflops"])


def compared(
    case: Case, peer: str | None, workers: dict[str, Worker], machine: MachineWorker, options: Options, tick: Callable[[], Any]
) -> Result:
    """One comparison."""
    if peer is not None:
        check_agreement(case, peer, options.limit_s)
    count, least_ms = options.sampling(case)
    for worker in workers.values():
        worker.ask_case("prepare", case, least_ms=least_ms)
    samples: dict[str, list[float]] = {side: [] for side in workers}
    for _ in range(count):
        for side, worker in workers.items():
            time.sleep(PAUSE)
            samples[side].append(worker.ask("sample")["ms"])
        time.sleep(PAUSE)
        machine.sample()
        tick()
    timings = {}
    for side, worker in workers.items():
        low, middle, high = (float(x) for x in np.percentile(samples[side], [25, 50, 75]))
        cold = cold_seconds(case, side) if options.starts_cold(case, peer) else None
        memory = worker.ask("memory")
        timings[side] = Timing(middle, (low, high), memory["peak_mib"], memory["activations_mib"], cold)
    return Result(case, Machine(machine.best, machine.read_gb_per_s), timings[OURS], peer, timings[peer] if peer else None)


def check_agreement(case: Case, peer: str, limit_s: float | None = None) -> None:
    """Raises UserError where the two sides compute different things: their times would say nothing.

    In processes of their own, which leave nothing behind in the memory of those that are timed.
    """
    shared = case.shared_with(peer)
    outputs = []
    with tempfile.TemporaryDirectory() as folder:
        for side in (OURS, peer):
            path = Path(folder) / f"{side}.npz"
            with Worker(side, case.threads, limit_s) as worker:
                worker.ask_case("outputs", shared, path=str(path))
            with np.load(path) as file:
                outputs.append(dict(file))
    if fault := disagreement(shared, *outputs):
        raise UserError(f"ours and {peer} disagree, so nothing was timed: {shared.label}: {fault}")


def disagreement(case: Case, ours: dict[str, ndarray], theirs: dict[str, ndarray]) -> str | None:
    """What differs by more than the case's limits, None if nothing does."""
    if ours.keys() != theirs.keys():
        return f"ours gives {', '.join(ours)}, the peer {', '.join(theirs)}"
    for name, mine in ours.items():
        other = theirs[name]
        if mine.shape != other.shape:
            return f"{name} is {mine.shape} here and {other.shape} there"
        largest, limit = np.abs(other).max(initial=0.0), case.limit(name)
        apart = np.abs(mine - other).max(initial=0.0)
        if not apart <= limit * largest:  # so NaN is a disagreement
            return f"{name} differs by {apart:.2g}, its largest entry is {largest:.2g}, the limit {limit * largest:.2g}"
    return None


def cold_seconds(case: Case, side: str) -> tuple[float, float]:
    """Process, imports and a first call: with an empty folder of compiled kernels, and again."""
    with tempfile.TemporaryDirectory() as folder:
        empty, warm = (one_start(case, side, folder) for _ in range(2))
    return empty, warm


def one_start(case: Case, side: str, folder: str) -> float:
    """Seconds from nothing to the answer."""
    start = time.perf_counter()
    with Worker(side, case.threads, NUMBA_CACHE_DIR=folder, TORCHINDUCTOR_CACHE_DIR=folder) as worker:
        worker.ask_case("first", case)
        return time.perf_counter() - start
