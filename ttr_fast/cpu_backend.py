"""The fast core as a backend: one workspace and one set of compute copies for as long as a model lives."""

import numpy as np
from numpy import ndarray

from ttr_fast.cpu.adamw import adamw_step, blocks_of, global_norm, step_numbers
from ttr_fast.cpu.decode import CpuDecoder
from ttr_fast.cpu.half import as_storage
from ttr_fast.cpu.model import CpuModel, storage_copies
from ttr_fast.model import Gradients, Prediction, ReferenceBackend
from ttr_ref.adamw import AdamWState
from ttr_ref.config import ModelConfig, TrainConfig
from ttr_ref.dropout import DropoutKey
from ttr_ref.loss_scaling import LossScale
from ttr_ref.model import ModelParams, decays, learning_rate_shares
from ttr_ref.next_event import Batch, gaps
from ttr_ref.time_head import mixture_from
from ttr_ref.tree import leaves_of


class CpuBackend(ReferenceBackend):
    """Numba on all cores. `update` moves the parameters in place, `decode` the state."""

    def __init__(self) -> None:
        self.model: CpuModel | None = None
        self.params: ModelParams | None = None
        self.copies: ModelParams | None = None

    def prepared(self, params: ModelParams, config: ModelConfig) -> tuple[CpuModel, ModelParams]:
        """(the model, the weights as it computes with them), made anew when another model comes along."""
        if self.model is None or self.model.config != config:
            self.model, self.params = CpuModel(config), None
        if self.params is not params or self.copies is None:
            self.params, self.copies = params, storage_copies(params, config)
        return self.model, self.copies

    def loss_and_gradients(
        self, params: ModelParams, batch: Batch, config: ModelConfig, train: TrainConfig, step: int, loss_scale: float, targets: float | None = None
    ) -> Gradients:
        model, copies = self.prepared(params, config)
        key = DropoutKey(train.seed, step)
        return model.loss_and_gradients(copies, batch, key, train.z_loss, train.time_weight, loss_scale, train.checkpointing, targets)

    def update(
        self, params: ModelParams, grads: ModelParams, optimizer: AdamWState, scale: LossScale, rate: float, config: ModelConfig, train: TrainConfig
    ) -> tuple[ModelParams, AdamWState, float]:
        _, copies = self.prepared(params, config)
        leaves = [list(leaves_of(tree)) for tree in (params, optimizer.m, optimizer.v, grads, copies, decays(params))]
        shares = list(leaves_of(learning_rate_shares(params, config.block)))
        partial = np.empty(max(blocks_of(g.size) for g in leaves[3]))
        norm = global_norm(leaves[3], partial) / scale.scale
        if not np.isfinite(norm):
            return params, optimizer, float("inf")
        steps, factor = optimizer.steps + 1, min(1.0, train.clip_norm / norm if norm > 0 else 1.0) / scale.scale
        for theta, m, v, g, copy, decay, share in zip(*leaves, shares, strict=True):
            if theta.size:
                numbers = step_numbers(steps, rate, float(share), float(decay), factor, train)
                adamw_step(theta, m, v, g, None if copy is theta else copy, numbers)
        return params, AdamWState(optimizer.m, optimizer.v, steps), norm

    def predict(self, params: ModelParams, batch: Batch, config: ModelConfig, closely: bool) -> list[Prediction]:
        model, copies = self.prepared(params, config)
        nats, events = model.nats(copies, batch, closely)
        predictions = [Prediction(n.order, n.token, n.time, gaps(batch)) for n in nats]
        if closely:
            predictions = [p._replace(standing=standing) for p, standing in zip(predictions, events.standings, strict=True)]
        if closely and params.time_head is not None:
            bias, resolution = params.time_head.mixture.b_mixture.astype(np.float64), config.block.time.resolution
            predictions = [p._replace(mixture=mixture_from(raw + bias, resolution)) for p, raw in zip(predictions, events.raw, strict=True)]
        return predictions

    def decode_start(self, params: ModelParams, config: ModelConfig, rows: int, time_dtype: type[np.int64] | type[np.float64]) -> CpuDecoder:
        _, copies = self.prepared(params, config)
        return CpuDecoder(copies, config, rows, time_dtype)

    def decode(self, state: CpuDecoder, tokens: ndarray, times: ndarray, config: ModelConfig) -> tuple[ndarray, CpuDecoder]:
        return as_storage(state.step(tokens, times)).astype(config.block.float_dtype.compute), state
