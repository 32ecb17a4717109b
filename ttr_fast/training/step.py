"""One step of training: gradients, loss scaling, clipping, AdamW."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ttr_fast.model import Backend, Gradients
from ttr_ref.adamw import AdamWState, adamw_init
from ttr_ref.config import ModelConfig, TrainConfig
from ttr_ref.loss_scaling import LossScale, loss_scale_init, loss_scale_update
from ttr_ref.model import ModelParams, model_init
from ttr_ref.next_event import Batch
from ttr_ref.schedule import learning_rate


class TrainState(NamedTuple):
    """All that changes from step to step."""

    params: ModelParams
    optimizer: AdamWState
    loss_scale: LossScale
    step: int


class StepReport(NamedTuple):
    """What one step says of itself."""

    loss: float
    grad_norm: float
    learning_rate: float
    skipped: bool
    """Whether a gradient overflowed, so that the parameters stayed as they were."""
    targets: int
    """How many tokens were predicted; none, and all other numbers 0, where targets_after left none, so that nothing was done."""


def train_start(config: ModelConfig, train: TrainConfig) -> TrainState:
    """Before the first step."""
    params = model_init(config, train.seed)
    return TrainState(params, adamw_init(params), loss_scale_init(config.block), 0)


def train_step(backend: Backend, state: TrainState, batch: Batch, config: ModelConfig, train: TrainConfig) -> tuple[TrainState, StepReport]:
    """(state after the step, its report)."""
    params, optimizer, scale, step = state
    targets = int(batch.is_target.sum())
    if targets == 0:
        return state._replace(step=step + 1), StepReport(0.0, 0.0, 0.0, False, 0)
    loss, grads = accumulated(backend, params, batch, config, train, step, scale.scale)
    rate = learning_rate(step, train)
    params, optimizer, norm = backend.update(params, grads, optimizer, scale, rate, config, train)
    finite = norm < float("inf")
    report = StepReport(float(loss), norm, rate, not finite, targets)
    return TrainState(params, optimizer, loss_scale_update(scale, finite), step + 1), report


def on_host(backend: Backend, state: TrainState) -> TrainState:
    """The state in NumPy arrays, as it is saved, drawn and read."""
    params, m, v = backend.on_host((state.params, state.optimizer.m, state.optimizer.v))
    return state._replace(params=params, optimizer=AdamWState(m, v, state.optimizer.steps))


def accumulated(
    backend: Backend, params: ModelParams, batch: Batch, config: ModelConfig, train: TrainConfig, step: int, loss_scale: float
) -> Gradients:
    """Those of the whole batch, part by part. Dropout is that of the whole: a document keeps its number."""
    if train.accumulate == 1:
        return backend.loss_and_gradients(params, batch, config, train, step, loss_scale)
    targets, total = float(batch.is_target.sum()), None
    for part in parts_of(batch, train.accumulate):
        total = backend.added(total, backend.loss_and_gradients(params, part, config, train, step, loss_scale, targets))
    assert total is not None
    return total


def parts_of(batch: Batch, count: int) -> Iterator[Batch]:
    """The rows in `count` equal parts, without those that have nothing to predict."""
    for rows in np.split(np.arange(batch.tokens.shape[0]), count):
        part = slice(rows[0], rows[-1] + 1)
        if batch.is_target[part].any():
            at = batch.at.places(part, slice(None))
            yield Batch(batch.tokens[part], at, batch.next_tokens[part], batch.next_times[part], batch.is_target[part])
