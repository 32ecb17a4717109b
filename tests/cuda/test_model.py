"""The whole model on the GPU against the oracle: the loss of a batch and the gradients of all parameters."""

from itertools import cycle
from typing import Any

import numpy as np
import pytest
from numpy import ndarray

from tests.cpu.storages import stored, values
from tests.cuda.schedules import in_every_schedule
from tests.cuda.test_transformer_block import BETWEEN_MATRICES, eps_of_storage
from tests.ref.bounds import noise, reordered_share, sensitivity
from tests.ref.cases import ALL_DROPOUTS, NOW, lively_model, packed, random_batch
from ttr_fast.cuda.model import CudaModel
from ttr_fast.cuda.workspace import on_host
from ttr_ref.config import BlockConfig, ModelConfig, TimeConfig, TimeHeadConfig
from ttr_ref.dropout import DropoutKey
from ttr_ref.float_dtype import FloatDType
from ttr_ref.model import ModelParams, loss_backward, loss_forward
from ttr_ref.next_event import Batch
from ttr_ref.parameters import is_frequency, is_matrix
from ttr_ref.tree import leaves_of, named_tree_map, tree_map

KEY, Z_LOSS, TIME_WEIGHT, PLACES = DropoutKey(3, 4), 1e-3, 0.7, 9


def config_of(dtype: FloatDType, order: str | None, tied: bool) -> ModelConfig:
    """Two blocks; three chunks of targets."""
    time = TimeConfig(origin=NOW, unit=600.0, shortest=60.0, span=1e6)
    block = BlockConfig(16, 5, 4, 2, window=6, rope="split", time_bias="log", time=time, dropout=ALL_DROPOUTS, float_dtype=dtype)
    return ModelConfig(7, 2, block, tied=tied, time_head=None if order is None else TimeHeadConfig(3, order), loss_chunk=6)


def problem(config: ModelConfig) -> tuple[ModelParams, Batch]:
    rng = np.random.default_rng(0)
    return lively_model(config, 0), random_batch(rng, config, packed(rng, 2, PLACES, "unix"))


def step(
    params: ModelParams, batch: Batch, config: ModelConfig, model: CudaModel | None = None, scale: float = 1.0, checkpointing: str = "none"
) -> tuple[ndarray, Any]:
    """(loss, gradients of the loss), in arrays of their own."""
    dtype = config.block.float_dtype
    weights = named_tree_map(lambda name, a: stored(a, dtype) if is_matrix(name) else a, params)
    loss, grads = on_host((model or CudaModel(config)).loss_and_gradients(weights, batch, KEY, Z_LOSS, TIME_WEIGHT, scale, checkpointing))
    return loss[0].copy(), tree_map(lambda g: g / g.dtype.type(scale), grads)


def oracle(weights: ModelParams, batch: Batch, config: ModelConfig) -> tuple[ndarray, Any]:
    loss, _, cache = loss_forward(weights, batch, config, KEY, Z_LOSS, TIME_WEIGHT)
    return np.asarray(loss), loss_backward(1.0, cache)


@pytest.mark.parametrize("order, tied", [(None, False), ("token_then_time", True), ("both", False), ("both", True)])
def test_equals_the_oracle_in_float64(order: str | None, tied: bool) -> None:
    """With all dropouts: the oracle's sums in another order. The loss, a sum of positive numbers, is rounded to its own size too."""
    config = config_of(FloatDType.F64, order, tied)
    params, batch = problem(config)
    found = step(params, batch, config)

    def moved(weights: ModelParams) -> tuple[ndarray, Any]:
        return oracle(named_tree_map(lambda name, a, fixed: fixed if is_frequency(name) else a, weights, params), batch, config)

    loss_moves, grads_move = sensitivity(moved, params)
    loss, grads = oracle(params, batch, config)
    assert reordered_share(found, (loss, grads), (np.asarray(loss_moves + loss), grads_move), max(48, 2 * PLACES) + BETWEEN_MATRICES) <= 1


def test_a_second_step_has_the_same_bits() -> None:
    """In the same workspace, which is full of the first, in another schedule, with other activations kept for backward."""
    config = config_of(FloatDType.BF16, "both", False)
    params, batch = problem(config)
    model, modes = CudaModel(config), cycle(["none", "block", "every:2"])

    def run() -> tuple[ndarray, ...]:
        loss, grads = step(params, batch, config, model, checkpointing=next(modes))
        return loss, *leaves_of(grads)

    in_every_schedule(run)


@pytest.mark.parametrize("dtype", [FloatDType.F32, FloatDType.BF16, FloatDType.F16], ids=str)
def test_rounded_as_storage_rounds(dtype: FloatDType) -> None:
    """As in test_transformer_block.py and tests/cpu/test_model.py; f16 with a loss scale."""
    config = config_of(dtype, "both", True)
    params, batch = problem(config)
    exact = config_of(FloatDType.F64, "both", True)
    weights = named_tree_map(lambda name, a: values(stored(a, dtype)) if is_matrix(name) else a.astype(np.float64), params)

    def expected(moved: ModelParams) -> tuple[ndarray, Any]:
        return oracle(named_tree_map(lambda name, a, fixed: fixed if is_frequency(name) else a, moved, weights), batch, exact)

    deviation = eps_of_storage(dtype) / 2 * np.sqrt(6 / 3 + (24 if dtype == FloatDType.F32 else 0))
    actual = step(params, batch, config, scale=2.0**10 if dtype == FloatDType.F16 else 1.0)
    moves = noise(expected, weights)
    shares = tree_map(lambda a, e, s: np.linalg.norm(np.float64(a) - e) / (4 * deviation * s) if a.size else 0.0, actual, expected(weights), moves)
    assert max(leaves_of(shares)) <= 1


def test_nothing_to_predict() -> None:
    config = config_of(FloatDType.F32, None, True)
    params, batch = problem(config)
    with pytest.raises(ValueError, match="the batch has nothing to predict"):
        step(params, batch._replace(is_target=np.zeros_like(batch.is_target)), config)
