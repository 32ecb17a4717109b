"""A hundred steps in one go against a run that is stopped on its way and goes on, every kind of dropout on: all of its state is equal, bit for bit.

What stops it: SIGKILL a few steps after the save of step 37, so that what it did since has to be forgotten; or SIGTERM, SIGUSR1 or Ctrl-C during
step 37, after which it saves and ends by itself.
"""

import os
import re
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from ttr_fast import cli
from ttr_fast.training.loop import MetricsFile

from .forks import End, run_forked, warm
from .states import leftovers, outcome
from .tables import Findings
from .writing import COLUMNS, write_slice

DROPOUT = ["--model.dropout.attn", "0.1", "--model.dropout.head", "0.1", "--model.dropout.ff", "0.2", "--model.dropout.block", "0.1"]
SMALL = ["--model.layers", "2", "--model.embed-dim", "16", "--model.hidden-dim", "16", "--model.heads", "2", "--model.window", "8",
         "--model.components", "3", "--train.rows", "4", "--train.length", "32", "--train.warmup", "5"]  # fmt: skip
STOPS = {"SIGKILL": 3, "SIGTERM": 0, "SIGUSR1": 0, "SIGINT": 0}
"""How many steps after the one to go on from each signal comes."""
SHARES = 0.37
"""Of the steps, when it is stopped."""
DTYPES = ("f32", "bf16", "f16")


def run_stopped(arguments: list[str], number: signal.Signals, step: int) -> None:
    """The command, in a process of its own, which sends itself the signal when it has told of the step."""
    real = MetricsFile.write

    def write(metrics: MetricsFile, **record: Any) -> None:
        real(metrics, **record)
        if record["kind"] == "step" and record["step"] == step:
            os.kill(os.getpid(), number)

    MetricsFile.write = write  # type: ignore[method-assign]
    cli.run(arguments)


def started(data: Path, folder: Path, steps: int, dtype: str, backend: str) -> list[str]:
    """The arguments of a run that saves at the step to go on from."""
    return ["train", "--data", str(data), "--out", str(folder), *COLUMNS, *SMALL, *DROPOUT, "--backend", backend, "--model.dtype", dtype,
            "--save-every", str(round(steps * SHARES)), "--train.steps", str(steps)]  # fmt: skip


def went_on_from(end: End) -> int:
    """The step, as the progress bar tells it first."""
    found = re.search(r"\| (\d+)/\d+ \[", end.said)
    assert found, f"it does not tell where it goes on: {end.said[:500]}"
    return int(found[1])


def check_stop(data: Path, folder: Path, steps: int, dtype: str, backend: str, name: str) -> tuple[int, dict[str, str]]:
    """(step that it went on from, hashes of all there is at the end)."""
    number, step, log = signal.Signals[name], round(steps * SHARES), folder.with_suffix(".log")
    end = run_forked(partial(run_stopped, started(data, folder, steps, dtype, backend), number, step + STOPS[name]), log)
    assert end.killed if number == signal.SIGKILL else end.code == 0, f"it ended with {end.code}: {end.said[-1000:]}"
    end = run_forked(partial(cli.run, ["train", "--resume", str(folder)]), log)
    assert end.code == 0, f"going on ended with {end.code}: {end.said[-1000:]}"
    assert went_on_from(end) == step, f"it went on from {went_on_from(end)}, expected {step}"
    assert not leftovers(folder), f"left: {leftovers(folder)}"
    return step, outcome(folder)


def report(seed: int, steps: int, dtypes: list[str], stops: list[str], backend: str, folder: Path, json_path: Path | None) -> int:
    """The command; the seed is that of the training."""
    start, findings = time.perf_counter(), Findings()
    warm()
    data = write_slice(folder / "flights.csv", 30)
    for dtype in dtypes:
        straight = folder / f"{dtype}-straight"
        end = run_forked(partial(cli.run, started(data, straight, steps, dtype, backend)), folder / "log.txt")
        if end.code:
            raise RuntimeError(f"training in {dtype} fails: {end.said}")
        expected = outcome(straight)
        findings.rows.append({"dtype": dtype, "stopped by": "", "steps": str(steps), **expected, "end": ""})
        for name in stops:
            with findings.expecting(f"{dtype}, {name}"):
                step, found = check_stop(data, folder / f"{dtype}-{name}", steps, dtype, backend, name)
                different = [what for what in expected if found[what] != expected[what]]
                row = {"dtype": dtype, "stopped by": name, "steps": f"{step} + {steps - step}", **found, "end": "DIFFERENT" if different else "equal"}
                findings.rows.append(row)
                print(f"{dtype}, {name}: {row['end']}", file=sys.stderr)
                assert not different, f"{', '.join(different)} differ"
    return findings.finish(f"{len(dtypes) * len(stops)} stopped runs in {time.perf_counter() - start:.0f} s", json_path)
