"""A whole block on the GPU against the oracle: output, its gradient and those of all parameters."""

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy import ndarray

from tests.cpu.storages import stored, values
from tests.cuda.schedules import in_every_schedule
from tests.ref.bounds import noise, reordered_share, sensitivity
from tests.ref.cases import ALL_DROPOUTS, BIASES, NOW, ROPES, lively_model, packed
from ttr_fast.cuda.attention import kernels_for
from ttr_fast.cuda.attention_plan import plan_attention
from ttr_fast.cuda.places import places_of
from ttr_fast.cuda.transformer_block import block_sites, transformer_block_backward, transformer_block_forward
from ttr_fast.cuda.workspace import Workspace, on_device
from ttr_ref.config import BlockConfig, DropoutConfig, ModelConfig, TimeConfig
from ttr_ref.dropout import DropoutKey
from ttr_ref.float_dtype import FloatDType
from ttr_ref.parameters import is_frequency, is_matrix
from ttr_ref.timeline import Timeline
from ttr_ref.transformer_block import TransformerBlockParams, transformer_block_backward as ref_backward, transformer_block_forward as ref_forward
from ttr_ref.tree import leaves_of, named_tree_map, tree_map

KEY, LAYER = DropoutKey(3, 4), 2
E, F, HEADS, GROUPS, PLACES = 16, 5, 4, 2, 9
BETWEEN_MATRICES = 16
"""Roundings of a value between two matrices, as in tests/cpu/test_model.py."""


def config_of(kind: str, rope: str, time2vec: bool, dropout: DropoutConfig, dtype: FloatDType) -> BlockConfig:
    time = TimeConfig(origin=NOW, unit=600.0, shortest=60.0, span=1e6)
    return BlockConfig(
        E, F, HEADS, GROUPS, window=6, rope=rope, time2vec=time2vec, time_bias=kind, exp_terms=3, table_knots=5, time=time, dropout=dropout,
        float_dtype=dtype,
    )  # fmt: skip


def step(x: ndarray, dy: ndarray, params: TransformerBlockParams, at: Timeline, config: BlockConfig) -> tuple[ndarray, ndarray, Any]:
    """y, dx and the gradients, in arrays of their own; x and dy (B, T, E) in float64, params as masters."""
    dtype = config.float_dtype
    weights = named_tree_map(lambda name, a: stored(a, dtype) if is_matrix(name) else a, params)
    grads = named_tree_map(lambda name, a: np.full(a.shape, np.nan, np.float64 if is_frequency(name) else dtype.compute), params)
    workspace, sites = Workspace(), on_device(block_sites(config, KEY, LAYER))
    places = places_of(at, config, "batch", workspace)
    rows, upstream = (stored(a.reshape(-1, E), dtype) for a in (x, dy))
    plan = plan_attention(at, at, config.causal, config.window, kernels_for(rows.dtype, config.head_dim).tile)
    y, dx = np.empty_like(rows), np.empty_like(rows)
    cache = transformer_block_forward(rows, weights, places, plan, config, sites, "block", y, workspace)
    transformer_block_backward(upstream, weights, grads, places, cache, dx, workspace)
    return y.reshape(x.shape), dx.reshape(x.shape), grads


CASES = [
    *((kind, rope, True, ALL_DROPOUTS) for kind, rope in zip(BIASES, (*ROPES, "split", "time"), strict=True)),
    ("log", "split", False, DropoutConfig()),
]
"""Kind of bias, rope, whether time features are added, dropouts: residual sums at the end of products, or of the pass that draws."""


@pytest.mark.parametrize("kind, rope, time2vec, dropout", CASES, ids=lambda v: v if isinstance(v, str) else None)
def test_equals_the_oracle_in_float64(kind: str, rope: str, time2vec: bool, dropout: DropoutConfig) -> None:
    """The oracle's sums in another order, and other elementary functions: no more than `sensitivity` allows. In every schedule the same bits."""
    rng, config = np.random.default_rng(0), config_of(kind, rope, time2vec, dropout, FloatDType.F64)
    at = packed(rng, 2, PLACES, "unix")
    x, dy = rng.standard_normal((2, 2, PLACES, E))
    params = lively_model(ModelConfig(3, 1, config), 0).blocks[0]

    def oracle(weights: TransformerBlockParams) -> tuple:
        y, cache = ref_forward(x, weights, at, config, KEY, LAYER)
        return y, *ref_backward(dy, cache)

    def run() -> tuple[ndarray, ...]:
        y, dx, grads = step(x, dy, params, at, config)
        found.append((y, dx, grads))
        return y, dx, *leaves_of(grads)

    found: list[tuple] = []
    in_every_schedule(run)
    moves = sensitivity(lambda moved: oracle(named_tree_map(lambda name, a, fixed: fixed if is_frequency(name) else a, moved, params)), params)
    assert reordered_share(found[0], oracle(params), moves, max(3 * E, 2 * PLACES) + BETWEEN_MATRICES) <= 1


@pytest.mark.parametrize(
    "dtype, kind, rope", [(FloatDType.F32, "log", "split"), (FloatDType.BF16, "exp", "time"), (FloatDType.F16, "linear", "position")], ids=str
)
def test_rounded_as_storage_rounds(dtype: FloatDType, kind: str, rope: str) -> None:
    """Against the oracle in float64 on the weights as they are stored, leaf by leaf in norm.

    As in tests/cpu/test_model.py: a stored value rounds with variance eps²/12 and acts like a rounding of the matrix that it meets; six a matrix, so
    √(6/3) times what eps/2 of all weights does; in float32 the chains of K ≤ 48 terms round too, K/2 times its square. Four standard deviations.
    """
    rng, config = np.random.default_rng(1), config_of(kind, rope, True, ALL_DROPOUTS, dtype)
    at = packed(rng, 2, PLACES, "unix")
    x, dy = (values(stored(a, dtype)) for a in rng.standard_normal((2, 2, PLACES, E)))
    params = lively_model(ModelConfig(3, 1, config), 1).blocks[0]
    weights = named_tree_map(lambda name, a: values(stored(a, dtype)) if is_matrix(name) else a.astype(np.float64), params)
    exact = replace(config, float_dtype=FloatDType.F64)

    def oracle(moved: TransformerBlockParams) -> tuple:
        fixed = named_tree_map(lambda name, a, there: there if is_frequency(name) else a, moved, weights)
        y, cache = ref_forward(x, fixed, at, exact, KEY, LAYER)
        return y, *ref_backward(dy, cache)

    y, dx, grads = step(x, dy, params, at, config)
    deviation = eps_of_storage(dtype) / 2 * np.sqrt(6 / 3 + (24 if dtype == FloatDType.F32 else 0))
    actual, expected, moves = (values(y), values(dx), grads), oracle(weights), noise(oracle, weights)
    shares = tree_map(lambda a, e, s: np.linalg.norm(np.float64(a) - e) / (4 * deviation * s) if a.size else 0.0, actual, expected, moves)
    assert max(leaves_of(shares)) <= 1


def eps_of_storage(dtype: FloatDType) -> float:
    """Twice its unit roundoff."""
    return float(ml_dtypes.finfo(dtype.storage).eps)
