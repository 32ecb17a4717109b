"""One NVIDIA GPU as a backend: parameters, moments and gradients stay on it, and come to the host when `on_host` is asked for them.

A step uploads its batch and reads once, four numbers, after all of it has been launched: the norm of the gradients, which says whether one of them
overflowed, and the loss. Whether anything moves is decided on the device; the host follows with the loss scale and the count of steps.
"""

from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
from numpy import ndarray

from ttr_fast.cuda import memory
from ttr_fast.cuda.adamw import NORM
from ttr_fast.cuda.decode import CudaDecoder
from ttr_fast.cuda.model import LOSS, SUM, CudaModel, storage_copies
from ttr_fast.cuda.workspace import Workspace, free_memory, on_device, on_host
from ttr_fast.errors import UserError
from ttr_fast.model import Gradients, Prediction, ReferenceBackend
from ttr_ref.adamw import AdamWState
from ttr_ref.config import ModelConfig, TrainConfig
from ttr_ref.dropout import DropoutKey
from ttr_ref.loss_scaling import LossScale
from ttr_ref.model import ModelParams
from ttr_ref.next_event import Batch, gaps
from ttr_ref.time_head import mixture_from
from ttr_ref.tree import tree_map


class Told:
    """One of the numbers of CudaModel.told, until the next step; float() reads them all."""

    def __init__(self, backend: "CudaBackend", at: int, array: Any) -> None:
        self.backend, self.at, self.array = backend, at, array

    def __float__(self) -> float:
        return float(self.backend.read()[self.at])


