"""SIGKILL at random moments, again and again, until the command is done: nothing is damaged, nothing acknowledged is lost, the end is the same.

A step is acknowledged once its save is visible under its name. The command is started again with --resume after each kill, as whoever runs it would.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from ttr_fast import cli
from ttr_fast.data.corpus import verify_corpus
from ttr_fast.errors import UserError
from ttr_fast.training.checkpoint import CheckpointConfig, load_checkpoint, load_state
from ttr_fast.training.saves import DAMAGED, Best, Saves
from ttr_fast.training.step import TrainState

from .forks import killed_after, run_forked, warm
from .states import digest, leftovers, outcome
from .tables import Findings
from .writing import COLUMNS, write_parts, write_slice

LONGER, STUCK = 1.1, 30
"""After a kill without progress the next process may live so much longer, the machine being busy; after so many in a row, a run does not get on."""


class Seen(NamedTuple):
    """What lay there after a kill."""

    acknowledged: int
    """How far it has come for good."""
    whole: int
    """How many things, saves of training or files of a corpus, were read and found whole."""


@dataclass(frozen=True)
class Job:
    """A command that is killed."""

    name: str
    first: Callable[[Path], list[str]]
    """Its arguments, given where it writes."""
    again: Callable[[Path], list[str]]
    """Those after a kill."""
    life: float
    """A process lives at most this share of the time that an uninterrupted one takes: a smaller one kills each run more often."""
    look: Callable[[Path], Seen]
    """Asserts that all is whole after a kill."""
    outcome: Callable[[Path], dict[str, str]]
    """What must be equal at the end, as hashes."""
    telling: Callable[[Path], AbstractContextManager[object]] = nullcontext
    """Around the command: lets it write into the file from where it goes on."""
    whole_group: bool = True
    """Whether its helpers are killed too."""
    refusal: str | None = None
    """What it says if it is started again although it was done."""


def run_command(job: Job, arguments: list[str], note: Path) -> None:
    """In a process of its own, which ends as `ttr` would."""
    with job.telling(note):
        try:
            cli.run(arguments)
        except UserError as error:
            cli.fail(str(error))


def kill_until(job: Job, count: int, folder: Path, seed: int, findings: Findings) -> None:
    """Runs of the job, killed `count` times altogether; the last one is let go on to its end."""
    rng, log = np.random.default_rng(seed), folder / "log.txt"
    start = time.perf_counter()
    straight = folder / "straight"
    end = run_forked(partial(run_command, job, job.first(straight), folder / "note"), log)
    if end.code:
        raise RuntimeError(f"{job.name} fails without being killed: {end.said}")
    whole_time, expected, last = time.perf_counter() - start, job.outcome(straight), job.look(straight).acknowledged
    kills, run = 0, 0
    while kills < count and not findings.wrong:
        run += 1
        begun = time.perf_counter()
        with findings.expecting(f"{job.name}, run {run}, seed {seed}"):
            row = killed_run(job, folder / f"run-{run}", count - kills, whole_time * job.life, last, rng, log)
            found = job.outcome(folder / f"run-{run}")
            different = [name for name in expected if found[name] != expected[name]]
            findings.rows.append(row | {"end": "DIFFERENT" if different else "equal", "seconds": time.perf_counter() - begun})
            kills += row["kills"]
            print(f"{job.name}: {kills} of {count} kills", file=sys.stderr)
            assert not different, f"{', '.join(different)} differ from the uninterrupted run's"
            assert not leftovers(folder / f"run-{run}"), f"left: {leftovers(folder / f'run-{run}')}"


def killed_run(job: Job, folder: Path, most: int, life: float, last: int, rng: np.random.Generator, log: Path) -> dict[str, Any]:
    """One run, killed at most so many times; gives its row."""
    row = {"command": job.name, "run": folder.name, "kills": 0, "at the start": 0, "between": 0, "after the last": 0, "read whole": 0}
    acknowledged = stuck = 0
    arguments, note = job.first(folder), folder.with_suffix(".note")
    while True:
        note.unlink(missing_ok=True)
        work = partial(run_command, job, arguments, note)
        end = killed_after(rng.uniform(0, life), work, log, job.whole_group) if row["kills"] < most else run_forked(work, log)
        refused = job.refusal is not None and end.code == 2 and job.refusal in end.said
        assert end.killed or end.code == 0 or refused, f"exit code {end.code} after {row['kills']} kills: {end.said[-2000:]}"
        started_at = int(note.read_text() or acknowledged) if note.exists() else acknowledged
        now, whole = job.look(folder)
        assert min(started_at, now) >= acknowledged, f"{acknowledged} was acknowledged, but it went on from {started_at} to {now}"
        row["read whole"] += whole
        if not end.killed:
            return row
        row["kills"] += 1
        row["at the start" if now == 0 else "after the last" if now == last else "between"] += 1
        life, stuck = (life, 0) if now > acknowledged else (life * LONGER, stuck + 1)
        assert stuck < STUCK, f"it does not get on from {now}"
        acknowledged, arguments = now, job.again(folder)


TINY = ["--model.layers", "1", "--model.embed-dim", "8", "--model.hidden-dim", "8", "--model.heads", "2", "--model.window", "8",
        "--model.components", "2", "--train.rows", "1", "--train.length", "16", "--train.warmup", "3"]  # fmt: skip


SAVE_EVERY = 2
"""Steps between two saves: after a kill there often is a step that the metrics tell of and that has to be forgotten."""
PATIENCE = ["--train.patience", "50", "--train.evaluate-every", "3"]
"""The model at the end is the best; evaluations, whose saves may be noted as the best, come at steps of their own."""


def training(data: Path, steps: int) -> Job:
    """`ttr train`."""

    def first(folder: Path) -> list[str]:
        return ["train", "--data", str(data), "--out", str(folder), *COLUMNS, *TINY, *PATIENCE, "--backend", "reference",
                "--save-every", str(SAVE_EVERY), "--train.steps", str(steps)]  # fmt: skip

    def again(folder: Path) -> list[str]:
        return ["train", "--resume", str(folder)] if (folder / "run.json").exists() else first(folder)

    return Job("train", first, again, 0.3, look_at_run, outcome, telling_start)


@contextmanager
def telling_start(note: Path) -> Iterator[None]:
    """Within `with`, the step that a run goes on from is written into the file."""
    real = Saves.newest

    def newest(saves: Saves) -> tuple[TrainState, CheckpointConfig]:
        state, config = real(saves)
        note.write_text(str(state.step))
        return state, config

    Saves.newest = newest  # type: ignore[method-assign]
    try:
        yield
    finally:
        Saves.newest = real  # type: ignore[method-assign]


def look_at_run(folder: Path) -> Seen:
    """Every save is whole, the last two and the best are there, other files are whole or not there."""
    if not folder.exists():
        return Seen(0, 0)
    assert not list(folder.rglob(f"{DAMAGED}*")), "a damaged save was seen"
    saves = Saves(folder / "saves")
    steps = saves.steps()
    try:
        for step in steps:
            assert load_state(saves.path(step))[0].step == step, f"{saves.path(step)} is of another step"
        if (folder / "checkpoint").exists():
            load_checkpoint(folder / "checkpoint")
    except UserError as error:
        raise AssertionError(f"after a kill: {error}") from error
    best = saves.best()
    assert best is None or best.step in steps, f"the best, {best}, is not among {steps}"
    assert not (saves.folder / "best.json").exists() or best is not None, "best.json is damaged"
    for name in ("run.json", "results.json"):
        if (folder / name).exists():
            try:
                msgspec.json.decode((folder / name).read_bytes())
            except msgspec.DecodeError as error:
                raise AssertionError(f"{name} is damaged: {error}") from error
    newest = max(steps, default=0)
    assert len(steps) >= min(saves.keep, newest // SAVE_EVERY), f"{steps} are fewer than are to be kept"
    if steps:
        lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        said = [json.loads(line)["step"] for line in lines if line.endswith(b"\n") and b'"kind":"step"' in line]
        assert said[:newest] == list(range(1, newest + 1)), f"metrics tell of the steps {said}, saved are {newest}"
        known = best_at(lines, newest), best_at(lines, newest - 1)  # it is noted after the save that it is about
        assert best in known, f"the best is {best}, expected one of {known}"
    return Seen(newest, len(steps))


def best_at(lines: list[bytes], step: int) -> Best | None:
    """The first of the lowest held-out nats that the metrics tell of up to a step."""
    found: dict[int, float] = {}
    for record in (json.loads(line) for line in lines if line.endswith(b"\n") and b'"kind":"held_out"' in line):
        if record["step"] <= step:
            found.setdefault(record["step"], record["token_nats"])  # of the first order
    return min((Best(at, nats) for at, nats in found.items()), key=lambda best: best.nats, default=None)


def preprocessing(files: list[Path], workers: int, whole_group: bool) -> Job:
    """`ttr preprocess` of several files."""

    def arguments(folder: Path) -> list[str]:
        out = folder / "corpus"
        return ["preprocess", *map(str, files), *COLUMNS, "--shard-tokens", "5000", "--workers", str(workers), "--out", str(out)]

    name = f"preprocess, {workers} worker" + ("" if workers == 1 else "s") + ("" if whole_group else ", the first process alone")
    return Job(name, arguments, arguments, 1.0, look_at_corpus, corpus_outcome, whole_group=whole_group, refusal="there is something already")


PREPROCESSED = 400, 1
"""Aircraft, and copies of each, whose flights are preprocessed: so many that reading and writing take longer than starting."""
DONE = 1_000_000
"""As far as a corpus can come."""


def look_at_corpus(folder: Path) -> Seen:
    """It is whole or not there; what was read or written for it stays."""
    if not (folder / "corpus").exists():
        return Seen(len([path for path in folder.glob(".tmp-corpus/*") if path.name.startswith(("part-", "shards-"))]), 0)
    try:
        whole = len(list(verify_corpus(folder / "corpus")))
    except UserError as error:
        raise AssertionError(f"after a kill: {error}") from error
    return Seen(DONE, whole)


def corpus_outcome(folder: Path) -> dict[str, str]:
    """Every file."""
    return {path.name: digest(path.read_bytes()) for path in sorted((folder / "corpus").iterdir())}


def report(count: int, seed: int, steps: int, aircraft: int, workers_count: int, folder: Path, json_path: Path | None) -> int:
    """The command."""
    start, findings = time.perf_counter(), Findings()
    warm()
    files = write_parts(folder, *PREPROCESSED, parts=24)
    jobs = [
        (training(write_slice(folder / "flights.csv", aircraft), steps), count),
        (preprocessing(files, 1, whole_group=True), (count + 1) // 2),
        (preprocessing(files, 2, whole_group=True), workers_count),
        (preprocessing(files, 2, whole_group=False), workers_count),
    ]
    for number, (job, kills) in enumerate(jobs):
        here = folder / f"job-{number}"
        here.mkdir()
        kill_until(job, kills, here, seed, findings)
    total = sum(row["kills"] for row in findings.rows)
    return findings.finish(f"{total} kills of {len(findings.rows)} runs in {time.perf_counter() - start:.0f} s", json_path)
