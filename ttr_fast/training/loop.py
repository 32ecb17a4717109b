"""Training from the first step to the last: progress on the terminal, every step in metrics.jsonl, held-out nats along the way."""

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ttr_fast.data.batches import training_batch
from ttr_fast.data.sequences import Sequences
from ttr_fast.durable import append, flush, replace_file, told
from ttr_fast.errors import UserError
from ttr_fast.model import Backend
from ttr_fast.training.evaluation import evaluate
from ttr_fast.training.interrupt import StopRequests
from ttr_fast.training.step import StepReport, TrainState, train_start, train_step
from ttr_ref.config import ModelConfig, TrainConfig

EVALUATIONS = 6
"""Held-out nats are measured this many times, evenly over the steps."""


class Written(msgspec.Struct):
    """What every line of metrics.jsonl says among other things."""

    step: int


@dataclass(frozen=True)
class MetricsFile:
    """metrics.jsonl: one JSON object a line, each with the label of its run."""

    path: Path

    def write(self, **record: Any) -> None:
        """Append one line. Raises UserError if the disk refuses."""
        with told(self.path):
            append(self.path, msgspec.json.encode(record) + b"\n")

    def flush(self) -> None:
        """All lines so far are on the disk when this returns, as they must be before the save that they lead to.

        Raises UserError if the disk refuses.
        """
        with told(self.path):
            flush(self.path)

    def read(self) -> list[dict[str, Any]]:
        """All lines so far."""
        return [msgspec.json.decode(line) for line in self.lines()]

    def lines(self) -> list[bytes]:
        """As they stand there; none if there is no file. Raises UserError if it cannot be read."""
        with told(self.path, "read"):
            return self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []

    def rewind(self, step: int) -> None:
        """Forget what was written after a step, and a last line that was not finished: training goes on from there."""
        kept = []
        for line in self.lines():
            try:
                written = msgspec.json.decode(line, type=Written).step
            except msgspec.DecodeError:
                break
            if written <= step:
                kept.append(line)
        replace_file(self.path, b"".join(kept))


Keeper = Callable[[TrainState, float | None], object]
"""Saves a state; the second argument is the held-out nats where they were just measured."""


def train(
    backend: Backend, events: Sequences, held_out: Sequences, model: ModelConfig, config: TrainConfig, metrics: MetricsFile, label: str,
    state: TrainState | None = None, keep: Keeper | None = None, save_every: int | None = None
) -> TrainState:  # fmt: skip
    """The state after config.steps steps, going on from `state` if it is given.

    keep: called every `save_every` steps, after each evaluation and at the end; with it, a signal ends training after the step that is under way.

    Raises UserError if the loss stops being finite.
    """
    from tqdm import tqdm

    state = train_start(model, config) if state is None else state
    tokens = config.rows * config.length
    measured_at = {round(config.steps * (i + 1) / EVALUATIONS) for i in range(EVALUATIONS)}
    refresh = 0.1 if sys.stderr.isatty() else 20.0  # seconds; a log file need not hold every step
    # an overflow is what loss scaling waits for, and any other number that is no number is reported below
    bar = tqdm(total=config.steps, initial=state.step, desc=label, unit="step", file=sys.stderr, dynamic_ncols=True, mininterval=refresh)
    stop = StopRequests()
    with np.errstate(all="ignore"), bar, stop if keep else nullcontext():
        for step in range(state.step, config.steps):
            start = time.perf_counter()
            state, report = train_step(backend, state, training_batch(events, config, step), model, config)
            seconds = time.perf_counter() - start
            check_finite(report, model, label, step)
            metrics.write(run=label, kind="step", step=step + 1, tokens_per_second=tokens / seconds, **report._asdict())
            bar.set_postfix_str(f"loss {report.loss:.3f}, {tokens / seconds / 1000:.1f}k tokens/s", refresh=False)
            bar.update()
            nats = None
            if step + 1 in measured_at:
                results = evaluate(backend, state.params, held_out, model)
                for result in results:
                    metrics.write(run=label, kind="held_out", step=step + 1, **result._asdict())
                nats = results[0].token_nats
            due = nats is not None or step + 1 == config.steps or (save_every is not None and (step + 1) % save_every == 0)
            if keep and (due or stop.wanted):
                metrics.flush()
                keep(state, nats)
            if stop.wanted:
                break
    return state


def check_finite(report: StepReport, model: ModelConfig, label: str, step: int) -> None:
    """A step that overflowed is skipped under loss scaling; without it, or with a loss that is no number, training is lost."""
    scaled = model.block.float_dtype == "f16"
    if not np.isfinite(report.loss) or (report.skipped and not scaled):
        raise UserError(f"{label}: the loss is {report.loss} at step {step + 1}: training diverged; try a smaller --train.learning-rate")
