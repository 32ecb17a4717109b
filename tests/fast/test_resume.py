"""A run that was stopped, or killed, goes on as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.fast.conftest import COLUMNS, SMALL
from ttr_fast import cli
from ttr_fast.commands.run_folder import alone
from ttr_fast.data.event_files import read_events
from ttr_fast.data.split import split_by_entity
from ttr_fast.errors import UserError
from ttr_fast.model import ReferenceBackend
from ttr_fast.training.interrupt import StopRequests
from ttr_fast.training.loop import train
from ttr_fast.training.metrics import MetricsFile
from ttr_fast.training.saves import Saves
from ttr_ref.config import BlockConfig, ModelConfig, TrainConfig

DROPOUT = ["--model.dropout.attn", "0.1", "--model.dropout.head", "0.1", "--model.dropout.ff", "0.2", "--model.dropout.block", "0.1"]


def options(corpus: Path, folder: Path, steps: int, *more: str) -> list[str]:
    return ["train", "--data", str(corpus), "--out", str(folder), *COLUMNS, *SMALL, *DROPOUT, "--train.steps", str(steps), *more]


def started(arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from ttr_fast.cli import main; main()", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def metrics_of(folder: Path) -> list[dict[str, object]]:
    """Without what a clock says."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in r.items() if key not in ("tokens_per_second", "model_gflops")} for r in records]


def stopped(arguments: list[str], folder: Path, number: signal.Signals, step: int) -> tuple[int, str]:
    """(exit code, what it said) of a process that gets the signal once a step is in its metrics."""
    process = started(arguments)
    while not (folder / "metrics.jsonl").exists() or (folder / "metrics.jsonl").read_bytes().count(b'"kind":"step"') < step:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    return process.returncode, said


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_stopped_and_resumed_is_as_if_never_stopped(corpus: Path, tmp_path: Path, backend: str, dtype: str) -> None:
    """Parameters, moments, loss scale and metrics; every kind of dropout on, in f32 with batches in two parts."""
    more = ["--backend", backend, "--model.dtype", dtype, "--save-every", "7", "--train.accumulate", "2" if dtype == "f32" else "1"]
    cli.run(options(corpus, tmp_path / "straight", 24, *more))
    number = {"f32": signal.SIGINT, "bf16": signal.SIGTERM, "f16": signal.SIGUSR1}[dtype]
    folder = tmp_path / "stopped"
    code, said = stopped(options(corpus, folder, 24, *more), folder, number, 5)
    assert code == 0
    step = Saves(folder / "saves").steps()[-1]
    assert 5 <= step < 24
    assert said == f"stopped after step {step} of 24; to go on:  ttr train --resume {folder}\n"
    cli.run(["train", "--resume", str(folder)])
    assert metrics_of(folder) == metrics_of(tmp_path / "straight")
    for file in ("params.safetensors", "optimizer.safetensors", "config.json"):
        ours, theirs = (Saves(f / "saves").path(24) / file for f in (folder, tmp_path / "straight"))
        assert ours.read_bytes() == theirs.read_bytes(), file


