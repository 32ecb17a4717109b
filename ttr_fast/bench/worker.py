"""One side of a comparison in a process of its own, so that no library's threads, memory or caches are another's.

    python -m ttr_fast.bench.worker SIDE THREADS

reads requests from stdin and answers each on stdout, JSON objects a line:

    {"do": "describe", "backend": "cpu"}                         {"text": "NumPy 2.4.6, …"}
    {"do": "machine", "backend": "cpu", "dtype": "f32"}          {"read_gb_per_s": 31.0, "text": "f32 products …"}     ready for peak
    {"do": "peak"}                                               {"gflops": 140.2}     one sample of the fastest product of tiles
    {"do": "outputs", "kind": …, "case": {…}, "path": "x.npz"}   {}     what the case gives, by name
    {"do": "first", "kind": …, "case": {…}}                      {}     called once
    {"do": "prepare", "kind": …, "case": {…}, "least_ms": 50}    {"calls": 12}     warm, inputs made; a sample is 12 calls
    {"do": "sample"}                                             {"ms": 4.1}     the mean of one sample
    {"do": "memory"}                                             {"peak_mib": 96.0, "activations_mib": null}     beyond the inputs; null if unknown

A request that fails is answered {"error": "…"}. The process ends with its input.
"""

import importlib
import os
import sys
from typing import Any

import msgspec
import numpy as np

from ttr_fast.bench import machine
from ttr_fast.bench.case import BenchBackend, Case, Prepared


class Session:
    """What a worker remembers between requests."""

    def __init__(self, side: str, threads: int) -> None:
        self.side, self.threads = side, threads
        self.ready: Prepared | None = None
        self.calls = 1
        self.peak: machine.Peak | None = None
        self.baseline: float | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carries out one request."""
        match request["do"]:
            case "describe":
                return {"text": hardware(request["backend"]).description(self.side, self.threads)}
            case "machine":
                self.peak = peak = hardware(request["backend"]).matrix_peak(self.side, request["dtype"])
                return {"read_gb_per_s": hardware(request["backend"]).bandwidth(self.side), "text": peak.text}
            case "peak" if self.peak is not None:
                return {"gflops": self.peak.gflops()}
            case "outputs":
                prepared = self.prepared(read_case(request))
                np.savez(request["path"], **prepared.named(prepared.call()))  # type: ignore[arg-type]
                return {}
            case "first":
                self.prepared(read_case(request)).call()
                return {}
            case "prepare":
                return self.prepare(read_case(request), request["least_ms"])
            case "sample" if self.ready is not None:
                return self.sample(self.ready)
            case "memory":
                held = None if self.ready is None or self.ready.activation_bytes is None else self.ready.activation_bytes() / 2**20
                return {"peak_mib": self.peak_mib(), "activations_mib": held}
        raise ValueError(f"there is no request {request['do']!r} here")

    def prepared(self, case: Case) -> Prepared:
        """This worker's side of the case."""
        return side_of(case, self.side)

    def prepare(self, case: Case, least_ms: float) -> dict[str, Any]:
        """Compiled and warm; memory counts from where the inputs are there."""
        self.prepared(case.small()).call()
        self.ready = self.prepared(case)
        self.baseline = machine.memory_baseline()
        self.ready.call()  # sizes may have kernels of their own, and the first call plans its memory
        self.calls = machine.calls_lasting(self.ready.call, least_ms / 1e3, self.ready.seconds_of or machine.seconds_of)
        return {"calls": self.calls}

    def sample(self, ready: Prepared) -> dict[str, Any]:
        """A short call is made once unmeasured: the other process has had the caches, and threads are asleep."""
        if self.calls > 1:
            ready.call()
        return {"ms": 1e3 * (ready.seconds_of or machine.seconds_of)(ready.call, self.calls)}

    def peak_mib(self) -> float | None:
        """How far memory rose beyond the inputs."""
        if self.ready is not None and self.ready.peak_bytes is not None:
            return self.ready.peak_bytes() / 2**20
        peak = machine.status_mib("VmHWM")
        return None if self.baseline is None or peak is None else peak - self.baseline


def read_case(request: dict[str, Any]) -> Case:
    """The case as its module's own class."""
    case: Case = msgspec.convert(request["case"], type=importlib.import_module(f"ttr_fast.bench.{request['kind']}").Case)
    return case


def side_of(case: Case, side: str) -> Prepared:
    """A case with its inputs, for a side."""
    module = f"cuda_{case.kind}" if case.backend == "cuda" else case.kind
    prepared: Prepared = importlib.import_module(f"ttr_fast.bench.{module}").SIDES[side](case)
    return prepared


def hardware(backend: BenchBackend) -> Any:
    """The module that measures what the hardware does at most: description, matrix_peak, bandwidth."""
    return importlib.import_module("ttr_fast.bench.device") if backend == "cuda" else machine


def main() -> None:
    """Answers until stdin ends. What libraries print goes to stderr, not between the answers."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    session = Session(sys.argv[1], int(sys.argv[2]))
    for line in sys.stdin.buffer:
        try:
            answer = session.answer(msgspec.json.decode(line))
        except Exception as error:  # whatever it is, the parent has to hear of it
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(msgspec.json.encode(answer) + b"\n")


if __name__ == "__main__":
    main()
