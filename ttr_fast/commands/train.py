"""`ttr train`: a CSV of timed events in, a model out."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from ttr_fast.commands.options import Columns, ModelOptions, check_unused, describe, free_folder, loaded_backend
from ttr_fast.commands.report import Row, model_rows, save_plots, save_results, table
from ttr_fast.data.event_csv import read_events
from ttr_fast.data.measures import measured_time
from ttr_fast.data.split import split_by_entity
from ttr_fast.model import BackendName
from ttr_fast.training.baselines import bigram_nats, log_normal_baseline, majority_nats
from ttr_fast.training.checkpoint import CheckpointConfig, Source, save_checkpoint
from ttr_fast.training.evaluation import evaluate
from ttr_fast.training.loop import MetricsFile, train
from ttr_ref.config import TimeConfig, TrainConfig


@dataclass(frozen=True)
class Command:
    """Train a temporal transformer on a CSV of timed events (.csv or .csv.gz).

    Each entity's events become a sequence in order of time. Some entities, chosen by a hash of their names, are held out and measured.
    The run's folder gets checkpoint/, metrics.jsonl and plots.

    Examples:

        ttr train --data flights.csv --columns.entity tail --columns.token destination

        ttr train --data visits.csv --columns.time-unit iso8601 --sort --train.steps 1000 --out runs/visits

        ttr train --data flights.csv --columns.entity tail --columns.token destination --model.no-with-time
    """

    data: Path
    """The CSV file."""
    columns: Columns = field(default_factory=Columns)
    sort: bool = False
    """Sort each entity's events by time; without it, times that go backwards are an error."""
    held_out: float = 0.2
    """Share of the entities that is not trained on."""
    out: Path | None = None
    """Folder of the run, new or empty; runs/train, runs/train-2, … if not given."""
    backend: BackendName = "cpu"
    """What computes: cpu, the fast core, or reference, the NumPy oracle."""
    json: bool = False
    """Print the results as JSON."""
    model: ModelOptions = field(default_factory=ModelOptions)
    train: TrainConfig = field(default_factory=TrainConfig)

    def run(self) -> None:
        """Read, train, measure, save."""
        folder = check_unused(self.out) if self.out else free_folder("train")
        self.model.config(vocab_size=1, time=TimeConfig())  # sizes that do not fit together are told before anything is read
        c = self.columns
        events = read_events(self.data, entity=c.entity, time=c.time, token=c.token, time_unit=c.time_unit, sort=self.sort)
        training, held_out = split_by_entity(events, self.held_out)
        time = measured_time(training, c.time_unit)
        config = self.model.config(len(events.vocabulary), time)
        print(f"training on {describe(training)}; held out: {describe(held_out)}", file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        backend, metrics = loaded_backend(self.backend), MetricsFile(folder / "metrics.jsonl")
        state = train(backend, training, held_out, config, self.train, metrics, "with time" if self.model.with_time else "without time")
        source = Source(c.entity, c.time, c.token, c.time_unit)
        save_checkpoint(folder / "checkpoint", state.params, CheckpointConfig(config, self.train, source, events.vocabulary, state.step))
        baselines = {"majority": majority_nats(training, held_out), "bigram counts": bigram_nats(training, held_out)}
        save_plots(folder, metrics, baselines, state.params, config)
        rows = [Row(name, nats) for name, nats in baselines.items()]
        if config.time_head is not None:
            rows.append(Row("log-normal of all gaps", None, *log_normal_baseline(training, held_out, time.resolution)))
        rows += model_rows("model", evaluate(backend, state.params, held_out, config, with_errors=True))
        results = save_results(folder, rows)
        print(results.decode() if self.json else f"{table(rows, time.tick_seconds)}\n\ncheckpoint, metrics, results and plots are in {folder}")
