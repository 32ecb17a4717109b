"""`ttr train`: timed events or texts in, a model out; a run that was stopped goes on."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import msgspec
import tyro

from ttr_fast.commands.configuration import configuration_path, from_toml, to_toml
from ttr_fast.commands.dataset import HELD_OUT, Dataset, read_dataset
from ttr_fast.commands.options import Columns, ModelOptions, check_unused, free_folder, loaded_backend
from ttr_fast.commands.report import CurvePlots, Row, model_rows, save_plots, save_results, table
from ttr_fast.commands.run_folder import CONFIGURATION, Run, alone, check_data, last_state, start_run, stored_run
from ttr_fast.errors import UserError
from ttr_fast.model import BackendName, check_usable
from ttr_fast.training.baselines import count_baselines, log_normal_baseline
from ttr_fast.training.checkpoint import CheckpointConfig, load_state, save_checkpoint
from ttr_fast.training.evaluation import evaluate
from ttr_fast.training.loop import is_stale, train
from ttr_fast.training.metrics import MetricsFile
from ttr_fast.training.saves import Saves
from ttr_fast.training.step import TrainState
from ttr_fast.training.tensorboard import TensorBoardMetrics
from ttr_ref.config import TimeConfig, TrainConfig

NOT_IN_FILES = "config", "resume"
NOT_STORED = *NOT_IN_FILES, "out", "json"


@dataclass(frozen=True)
class Command:
    """Train a temporal transformer on a file of timed events, or on a corpus that `ttr preprocess` made of events or texts.

    Of a file, each entity's events become a sequence in order of time, and some entities, chosen by a hash of their names, are held out and
    measured. Of a corpus, train is trained on, valid is measured, and test is left for `ttr eval`.
    Options come from the command line, else from CONFIG, else they are the defaults below; what they came to is printed and stored in the run's
    folder as config.toml, itself a CONFIG. Beside it: checkpoint/, metrics.jsonl and plots, and saves/ while it trains.
    Ctrl-C, SIGTERM and SIGUSR1 end the step, save and stop; --resume goes on from there, bit for bit as if nothing had happened.

    Examples:

        ttr train --data flights.csv --columns.entity tail --columns.token destination

        ttr train --data visits.jsonl --columns.time-unit ms --sort --train.steps 1000 --out runs/visits

        ttr train text --data corpus --train.targets-after Assistant: --train.patience 3

        ttr train runs/visits/config.toml --train.learning-rate 3e-4

        ttr train --resume runs/visits
    """

    config: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="CONFIG")] = None
    """A TOML file with options, or one of the presets flights, text, original; it stands before all options."""
    data: Path | None = None
    """The file of events, or the folder of the corpus."""
    resume: Path | None = None
    """Folder of a run that was stopped; its options are taken from there."""
    columns: Columns = field(default_factory=Columns)
    sort: bool = False
    """Sort each entity's events by time; without it, times that go backwards are an error."""
    held_out: float = HELD_OUT
    """Share of a file's entities that is not trained on."""
    out: Path | None = None
    """Folder of the run, new or empty; runs/train, runs/train-2, … if not given."""
    backend: BackendName = "cpu"
    """What computes: cpu, the fast core, cuda, an NVIDIA GPU, or reference, the NumPy oracle."""
    json: bool = False
    """Print the results as JSON."""
    tensorboard: bool = False
    """Write the metrics as event files for TensorBoard too, to tensorboard/ in the run's folder."""
    save_every: int = 100
    """Steps between two saves."""
    keep: int = 2
    """How many of the last saves are kept, beside the best."""
    model: ModelOptions = field(default_factory=ModelOptions)
    train: TrainConfig = field(default_factory=TrainConfig)

    @classmethod
    def starting_point(cls, options: list[str]) -> tuple["Command", list[str]]:
        """(what the configuration at their head says, the options after it)."""
        if not options or options[0].startswith("-"):
            return cls(), options
        return from_toml(cls, configuration_path(options[0]), NOT_IN_FILES), options[1:]

    def run(self) -> None:
        """Read, train, measure, save."""
        if self.config is not None:
            raise UserError(f"{self.config}: a configuration stands before all options, as in  ttr train CONFIG --train.steps 100")
        if self.resume is not None:
            if replace(self, resume=None, json=False) != Command():
                raise UserError("--resume takes its options from the run; leave out all others but --json")
            run = stored_run(self.resume)
            command = from_toml(Command, self.resume / CONFIGURATION, NOT_IN_FILES)
            replace(command, json=self.json).train_in(self.resume, run)
            return
        if self.data is None:
            raise UserError("nothing to train on: name a file or a corpus with --data, or a run that was stopped with --resume")
        if self.save_every < 1 or self.keep < 1:
            raise UserError(f"--save-every and --keep must be at least 1, got {self.save_every} and {self.keep}")
        check_usable(self.backend)
        folder = check_unused(self.out) if self.out else free_folder("train")
        self.model.config(vocab_size=1, time=TimeConfig())  # sizes that do not fit together are told before anything is read
        self.train_in(folder)

    def train_in(self, folder: Path, before: Run | None = None) -> None:
        """The run in its folder, from the start or, where it was run before, from its last save."""
        path = self.data or Path()
        data = read_dataset(path, self.columns, self.sort, self.held_out)
        metrics = MetricsFile(folder / "metrics.jsonl")
        if before is not None:
            check_data(folder, before, path, data)
            if (folder / "results.json").exists():
                print(f"{folder} is finished: {self.how_it_ended(metrics)}, and its model is in {folder / 'checkpoint'}")
                return
        if self.tensorboard:
            metrics = TensorBoardMetrics(metrics.path, folder / "tensorboard")
        columns = self.columns if path.is_dir() else replace(self.columns, time_unit=data.source.time_unit)
        suited = replace(self, data=path.resolve(), columns=columns, model=suited_to(data, self.model))
        Training(suited, data, folder, metrics).run(going_on=before is not None)

    @property
    def label(self) -> str:
        """Of the run in metrics.jsonl and plots."""
        return "with time" if self.model.with_time else "without time"

    def how_it_ended(self, metrics: MetricsFile) -> str:
        """All steps, or fewer."""
        if is_stale(metrics, self.label, self.train):
            return f"held-out nats were no better for {self.train.patience} evaluations"
        return f"all {self.train.steps} steps are done"


