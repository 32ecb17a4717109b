"""Training from the first step to the last: progress on the terminal, every step in metrics.jsonl, held-out nats along the way."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ttr_fast.data.batches import training_batch
from ttr_fast.data.sequences import EventSequences
from ttr_fast.errors import UserError
from ttr_fast.model import Backend
from ttr_fast.training.evaluation import evaluate
from ttr_fast.training.step import StepReport, TrainState, train_start, train_step
from ttr_ref.config import ModelConfig, TrainConfig

EVALUATIONS = 6
"""Held-out nats are measured this many times, evenly over the steps."""


@dataclass(frozen=True)
class MetricsFile:
    """metrics.jsonl: one JSON object a line, each with the label of its run."""

    path: Path

    def write(self, **record: Any) -> None:
        """Append one line."""
        with self.path.open("ab") as file:
            file.write(msgspec.json.encode(record) + b"\n")

    def read(self) -> list[dict[str, Any]]:
        """All lines so far."""
        return [msgspec.json.decode(line) for line in self.path.read_bytes().splitlines()] if self.path.exists() else []


def train(
    backend: Backend, events: EventSequences, held_out: EventSequences, model: ModelConfig, config: TrainConfig, metrics: MetricsFile, label: str
) -> TrainState:
    """The state after config.steps steps.

    Raises UserError if the loss stops being finite.
    """
    from tqdm import tqdm

    state = train_start(model, config)
    tokens = config.rows * config.length
    measured_at = {round(config.steps * (i + 1) / EVALUATIONS) for i in range(EVALUATIONS)}
    refresh = 0.1 if sys.stderr.isatty() else 20.0  # seconds; a log file need not hold every step
    # an overflow is what loss scaling waits for, and any other number that is no number is reported below
    bar = tqdm(total=config.steps, desc=label, unit="step", file=sys.stderr, dynamic_ncols=True, mininterval=refresh)
    with np.errstate(all="ignore"), bar:
        for step in range(config.steps):
            start = time.perf_counter()
            state, report = train_step(backend, state, training_batch(events, config, step), model, config)
            seconds = time.perf_counter() - start
            check_finite(report, model, label, step)
            metrics.write(run=label, kind="step", step=step + 1, tokens_per_second=tokens / seconds, **report._asdict())
            bar.set_postfix_str(f"loss {report.loss:.3f}, {tokens / seconds / 1000:.1f}k tokens/s", refresh=False)
            bar.update()
            if step + 1 in measured_at:
                for result in evaluate(backend, state.params, held_out, model):
                    metrics.write(run=label, kind="held_out", step=step + 1, **result._asdict())
    return state


def check_finite(report: StepReport, model: ModelConfig, label: str, step: int) -> None:
    """A step that overflowed is skipped under loss scaling; without it, or with a loss that is no number, training is lost."""
    scaled = model.block.float_dtype == "f16"
    if not np.isfinite(report.loss) or (report.skipped and not scaled):
        raise UserError(f"{label}: the loss is {report.loss} at step {step + 1}: training diverged; try a smaller --train.learning-rate")
