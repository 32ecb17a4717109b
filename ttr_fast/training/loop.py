"""Training from the first step to the last: progress on the terminal, every step in metrics.jsonl, held-out nats along the way."""

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np

from ttr_fast.data.batches import Marker, TrainingBatches
from ttr_fast.data.sequences import Sequences
from ttr_fast.errors import UserError
from ttr_fast.model import Backend
from ttr_fast.training.evaluation import evaluate
from ttr_fast.training.flops import model_flops
from ttr_fast.training.interrupt import StopRequests
from ttr_fast.training.metrics import MetricsFile
from ttr_fast.training.step import StepReport, TrainState, on_host, train_start, train_step
from ttr_ref.config import ModelConfig, TrainConfig

EVALUATIONS = 6
"""Held-out nats are measured this many times, evenly over the steps, unless told otherwise."""

Keeper = Callable[[TrainState, float | None], object]
"""Saves a state; the second argument is the held-out nats where they were just measured."""


class Speed(NamedTuple):
    """What was done since the last evaluation, and in what time."""

    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0

    def and_then(self, tokens: int, flops: float, seconds: float) -> "Speed":
        """After one more step."""
        return Speed(self.tokens + tokens, self.flops + flops, self.seconds + seconds)

    def per_second(self) -> dict[str, float]:
        """Tokens, and billions of operations."""
        return {"tokens_per_second": self.tokens / self.seconds, "model_gflops": self.flops / self.seconds / 1e9}


def train(
    backend: Backend, events: Sequences, held_out: Sequences, model: ModelConfig, config: TrainConfig, metrics: MetricsFile, label: str,
    state: TrainState | None = None, keep: Keeper | None = None, save_every: int | None = None, after: Marker | None = None,
) -> TrainState:  # fmt: skip
    """The state after config.steps steps, or with config.patience where `is_stale` says so, going on from `state` if it is given.

    keep: called every `save_every` steps, after each evaluation and at the end, when the lines of all steps so far are on the disk; with it, a
    signal ends training after the step that is under way. after: what config.targets_after names.

    Raises UserError if the loss stops being finite.
    """
    from tqdm import tqdm

    state = train_start(model, config) if state is None else state
    batches, tokens = TrainingBatches(events, config, after), config.rows * config.length
    refresh = 0.1 if sys.stderr.isatty() else 20.0  # seconds; a log file need not hold every step
    # an overflow is what loss scaling waits for, and any other number that is no number is reported below
    bar = tqdm(total=config.steps, initial=state.step, desc=label, unit="step", file=sys.stderr, dynamic_ncols=True, mininterval=refresh)
    stop, speed, stale, stopping = StopRequests(), Speed(), is_stale(metrics, label, config), False
    with np.errstate(all="ignore"), bar, stop if keep else nullcontext():
        while state.step < config.steps and not (stale or stopping):
            start = time.perf_counter()
            batch = batches.at(state.step)
            state, report = train_step(backend, state, batch, model, config)
            seconds = time.perf_counter() - start
            check_finite(report, model, label, state.step)
            speed = speed.and_then(tokens, model_flops(state.params, batch, model), seconds)
            metrics.write(run=label, kind="step", step=state.step, tokens_per_second=tokens / seconds, **report._asdict())
            bar.set_postfix_str(f"loss {report.loss:.3f}, {tokens / seconds / 1000:.1f}k tokens/s", refresh=False)
            bar.update()
            nats = None
            if is_measured(state.step, config):
                results = evaluate(backend, state.params, held_out, model, after=after)
                for result in results:
                    metrics.write(run=label, kind="held_out", step=state.step, **result._asdict())
                nats, found, speed = results[0].token_nats, speed.per_second(), Speed()
                metrics.write(run=label, kind="speed", step=state.step, **found)
                stale = is_stale(metrics, label, config)
                said = f"{found['tokens_per_second'] / 1000:.1f}k tokens/s, {found['model_gflops']:.3g} GFLOP/s of the model"
                bar.write(f"{label}, step {state.step}: {nats:.4f} nats per held-out token, {said}", file=sys.stderr)
            due = nats is not None or state.step == config.steps or (save_every is not None and state.step % save_every == 0)
            stopping = stop.wanted  # looked at once: what comes after this would end the loop without a save
            if keep and (due or stopping):
                metrics.flush()
                keep(on_host(backend, state), nats)
    return on_host(backend, state)


def is_measured(step: int, config: TrainConfig) -> bool:
    """Whether held-out nats are measured after so many steps; they always are after the last."""
    if config.evaluate_every is None:
        return step in {round(config.steps * (i + 1) / EVALUATIONS) for i in range(EVALUATIONS)}
    return step % config.evaluate_every == 0 or step == config.steps


def is_stale(metrics: MetricsFile, label: str, config: TrainConfig) -> bool:
    """Whether config.patience is used up."""
    return config.patience is not None and metrics.stale_evaluations(label) >= config.patience


def check_finite(report: StepReport, model: ModelConfig, label: str, step: int) -> None:
    """A step that overflowed is skipped under loss scaling; without it, or with a loss that is no number, training is lost."""
    scaled = model.block.float_dtype == "f16"
    if not np.isfinite(report.loss) or (report.skipped and not scaled):
        raise UserError(f"{label}: the loss is {report.loss} at step {step}: training diverged; try a smaller --train.learning-rate")