class CudaBackend(ReferenceBackend):
    """numba.cuda on the first GPU, or in the simulator. `update` moves what lies on the device in place, `decode` the state."""

    def __init__(self, limit: int | None = None) -> None:
        """limit: bytes of the device to take at most; None: all that are free."""
        self.limit = limit
        self.model: CudaModel | None = None
        self.params: ModelParams | None = None
        self.masters: ModelParams | None = None
        self.copies: ModelParams | None = None
        self.moments: tuple[Any, Any] | None = None
        self.told: ndarray | None = None
        self.fitting: set[Hashable] = set()

    def model_of(self, config: ModelConfig) -> CudaModel:
        """The model; another one takes the place of the last, with all that lies on the device."""
        if self.model is None or self.model.config != config:
            self.model, self.params, self.masters, self.copies, self.moments = CudaModel(config), None, None, None, None
            self.fitting.clear()
        return self.model

    def prepared(self, params: ModelParams, config: ModelConfig) -> tuple[CudaModel, ModelParams, ModelParams]:
        """(the model, the parameters on the device, the weights as it computes with them), made anew when others come along."""
        model = self.model_of(config)
        if self.params is not params or self.masters is None or self.copies is None:
            self.params, self.masters = params, on_device(params)
            self.copies = storage_copies(self.masters, config, model.workspace)
        return model, self.masters, self.copies

    def loss_and_gradients(
        self, params: ModelParams, batch: Batch, config: ModelConfig, train: TrainConfig, step: int, loss_scale: float, targets: float | None = None
    ) -> Gradients:
        """Raises UserError if the device has too little memory for it."""
        self.make_sure_it_fits(params, config, batch, train)
        model, _, copies = self.prepared(params, config)
        key, self.told = DropoutKey(train.seed, step), None
        loss, grads = model.loss_and_gradients(copies, batch, key, train.z_loss, train.time_weight, loss_scale, train.checkpointing, targets)
        return Told(self, LOSS, loss), grads

    def added(self, total: Gradients | None, more: Gradients) -> Gradients:
        assert self.model is not None
        assert isinstance(more[0], Told)
        self.told = None
        loss, grads = self.model.added(more[0].array, more[1], total is None)
        return Told(self, SUM, loss), grads

    def update(
        self, params: ModelParams, grads: ModelParams, optimizer: AdamWState, scale: LossScale, rate: float, config: ModelConfig, train: TrainConfig
    ) -> tuple[ModelParams, AdamWState, float]:
        model, masters, copies = self.prepared(params, config)
        m, v, grads = on_device((optimizer.m, optimizer.v, grads))
        self.params, self.moments, self.told = masters, (m, v), None
        model.update(masters, m, v, grads, copies, optimizer.steps + 1, scale.scale, rate, train)
        norm = float(self.read()[NORM])
        finite = bool(np.isfinite(norm))
        return masters, AdamWState(m, v, optimizer.steps + finite), norm if finite else float("inf")

    def read(self) -> ndarray:
        """What the device tells of the step so far: it comes to the host once, and that waits until all is done."""
        assert self.model is not None
        if self.told is None:
            self.told = np.copy(on_host(self.model.told))
        return self.told

    def on_host(self, tree: Any) -> Any:
        return on_host(tree)

    def predict(self, params: ModelParams, batch: Batch, config: ModelConfig, closely: bool) -> list[Prediction]:
        self.make_sure_it_fits(params, config, batch)
        model, _, copies = self.prepared(params, config)
        nats, events = model.nats(copies, batch, closely)
        found = [tree_map(np.copy, on_host((n.token, n.time))) for n in nats]
        predictions = [Prediction(n.order, token, time, gaps(batch)) for n, (token, time) in zip(nats, found, strict=True)]
        if closely:
            predictions = [p._replace(standing=standing) for p, standing in zip(predictions, events.standings, strict=True)]
        if closely and params.time_head is not None:
            bias, resolution = on_host(params.time_head.mixture.b_mixture).astype(np.float64), config.block.time.resolution
            predictions = [p._replace(mixture=mixture_from(on_host(raw) + bias, resolution)) for p, raw in zip(predictions, events.raw, strict=True)]
        return predictions

    def decode_start(self, params: ModelParams, config: ModelConfig, rows: int, time_dtype: type[np.int64] | type[np.float64]) -> CudaDecoder:
        self.model_of(config)
        more = memory.of_decoding(params, config, rows, time_dtype).nbytes + self.absent(params, 1)
        self.check_memory(f"decoding {rows} rows", more, [])
        masters = self.masters if self.masters is not None and self.params is params else on_device(params)
        workspace = Workspace()  # with copies that no other model writes over; what is no matrix, and all of f32 and f64, `update` moves in place
        return CudaDecoder(storage_copies(masters, config, workspace), config, rows, time_dtype, workspace)

    def decode(self, state: CudaDecoder, tokens: ndarray, times: ndarray, config: ModelConfig) -> tuple[ndarray, CudaDecoder]:
        dtype = config.block.float_dtype
        return on_host(state.step(tokens, times)).view(dtype.storage).astype(dtype.compute), state

    def make_sure_it_fits(self, params: ModelParams, config: ModelConfig, batch: Batch, train: TrainConfig | None = None) -> None:
        """A step, or without `train` a prediction, of a batch of this shape; looked at once for each.

        Raises UserError if the device has too little memory for it, with the options that would do.
        """
        shape, kind = batch.tokens.shape, None if train is None else (train.checkpointing, train.accumulate > 1)
        model = self.model_of(config)
        if (shape, kind) in self.fitting:
            return
        size = f"{shape[0]} rows of {shape[1]} tokens"
        if train is None:
            more = model.workspace.growth(memory.of_prediction(params, batch, config)) + self.absent(params, 1)
            self.check_memory(f"a prediction of {size}", more, [])
        else:
            counted, beside = memory.of_step(params, batch, config, train), 3 * memory.bytes_of(params)
            smaller = ((said, nbytes + beside) for said, nbytes in memory.smaller_steps(params, batch, config, train))
            self.check_memory(f"a step of {size}", model.workspace.growth(counted) + self.absent(params, 3), smaller)
        self.fitting.add((shape, kind))

    def absent(self, params: ModelParams, trees: int) -> int:
        """Bytes of the parameters, and where three trees are needed of the moments, that are not on the device yet."""
        present = (self.masters is not None and self.params is params) + (2 if trees == 3 and self.moments is not None else 0)
        return (trees - present) * memory.bytes_of(params)

    def check_memory(self, what: str, more: int, smaller: Iterable[tuple[str, int]]) -> None:
        """Raises UserError if what is to come asks for more bytes than there are; smaller: options, and all bytes that are needed with them."""
        assert self.model is not None
        held = self.model.workspace.nbytes + memory.bytes_of((self.masters, self.moments))
        free = free_memory() if self.limit is None else self.limit - held
        if free is None or more <= free:
            return
        fitting = next((f"{said} needs {memory.said(nbytes)}" for said, nbytes in smaller if nbytes <= free + held), "it takes a smaller model")
        needed, there = memory.said(held + more), memory.said(free + held)
        raise UserError(f"--backend cuda: {what} needs {needed} of the GPU's memory, there are {there}; {fitting}")
