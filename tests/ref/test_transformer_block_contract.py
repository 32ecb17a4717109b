"""A block is the composition that its docstring says, and each of its five dropouts draws at a site of its own."""

import numpy as np
import pytest

from tests.ref.cases import NOW
from ttr_ref.attention import attention_forward
from ttr_ref.config import BlockConfig, DropoutConfig, ModelConfig, TimeConfig
from ttr_ref.dropout import Dropout, DropoutKey, dropout_forward, head_dropout_forward
from ttr_ref.feed_forward_geglu import feed_forward_geglu_forward
from ttr_ref.model import model_init
from ttr_ref.multi_head_attention import merge_heads, project
from ttr_ref.rms_norm import rms_norm_forward
from ttr_ref.time2vec import time2vec_forward
from ttr_ref.timeline import timeline_from_lengths
from ttr_ref.transformer_block import transformer_block_forward

RATES = DropoutConfig(attn=0.3, ff=0.2, block=0.4, head=0.25)
CONFIG = BlockConfig(8, 5, 4, 2, window=3, rope="split", time=TimeConfig(origin=NOW, unit=60.0), dropout=RATES)


@pytest.mark.parametrize("layer", [0, 1, 6])
def test_a_block_is_its_formula(layer: int) -> None:
    """Site = 8 · layer + {0 attention, 1 feed-forward, 2 after attention, 3 after feed-forward, 4 whole head}."""
    rng, key = np.random.default_rng(layer), DropoutKey(11, 4)
    at = timeline_from_lengths(NOW + np.cumsum(rng.integers(0, 90, (3, 7)), axis=1), np.array([7, 0, 5]), first_document=2)
    params, x = model_init(ModelConfig(3, 1, CONFIG), 0).blocks[0], rng.standard_normal((3, 7, 8))
    y, _ = transformer_block_forward(x, params, at, CONFIG, key, layer)

    def drop(p: float, place: int) -> Dropout:
        return Dropout(p, key, 8 * layer + place)

    assert params.time2vec is not None
    u = x + time2vec_forward(at, params.time2vec, CONFIG.time)[0]
    q, k, v, _, _ = project(rms_norm_forward(u, params.norm_attention)[0], params.attention, at, CONFIG)
    o, _, _ = attention_forward(q, k, v, at, at, params.attention.time_bias, CONFIG.time, True, 3, drop(RATES.attn, 0))
    a = merge_heads(head_dropout_forward(o, drop(RATES.head, 4), at)) @ params.attention.w_out
    h = x + dropout_forward(a, drop(RATES.block, 2), at)
    f, _ = feed_forward_geglu_forward(rms_norm_forward(h, params.norm_feed_forward)[0], params.feed_forward, CONFIG)
    expected = h + dropout_forward(dropout_forward(f, drop(RATES.ff, 1), at), drop(RATES.block, 3), at)
    np.testing.assert_array_equal(y, expected)
