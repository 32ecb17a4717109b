"""`ttr train`: a CSV of timed events in, a model out; a run that was stopped goes on."""

import hashlib
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from ttr_fast.commands.options import Columns, ModelOptions, check_unused, describe, free_folder, loaded_backend
from ttr_fast.commands.report import Row, model_rows, save_plots, save_results, table
from ttr_fast.data.event_csv import read_events
from ttr_fast.data.measures import measured_time
from ttr_fast.data.split import split_by_entity
from ttr_fast.errors import UserError
from ttr_fast.model import BackendName, check_usable
from ttr_fast.training.baselines import bigram_nats, log_normal_baseline, majority_nats
from ttr_fast.training.checkpoint import CheckpointConfig, Source, replace_file, save_checkpoint
from ttr_fast.training.evaluation import evaluate
from ttr_fast.training.loop import MetricsFile, train
from ttr_fast.training.saves import Saves
from ttr_fast.training.step import TrainState
from ttr_ref.config import TimeConfig, TrainConfig


@dataclass(frozen=True)
class Command:
    """Train a temporal transformer on a CSV of timed events (.csv or .csv.gz).

    Each entity's events become a sequence in order of time. Some entities, chosen by a hash of their names, are held out and measured.
    The run's folder gets checkpoint/, metrics.jsonl and plots, and saves/ while it trains. Ctrl-C, SIGTERM and SIGUSR1 end the step, save and stop;
    --resume goes on from there, bit for bit as if nothing had happened.

    Examples:

        ttr train --data flights.csv --columns.entity tail --columns.token destination

        ttr train --data visits.csv --columns.time-unit iso8601 --sort --train.steps 1000 --out runs/visits

        ttr train --data flights.csv --columns.entity tail --columns.token destination --model.no-with-time

        ttr train --resume runs/visits
    """

    data: Path | None = None
    """The CSV file."""
    resume: Path | None = None
    """Folder of a run that was stopped; its options are taken from there."""
    columns: Columns = field(default_factory=Columns)
    sort: bool = False
    """Sort each entity's events by time; without it, times that go backwards are an error."""
    held_out: float = 0.2
    """Share of the entities that is not trained on."""
    out: Path | None = None
    """Folder of the run, new or empty; runs/train, runs/train-2, … if not given."""
    backend: BackendName = "cpu"
    """What computes: cpu, the fast core, cuda, an NVIDIA GPU, or reference, the NumPy oracle."""
    json: bool = False
    """Print the results as JSON."""
    save_every: int = 100
    """Steps between two saves."""
    keep: int = 2
    """How many of the last saves are kept, beside the best."""
    model: ModelOptions = field(default_factory=ModelOptions)
    train: TrainConfig = field(default_factory=TrainConfig)

    def run(self) -> None:
        """Read, train, measure, save."""
        if self.resume is not None:
            if replace(self, resume=None, json=False) != Command():
                raise UserError("--resume takes its options from the run; leave out all others but --json")
            run = stored(self.resume)
            replace(run.command, json=self.json).train_in(self.resume, run)
            return
        if self.data is None:
            raise UserError("nothing to train on: name a CSV with --data, or a run that was stopped with --resume")
        if self.save_every < 1 or self.keep < 1:
            raise UserError(f"--save-every and --keep must be at least 1, got {self.save_every} and {self.keep}")
        check_usable(self.backend)
        folder = check_unused(self.out) if self.out else free_folder("train")
        self.model.config(vocab_size=1, time=TimeConfig())  # sizes that do not fit together are told before anything is read
        self.train_in(folder)

    def train_in(self, folder: Path, before: "Run | None" = None) -> None:
        """The run in its folder, from the start or, where it was run before, from its last save."""
        c, data = self.columns, Path(self.data or "")
        events = read_events(data, entity=c.entity, time=c.time, token=c.token, time_unit=c.time_unit, sort=self.sort)
        training, held_out = split_by_entity(events, self.held_out)
        time = measured_time(training, c.time_unit)
        config = self.model.config(len(events.vocabulary), time)
        saved = CheckpointConfig(config, self.train, Source(c.entity, c.time, c.token, c.time_unit), events.vocabulary, 0)
        saves, metrics, state = Saves(folder / "saves", self.keep), MetricsFile(folder / "metrics.jsonl"), None
        digest = hashlib.sha256(data.read_bytes()).hexdigest()
        if before is not None:
            if before.data_sha256 != digest:
                raise UserError(f"{data}: not the file that {folder} was started on (its SHA-256 differs)")
            if (folder / "results.json").exists():
                print(f"{folder} is finished: all {self.train.steps} steps are done, and its model is in {folder / 'checkpoint'}")
                return
            state = last_state(saves, saved, metrics)
        print(f"training on {describe(training)}; held out: {describe(held_out)}", file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / RUN, msgspec.json.format(msgspec.json.encode(Run(replace(self, data=data.resolve()), digest), enc_hook=str), indent=2))
        backend, label = loaded_backend(self.backend), "with time" if self.model.with_time else "without time"
        state = train(backend, training, held_out, config, self.train, metrics, label, state,
                      lambda state, nats: saves.save(state, saved, nats), self.save_every)  # fmt: skip
        if state.step < self.train.steps:
            print(f"stopped after step {state.step} of {self.train.steps}; to go on:  ttr train --resume {folder}")
            return
        if not (folder / "checkpoint").exists():  # it is whole then
            save_checkpoint(folder / "checkpoint", state.params, msgspec.structs.replace(saved, step=state.step))
        baselines = {"majority": majority_nats(training, held_out), "bigram counts": bigram_nats(training, held_out)}
        save_plots(folder, metrics, baselines, state.params, config)
        rows = [Row(name, nats) for name, nats in baselines.items()]
        if config.time_head is not None:
            rows.append(Row("log-normal of all gaps", None, *log_normal_baseline(training, held_out, time.resolution)))
        rows += model_rows("model", evaluate(backend, state.params, held_out, config, with_errors=True))
        results = save_results(folder, rows)
        print(results.decode() if self.json else f"{table(rows, time.tick_seconds)}\n\ncheckpoint, metrics, results and plots are in {folder}")


RUN = "run.json"


class Run(msgspec.Struct, frozen=True):
    """run.json: how a run was started, and on what."""

    command: Command
    data_sha256: str


def stored(folder: Path) -> Run:
    """How a run was started. Raises UserError if the folder is not one of `ttr train`."""

    def path_of(kind: type, value: Any) -> Any:
        return kind(value)

    if not (folder / RUN).is_file():
        what = "there is no such folder" if not folder.exists() else "it is empty" if not any(folder.iterdir()) else f"there is no {RUN} in it"
        raise UserError(f"{folder}: {what}, expected the folder of a run of ttr train")
    try:
        return msgspec.json.decode((folder / RUN).read_bytes(), type=Run, dec_hook=path_of)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / RUN}: not the options of a run: {error}") from error


def last_state(saves: Saves, expected: CheckpointConfig, metrics: MetricsFile) -> TrainState:
    """Where a run goes on. Raises UserError if no save is whole, or if it is of another model."""
    saves.sweep()
    state, config = saves.newest()
    if (config.model, config.train, config.vocabulary) != (expected.model, expected.train, expected.vocabulary):
        raise UserError(f"{saves.path(state.step)}: not a save of this run: its model, training or vocabulary differs")
    metrics.rewind(state.step)
    return state
