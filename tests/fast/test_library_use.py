"""The original's quick example from Python, nearly word for word: a block, a cleared cache, a row of ones at a UNIX time. No command, no file."""

import numpy as np
import pytest

from tests.ref.bounds import same_bits
from ttr_ref.config import BlockConfig, DropoutConfig, ModelConfig
from ttr_ref.dropout import DropoutKey
from ttr_ref.float_dtype import FloatDType
from ttr_ref.kv_ring import kv_ring_empty, kv_ring_next
from ttr_ref.model import model_init
from ttr_ref.timeline import timeline_from_lengths
from ttr_ref.transformer_block import transformer_block_decode, transformer_block_forward, transformer_block_init
from ttr_ref.tree import tree_map

NOW = np.array([1_700_000_000])
CONFIG = BlockConfig(
    embed_dim=256, hidden_dim=1024, heads=8, window=512, dropout=DropoutConfig(attn=0.1, ff=0.05, block=0.1), float_dtype=FloatDType.BF16
)


def test_the_quick_example() -> None:
    """At step 0 the cache is empty, so what comes out is what the block makes of the row alone; the token is in the cache then."""
    block = transformer_block_init(CONFIG, np.random.default_rng(0))
    ring = kv_ring_empty(1, CONFIG.groups, 512, CONFIG.head_dim, CONFIG.float_dtype)
    ones = np.ones((1, 1, 256), np.float32)
    y, filled = transformer_block_decode(ones, block, kv_ring_next(ring, NOW), ring, CONFIG)
    alone, _ = transformer_block_forward(ones, block, timeline_from_lengths(NOW[:, None], np.array([1])), CONFIG)
    assert y.dtype == np.float32
    assert np.isfinite(y.sum())
    np.testing.assert_array_equal(y, alone)
    assert (ring.seen.tolist(), filled.seen.tolist(), filled.time[0, 0]) == ([0], [1], NOW[0])
    cleared, _ = transformer_block_decode(ones, block, kv_ring_next(ring, NOW), ring, CONFIG)
    np.testing.assert_array_equal(cleared, y)


def test_training_drops() -> None:
    """With a key the same row loses features, others at another step; without one nothing is drawn."""
    block = transformer_block_init(CONFIG, np.random.default_rng(0))
    at = timeline_from_lengths(NOW[:, None], np.array([1]))

    def y(step: int | None) -> np.ndarray:
        key = None if step is None else DropoutKey(7, step)
        return transformer_block_forward(np.ones((1, 1, 256), np.float32), block, at, CONFIG, key)[0]

    np.testing.assert_array_equal(y(0), y(0))
    assert not np.array_equal(y(0), y(1))
    assert not np.array_equal(y(0), y(None))


@pytest.mark.parametrize("dtype", FloatDType)
def test_a_models_blocks_start_like_this(dtype: FloatDType) -> None:
    """model_init draws the embedding, then each block; the spread of what writes into the residual falls with the number of blocks."""
    config = BlockConfig(16, 12, 4, 2, rope="split", float_dtype=dtype)
    rng = np.random.default_rng(5)
    rng.standard_normal((7, 16))
    mine = tuple(transformer_block_init(config, rng, layers=3) for _ in range(3))
    assert same_bits(mine, model_init(ModelConfig(7, 3, config), 5).blocks)
    one, eight = (transformer_block_init(config, np.random.default_rng(0), layers) for layers in (1, 8))
    spread = tree_map(lambda a, b: np.std(a) / max(np.std(b), 1e-9), one, eight)
    few = {"rtol": 4 * np.finfo(dtype.compute).eps}
    np.testing.assert_allclose([spread.attention.w_out, spread.feed_forward.w_out], 8**0.5, **few)
    assert spread.attention.w_qkv == spread.feed_forward.w_in == 1.0
