"""What the tests of the whole model share: small models of every kind, batches, one training step as a tree."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy import ndarray

from tests.ref.cases import ALL_DROPOUTS, NOW, lively_model, packed, random_batch
from ttr_fast.cpu.model import CpuModel, storage_copies
from ttr_ref.config import BiasKind, BlockConfig, ModelConfig, RopeKind, TimeConfig, TimeHeadConfig, TimeHeadOrder
from ttr_ref.dropout import DropoutKey
from ttr_ref.float_dtype import FloatDType
from ttr_ref.model import ModelParams, compute_copy, loss_backward, loss_forward
from ttr_ref.next_event import Batch
from ttr_ref.parameters import is_frequency
from ttr_ref.tree import named_tree_map, tree_map

Z_LOSS, TIME_WEIGHT = 1e-3, 0.7
NO_WEIGHTS_DROPPED = replace(ALL_DROPOUTS, attn=0.0)
EXP_TERMS, KNOTS = 3, 5
"""Those of tests.ref.cases.random_bias, so that the kernels of test_attention.py serve here too."""


def small_model(
    dtype: FloatDType, kind: BiasKind = "log", rope: RopeKind = "split", order: TimeHeadOrder | None = "both", kv_heads: int = 2, **more: Any
) -> ModelConfig:
    """Two blocks of four heads; `more` holds other fields of ModelConfig or BlockConfig."""
    model = {name: more.pop(name) for name in ("layers", "tied", "vocab_size", "loss_chunk") if name in more}
    block = {"window": 70, "dropout": ALL_DROPOUTS, "time": TimeConfig(origin=NOW, unit=600.0, shortest=60.0, span=1e6)} | more
    head = None if order is None else TimeHeadConfig(3, order)
    return ModelConfig(
        block=BlockConfig(
            24, 19, 4, kv_heads, rope=rope, time_bias=kind, exp_terms=EXP_TERMS, table_knots=KNOTS, float_dtype=dtype, **block
        ),
        time_head=head, **({"vocab_size": 11, "layers": 2, "loss_chunk": 50} | model),
    )  # fmt: skip


def packed_batch(config: ModelConfig, seed: int, places: int = 150, times: str = "unix") -> Batch:
    """Two rows of packed documents, some of them longer than a tile."""
    rng = np.random.default_rng(seed)
    return random_batch(rng, config, packed(rng, 2, places, times))


def step(
    params: ModelParams, batch: Batch, config: ModelConfig, key: DropoutKey | None, model: CpuModel | None = None, loss_scale: float = 1.0,
    checkpointing: str = "none",
) -> tuple[ndarray, ModelParams]:  # fmt: skip
    """(loss, gradients of the loss) on the CPU, in arrays of their own."""
    model = model or CpuModel(config)
    loss, grads = model.loss_and_gradients(storage_copies(params, config), batch, key, Z_LOSS, TIME_WEIGHT, loss_scale, checkpointing)
    return np.asarray(loss), tree_map(lambda g: g / g.dtype.type(loss_scale), grads)


def oracle_step(params: ModelParams, batch: Batch, config: ModelConfig, key: DropoutKey | None) -> tuple[ndarray, ModelParams]:
    """The same from the oracle."""
    loss, _, cache = loss_forward(params, batch, config, key, Z_LOSS, TIME_WEIGHT)
    return np.asarray(loss), loss_backward(1.0, cache)


def in_float64(config: ModelConfig) -> ModelConfig:
    """The same model, which rounds nothing to a smaller storage."""
    return replace(config, block=replace(config.block, float_dtype=FloatDType.F64))


def exact_weights(params: ModelParams, config: ModelConfig) -> ModelParams:
    """The weights as storage holds them, in float64."""
    return tree_map(lambda a: a.astype(np.float64), compute_copy(params, config))


def of_matrices(f: Callable[[ModelParams], Any], params: ModelParams) -> Callable[[ModelParams], Any]:
    """f, whose frequencies stay those of params: phases are the oracle's bit for bit, so no rounding acts like another frequency."""
    return lambda moved: f(named_tree_map(lambda name, a, fixed: fixed if is_frequency(name) else a, moved, params))


def problem_of(config: ModelConfig, seed: int, **options: Any) -> tuple[ModelParams, Batch, DropoutKey]:
    """Weights far from their initial values, a batch, a key."""
    return lively_model(config, seed), packed_batch(config, seed, **options), DropoutKey(seed, 1)
