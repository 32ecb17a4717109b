"""`ttr train|eval|generate|doctor` with --backend cuda, from a process of its own and from this one: on a device, or in the simulator."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ref.bounds import same_bits
from ttr_fast import cli
from ttr_fast.cuda.jit import SIMULATED
from ttr_fast.training.checkpoint import load_checkpoint, load_state

START = 1_700_000_000
COLUMNS = ["--columns.entity", "who", "--columns.time", "when", "--columns.token", "what"]
TINY = ["--model.layers", "1", "--model.embed-dim", "8", "--model.hidden-dim", "4", "--model.heads", "2", "--model.window", "4", "--model.components",
        "2", "--model.order", "token_then_time", "--model.dtype", "f64", "--train.rows", "1", "--train.length", "6", "--train.steps", "2",
        "--train.evaluate-every", "2", "--train.checkpointing", "block", "--held-out", "0.3", "--save-every", "1", "--backend", "cuda"]  # fmt: skip


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six entities with few events each."""
    rng, lines = np.random.default_rng(1), ["who,when,what"]
    for e in range(6):
        times = START + 5000 * e + rng.integers(60, 600, 5).cumsum()
        lines += [f"e{e},{time},{'ab'[n % 2]}" for n, time in enumerate(times.tolist())]
    path = tmp_path_factory.mktemp("events") / "events.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def run(events: Path) -> tuple[Path, str]:
    """(a finished run of a process of its own, its stderr)."""
    folder = events.parent / "run"
    command = [sys.executable, "-c", "from ttr_fast.cli import main; main()", "train", "--data", str(events), "--out", str(folder), *COLUMNS, *TINY]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, done.stderr


def test_train(run: tuple[Path, str]) -> None:
    """Every step and the held-out nats are told, and that nothing of it was a GPU where that is so; the parameters are on the disk as they were."""
    folder, err = run
    assert ("--backend cuda: simulated on the CPU, since NUMBA_ENABLE_CUDASIM=1 is set" in err) == SIMULATED
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "step"] == [1, 2]
    assert all(np.isfinite(r["loss"]) and 0 < r["grad_norm"] < np.inf for r in records if r["kind"] == "step")
    first, last = (load_state(folder / "saves" / f"step-0000000{n}")[0] for n in (1, 2))
    assert not same_bits(first.params, last.params)
    assert same_bits(load_checkpoint(folder / "checkpoint")[0], last.params)
    assert last.optimizer.steps == 2


def test_eval_and_generate(run: tuple[Path, str], events: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The oracle's events, and its numbers but for the last three of float64's sixteen digits, which the order of sums decides."""
    checkpoint, generated, measured = str(run[0] / "checkpoint"), [], []
    for backend in ("cuda", "reference"):
        cli.run(["generate", checkpoint, "--data", str(events), "--entity", "e0", "--events", "2", "--json", "--backend", backend])
        generated.append(capsys.readouterr().out)
        cli.run(["eval", checkpoint, "--data", str(events), "--json", "--backend", backend])
        measured.append(numbers(json.loads(capsys.readouterr().out)))
    assert generated[0] == generated[1]
    assert generated[0].count("\n") == 2
    assert len(measured[0]) > 5
    assert measured[0] == pytest.approx(measured[1], rel=1e-13)


def numbers(found: Any) -> list[float]:
    """All numbers, in order."""
    if isinstance(found, dict | list):
        return [n for part in (found.values() if isinstance(found, dict) else found) for n in numbers(part)]
    return [found] if isinstance(found, int | float) else []


def test_the_doctor_lists_it(capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["doctor", "--json"])
    assert json.loads(capsys.readouterr().out)["backends"] == {"cpu": True, "cuda": True, "reference": True}
