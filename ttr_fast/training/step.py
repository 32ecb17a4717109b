"""One step of training: gradients, loss scaling, clipping, AdamW."""

from typing import NamedTuple

from ttr_fast.model import Backend
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


def train_start(config: ModelConfig, train: TrainConfig) -> TrainState:
    """Before the first step."""
    params = model_init(config, train.seed)
    return TrainState(params, adamw_init(params), loss_scale_init(config.block), 0)


def train_step(backend: Backend, state: TrainState, batch: Batch, config: ModelConfig, train: TrainConfig) -> tuple[TrainState, StepReport]:
    """(state after the step, its report)."""
    params, optimizer, scale, step = state
    loss, grads = backend.loss_and_gradients(params, batch, config, train, step, scale.scale)
    rate = learning_rate(step, train)
    params, optimizer, norm = backend.update(params, grads, optimizer, scale, rate, config, train)
    finite = norm < float("inf")
    return TrainState(params, optimizer, loss_scale_update(scale, finite), step + 1), StepReport(loss, norm, rate, not finite)