def suited_to(data: Dataset, model: ModelOptions) -> ModelOptions:
    """Without the parts of the model that need times which the data do not have; that is said on stderr."""
    if data.source.time_unit is None and model.with_time:
        print("the texts carry no times: the model sees their order alone (--model.no-with-time)", file=sys.stderr)
        model = replace(model, with_time=False)
    if data.of_texts and model.with_time and model.next_time:
        print("the tokens of a text share its time: the time of the next one is not predicted (--model.no-next-time)", file=sys.stderr)
        model = replace(model, next_time=False)
    return model


class Training:
    """From a command and its data to a finished folder."""

    def __init__(self, command: Command, data: Dataset, folder: Path, metrics: MetricsFile) -> None:
        """Raises UserError if there is nothing to learn from."""
        self.command, self.data, self.folder, self.metrics = command, data, folder, metrics
        self.after, self.time = data.marker(command.train.targets_after), data.time()
        self.config = command.model.config(data.size, self.time)
        self.saved = CheckpointConfig(self.config, command.train, data.source, data.vocabulary, 0)
        self.saves = Saves(folder / "saves", command.keep, data.tokenizer)
        self.baselines = count_baselines(data.training, data.held_out, data.size, self.after)
        self.plots = CurvePlots(folder, metrics, self.baselines)

    def run(self, going_on: bool) -> None:
        """Train to the end, or until a signal comes; then measure and save."""
        command, data = self.command, self.data
        configuration = to_toml(command, NOT_STORED)
        print(f"{configuration}\n{data.describe()}", file=sys.stderr)
        if not going_on:
            start_run(self.folder, configuration, data)
        with alone(self.folder):
            state = last_state(self.saves, self.saved, self.metrics, command.label) if going_on else None
            self.backend = loaded_backend(command.backend)
            state = train(
                self.backend, data.training, data.held_out, self.config, command.train, self.metrics, command.label,
                state, self.keep, command.save_every, self.after,
            )  # fmt: skip
            if state.step < command.train.steps and not is_stale(self.metrics, command.label, command.train):
                print(f"stopped after step {state.step} of {command.train.steps}; to go on:  ttr train --resume {self.folder}")
                return
            self.finish(self.result(state))

    def keep(self, state: TrainState, nats: float | None) -> None:
        """Save; where held-out nats were just measured, draw."""
        self.saves.save(state, self.saved, nats)
        if nats is not None:
            self.plots.refresh()

    def result(self, last: TrainState) -> TrainState:
        """The best state on held-out data where patience asks for it, else the last."""
        best = self.saves.best()
        if self.command.train.patience is None or best is None:
            return last
        try:
            return load_state(self.saves.path(best.step))[0]
        except UserError as error:
            print(f"{error}; taking the last state instead of the best", file=sys.stderr)
            return last

    def finish(self, state: TrainState) -> None:
        """The checkpoint, what it is worth, the plots."""
        data, folder, checkpoint = self.data, self.folder, self.folder / "checkpoint"
        if self.command.train.patience is not None:
            best = self.saves.best()
            kind = "best" if best is not None and best.step == state.step else "last"
            said = f"{self.command.how_it_ended(self.metrics)}; the checkpoint is the {kind} model, that of step {state.step}"
            print(said, file=sys.stderr)
        if not checkpoint.exists():  # it is whole then
            save_checkpoint(checkpoint, state.params, msgspec.structs.replace(self.saved, step=state.step), tokenizer=data.tokenizer)
        save_plots(folder, self.metrics, self.baselines, state.params, self.config)
        rows = [Row(name, nats) for name, nats in self.baselines.items()]
        if self.config.time_head is not None:
            rows.append(Row("log-normal of all gaps", None, *log_normal_baseline(data.training, data.held_out, self.time.resolution, self.after)))
        rows += model_rows("model", evaluate(self.backend, state.params, data.held_out, self.config, with_errors=True, after=self.after))
        results = save_results(folder, rows)
        if self.command.json:
            print(results.decode())
        else:
            print(table(rows, self.time.tick_seconds, "token" if data.of_texts else "event"))
            print(f"\ncheckpoint, metrics, results and plots are in {folder}")
