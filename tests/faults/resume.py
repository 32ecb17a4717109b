"""A hundred steps in one go against a run that is stopped on its way and goes on, every kind of dropout on: all of its state is equal, bit for bit.

What stops it: SIGKILL a few steps after the save of step 37, so that what it did since has to be forgotten; or SIGTERM, SIGUSR1 or Ctrl-C during
step 37, after which it saves and ends by itself.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ttr_fast import cli
from ttr_fast.training.metrics import MetricsFile

from .forks import ended, forked, run_forked, warm
from .kills import telling_start
from .states import leftovers, outcome
from .tables import Findings
from .writing import COLUMNS, write_slice

DROPOUT = ["--model.dropout.attn", "0.1", "--model.dropout.head", "0.1", "--model.dropout.ff", "0.2", "--model.dropout.block", "0.1"]
SMALL = ["--model.layers", "1", "--model.embed-dim", "16", "--model.hidden-dim", "16", "--model.heads", "2", "--model.window", "8",
         "--model.components", "3", "--train.rows", "2", "--train.length", "32", "--train.warmup", "5"]  # fmt: skip
STOPS = {"SIGKILL": 3, "SIGTERM": 0, "SIGUSR1": 0, "SIGINT": 0}
"""How many steps after the one to go on from each signal comes."""
SHARE = 0.37
"""Of the steps, when it is stopped."""


@contextmanager
def stopped_by(number: signal.Signals, step: int) -> Iterator[None]:
    """Within `with`, this process sends itself the signal when it has told of the step."""
    real = MetricsFile.write

    def write(metrics: MetricsFile, **record: Any) -> None:
        real(metrics, **record)
        if record["kind"] == "step" and record["step"] == step:
            os.kill(os.getpid(), number)

    MetricsFile.write = write  # type: ignore[method-assign]
    try:
        yield
    finally:
        MetricsFile.write = real  # type: ignore[method-assign]


@dataclass(frozen=True)
class Runs:
    """The runs of one storage dtype, each in a folder of its own."""

    data: Path
    folder: Path
    steps: int
    dtype: str
    backend: str
    seed: int

    @property
    def half_way(self) -> int:
        """The step that each goes on from."""
        return round(self.steps * SHARE)

    def start(self, name: str) -> None:
        """`ttr train`; it saves at the step to go on from, whatever happens."""
        cli.run(["train", "--data", str(self.data), "--out", str(self.folder / name), *COLUMNS, *SMALL, *DROPOUT, "--backend", self.backend,
                 "--model.dtype", self.dtype, "--save-every", str(self.half_way), "--train.steps", str(self.steps),
                 "--train.seed", str(self.seed)])  # fmt: skip

    def stop(self, name: str) -> None:
        """Until the signal."""
        with stopped_by(signal.Signals[name], self.half_way + STOPS[name]):
            self.start(name)

    def all(self, stops: list[str]) -> None:
        """In one process, but for the one that is killed: kernels are loaded once."""
        self.folder.mkdir()
        if "SIGKILL" in stops:
            end = run_forked(partial(self.stop, "SIGKILL"), self.folder / "log.txt")
            if not end.killed:
                raise RuntimeError(f"it was to be killed, but ended with {end.code}: {end.said}")
        self.start("straight")
        for name in stops:
            if name != "SIGKILL":
                self.stop(name)
            with telling_start(self.note(name)):
                cli.run(["train", "--resume", str(self.folder / name)])

    def note(self, name: str) -> Path:
        """Where the step is written that a run goes on from."""
        return self.folder / f"{name}.note"


def check(runs: Runs, stops: list[str], findings: Findings) -> None:
    """Compare what lies there with the run in one go."""
    expected = outcome(runs.folder / "straight")
    findings.rows.append({"dtype": runs.dtype, "stopped by": "", "steps": str(runs.steps), **expected, "end": ""})
    for name in stops:
        with findings.expecting(f"{runs.dtype}, {name}"):
            found, step = outcome(runs.folder / name), int(runs.note(name).read_text())
            different = [what for what in expected if found[what] != expected[what]]
            end = "DIFFERENT" if different else "equal"
            findings.rows.append({"dtype": runs.dtype, "stopped by": name, "steps": f"{step} + {runs.steps - step}", **found, "end": end})
            assert not different, f"{', '.join(different)} differ"
            assert step == runs.half_way, f"it went on from step {step}, expected {runs.half_way}"
            assert not leftovers(runs.folder / name), f"left: {leftovers(runs.folder / name)}"


def report(seed: int, steps: int, dtypes: list[str], stops: list[str], backend: str, folder: Path, json_path: Path | None) -> int:
    """The command; the seed is that of the training."""
    start, findings = time.perf_counter(), Findings()
    warm()
    data = write_slice(folder / "flights.csv", 12)
    each = [Runs(data, folder / dtype, steps, dtype, backend, seed) for dtype in dtypes]
    processes = [(runs, forked(partial(runs.all, stops), folder / f"{runs.dtype}.log")) for runs in each]
    for runs, pid in processes:
        end = ended(pid, folder / f"{runs.dtype}.log")
        if end.code:
            raise RuntimeError(f"training in {runs.dtype} ended with {end.code}: {end.said}")
        print(f"{runs.dtype}: done", file=sys.stderr)
        check(runs, stops, findings)
    return findings.finish(f"{len(dtypes) * len(stops)} stopped runs in {time.perf_counter() - start:.0f} s", json_path)