class Signalling(MetricsFile):
    """Sends this process a signal when step 3 is written."""

    def write(self, **record: object) -> None:
        super().write(**record)
        if record["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)


def trained_until_stopped(corpus: Path, metrics: MetricsFile) -> tuple[int, list[tuple[int, float | None]]]:
    """(the step that training ended after, what was kept); nothing is due in the first steps."""
    events = read_events(corpus, entity="who", time="when", token="what", time_unit="s")
    training, held_out = split_by_entity(events, 0.2)
    model, kept = ModelConfig(2, 1, BlockConfig(8, 8, 2)), list[tuple[int, float | None]]()
    config = TrainConfig(steps=50, rows=2, length=8)
    state = train(ReferenceBackend(), training, held_out, model, config, metrics, "run", keep=lambda state, nats: kept.append((state.step, nats)))
    return state.step, kept


def test_a_signal_saves_the_step_it_comes_in(corpus: Path, tmp_path: Path) -> None:
    """No save and no evaluation is due there; the signal's handler is what it was afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    assert trained_until_stopped(corpus, Signalling(tmp_path / "metrics.jsonl")) == (3, [(3, None)])
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("look", range(1, 6))
def test_a_signal_between_two_looks_saves_too(look: int, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever look at it is the first to see it, the last step is kept."""

    class Late(StopRequests):
        looks = 0

        @property
        def wanted(self) -> bool:
            self.looks += 1
            return self.looks >= look

        @wanted.setter
        def wanted(self, value: bool) -> None:
            pass

    monkeypatch.setattr("ttr_fast.training.loop.StopRequests", Late)
    step, kept = trained_until_stopped(corpus, MetricsFile(tmp_path / "metrics.jsonl"))
    assert kept[-1:] == [(step, None)]


def test_lines_after_the_save_are_forgotten(tmp_path: Path) -> None:
    """And what was not finished."""
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        metrics.write(step=step)
    with metrics.path.open("ab") as file:
        file.write(b'{"st')
    metrics.rewind(2)
    assert metrics.read() == [{"step": 1}, {"step": 2}]


def test_killed_after_its_last_step(run_folder: Path, tmp_path: Path) -> None:
    """The model is there, the results are not: they are made."""
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    results = json.loads((folder / "results.json").read_bytes())["held_out"]
    (folder / "results.json").unlink()
    cli.run(["train", "--resume", str(folder)])
    assert json.loads((folder / "results.json").read_bytes())["held_out"] == results


def test_two_processes_do_not_train_in_one_folder(run_folder: Path, tmp_path: Path) -> None:
    """The second is told; what the first has there stays as it is."""
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    (folder / "results.json").unlink()
    (folder / "saves/.tmp-step-00000151-1").mkdir()
    with alone(folder), pytest.raises(UserError) as told:
        cli.run(["train", "--resume", str(folder)])
    assert str(told.value) == f"{folder}: another process is training there"
    assert (folder / "saves/.tmp-step-00000151-1").exists()


def test_killed_before_its_first_save(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the beginning; its lines are written anew. And other versions of what computes are named."""
    straight, folder = tmp_path / "straight", tmp_path / "killed"
    cli.run(options(corpus, straight, 6, "--backend", "reference"))
    folder.mkdir()
    for name in ("config.toml", "run.json", "metrics.jsonl"):
        shutil.copy(straight / name, folder)
    run = json.loads((folder / "run.json").read_bytes())
    run["versions"] |= {"numpy": "1.0", "abacus": "2"}
    (folder / "run.json").write_text(json.dumps(run))
    capsys.readouterr()
    cli.run(["train", "--resume", str(folder)])
    assert metrics_of(folder) == metrics_of(straight)
    assert (folder / "checkpoint/params.safetensors").read_bytes() == (straight / "checkpoint/params.safetensors").read_bytes()
    said = f"what computes is not what it was, so the last bits may differ: abacus 2 → None, numpy 1.0 → {np.__version__}\n"
    assert said in capsys.readouterr().err


def test_what_cannot_be_resumed_is_told(corpus: Path, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    cli.run(["train", "--resume", str(run_folder)])
    assert capsys.readouterr().out == f"{run_folder} is finished: all 150 steps are done, and its model is in {run_folder / 'checkpoint'}\n"
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("milk")
    for name, what in (("nowhere", "there is no such folder"), ("empty", "it is empty"), ("foreign", "there is no run.json in it")):
        with pytest.raises(UserError) as told:
            cli.run(["train", "--resume", str(tmp_path / name)])
        assert str(told.value) == f"{tmp_path / name}: {what}, expected the folder of a run of ttr train"
    with pytest.raises(UserError, match=r"^--resume takes its options from the run; leave out all others but --json$"):
        cli.run(["train", "--resume", str(run_folder), "--train.steps", "200"])
    with pytest.raises(UserError, match=r"^nothing to train on: name a file or a corpus with --data, or a run that was stopped with --resume$"):
        cli.run(["train"])


def test_other_data_are_refused(corpus: Path, tmp_path: Path) -> None:
    data, folder = tmp_path / "events.csv", tmp_path / "run"
    data.write_bytes(corpus.read_bytes())
    stopped(options(data, folder, 300, "--backend", "reference"), folder, signal.SIGTERM, 1)
    data.write_text(data.read_text() + "e99,1700000000,a\ne99,1700000100,b\n")
    with pytest.raises(UserError) as told:
        cli.run(["train", "--resume", str(folder)])
    assert str(told.value) == f"{data}: not the file that {folder} was started on (its SHA-256 differs)"
