"""The network over a chosen backend.

A backend computes; everything above it (data, training, generation, the command line) is the same whichever is chosen. All of them take and
give the parameters of `ttr_ref.model`, so a checkpoint written with one is read with any other.
"""

from typing import Any, Literal, NamedTuple, Protocol, SupportsFloat, get_args

import numpy as np
from numpy import ndarray

from ttr_fast.errors import UserError
from ttr_ref.adamw import AdamWState, adamw_step, clip_by_global_norm
from ttr_ref.config import ModelConfig, TimeHeadOrder, TrainConfig
from ttr_ref.cross_entropy import Standing, standings
from ttr_ref.dropout import DropoutKey
from ttr_ref.loss_scaling import LossScale, unscale
from ttr_ref.model import (
    ModelParams,
    compute_copy,
    decays,
    decode_start,
    learning_rate_shares,
    loss_backward,
    loss_forward,
    model_decode,
)
from ttr_ref.next_event import Batch, gaps
from ttr_ref.time_head import Mixture
from ttr_ref.tree import tree_map

BackendName = Literal["cpu", "cuda", "reference"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)


Gradients = tuple[SupportsFloat, ModelParams]
"""(mean loss, gradients of the loss scale times it). Arrays may lie on a device; float() waits for the loss."""


class Prediction(NamedTuple):
    """Of N targets, in one order: −ln p of token and gap (None without a time head), and the gap; the last two where they were asked for."""

    order: TimeHeadOrder
    token_nats: ndarray
    time_nats: ndarray | None
    gap: ndarray
    mixture: Mixture | None = None
    """The predicted density of the gap; None without a time head."""
    standing: Standing | None = None
    """Where the token stands among all."""


class Backend(Protocol):
    """What training and generation ask of an implementation.

    Parameters and moments are trees of NumPy arrays to begin with; those that `update` gives back may lie elsewhere, and are for this backend alone
    until `on_host` has fetched them.
    """

    def loss_and_gradients(
        self, params: ModelParams, batch: Batch, config: ModelConfig, train: TrainConfig, step: int, loss_scale: float, targets: float | None = None
    ) -> Gradients:
        """The next call may overwrite them.

        targets: how many the sums are divided by, where the batch is a part of one that has so many; None: as many as it has itself.
        """

    def added(self, total: Gradients | None, more: Gradients) -> Gradients:
        """The sum, in `total`'s place; None: nothing yet. What loss_and_gradients overwrites next is not part of it."""

    def update(
        self, params: ModelParams, grads: ModelParams, optimizer: AdamWState, scale: LossScale, rate: float, config: ModelConfig, train: TrainConfig
    ) -> tuple[ModelParams, AdamWState, float]:
        """(parameters, moments, norm of the gradients before clipping) after one step; an infinite norm: some gradient overflowed, nothing moved.

        What was given may be what is given back, changed in place.
        """

    def on_host(self, tree: Any) -> Any:
        """Parameters or moments as NumPy arrays, which the next update may change."""

    def predict(self, params: ModelParams, batch: Batch, config: ModelConfig, closely: bool) -> list[Prediction]:
        """What is expected of every target in every order, without dropout; closely: with mixture and standing."""

    def decode_start(self, params: ModelParams, config: ModelConfig, rows: int, time_dtype: type[np.int64] | type[np.float64]) -> Any:
        """The state of decoding before the first token: weights and empty rings. What a row gives does not depend on the others."""

    def decode(self, state: Any, tokens: ndarray, times: ndarray, config: ModelConfig) -> tuple[ndarray, Any]:
        """(z of one more token in every row, the state after it, which may be what was given, changed in place)."""


class ReferenceBackend:
    """The oracle itself."""

    def loss_and_gradients(
        self, params: ModelParams, batch: Batch, config: ModelConfig, train: TrainConfig, step: int, loss_scale: float, targets: float | None = None
    ) -> Gradients:
        key = DropoutKey(train.seed, step)
        loss, _, cache = loss_forward(params, batch, config, key, train.z_loss, train.time_weight, targets, train.checkpointing)
        return float(loss), loss_backward(loss_scale, cache)

    def added(self, total: Gradients | None, more: Gradients) -> Gradients:
        if total is None:
            return more[0], tree_map(np.copy, more[1])
        return float(total[0]) + float(more[0]), tree_map(lambda a, b: np.add(a, b, out=a), total[1], more[1])

    def update(
        self, params: ModelParams, grads: ModelParams, optimizer: AdamWState, scale: LossScale, rate: float, config: ModelConfig, train: TrainConfig
    ) -> tuple[ModelParams, AdamWState, float]:
        grads, finite = unscale(grads, scale)
        if not finite:
            return params, optimizer, float("inf")
        grads, norm = clip_by_global_norm(grads, train.clip_norm)
        params, optimizer = adamw_step(params, grads, optimizer, rate, decays(params), learning_rate_shares(params, config.block), train)
        return params, optimizer, norm

    def on_host(self, tree: Any) -> Any:
        return tree

    def predict(self, params: ModelParams, batch: Batch, config: ModelConfig, closely: bool) -> list[Prediction]:
        _, nats, cache = loss_forward(params, batch, config)
        predictions = [Prediction(n.order, n.token, n.time, gaps(batch)) for n in nats]
        if not closely:
            return predictions
        return [
            p._replace(mixture=None if kept.time is None else kept.time.mixture, standing=standings(kept.token))
            for p, kept in zip(predictions, cache.next_event.orders, strict=True)
        ]

    def decode_start(self, params: ModelParams, config: ModelConfig, rows: int, time_dtype: type[np.int64] | type[np.float64]) -> Any:
        return compute_copy(params, config), [decode_start(config, 1, time_dtype) for _ in range(rows)]

    def decode(self, state: Any, tokens: ndarray, times: ndarray, config: ModelConfig) -> tuple[ndarray, Any]:
        weights, rings = state
        # a row at a time: BLAS sums the product of one row in another order than that of several
        each = [model_decode(weights, tokens[b : b + 1], times[b : b + 1], ring, config) for b, ring in enumerate(rings)]
        return np.concatenate([z for z, _ in each]), (weights, [ring for _, ring in each])


def load_backend(name: BackendName) -> Backend:
    """The backend of this name, imported when it is chosen. Raises UserError if it cannot run here."""
    check_usable(name)
    if name == "cpu":
        from ttr_fast.cpu_backend import CpuBackend

        return CpuBackend()
    if name == "cuda":
        from ttr_fast.cuda_backend import CudaBackend

        return CudaBackend()
    return ReferenceBackend()


def check_usable(name: BackendName) -> None:
    """Raises UserError if a backend cannot run here."""
    if name == "cuda":
        from ttr_fast.cuda.found import obstacle

        missing = obstacle()
        if missing is not None:
            raise UserError(f"--backend cuda: {missing.what}; take --backend cpu, or see with `ttr doctor` what is here and what mends it")
