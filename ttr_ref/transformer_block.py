"""One pre-norm transformer block (Xiong et al. 2020, arXiv:2002.04745, fig. 1b) whose attention sees the time of each token.

    u = x + time2vec(t)                          time enters before the norm, the residual stays clean
    h = x + drop_block(attention(rms_norm(u)))
    y = h + drop_block(drop_ff(geglu(rms_norm(h))))
"""

from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Inexact
from numpy import ndarray

from .config import BlockConfig
from .dropout import AFTER_ATTENTION, AFTER_FEED_FORWARD, FEED_FORWARD, Dropout, DropoutKey, dropout_at, dropout_backward, dropout_forward
from .feed_forward_geglu import (
    FeedForwardGegluCache,
    FeedForwardGegluParams,
    feed_forward_geglu_backward,
    feed_forward_geglu_forward,
    feed_forward_geglu_init,
)
from .float_dtype import at_precision_of, round_to_storage
from .kv_ring import KVRing
from .multi_head_attention import (
    MultiHeadAttentionCache,
    MultiHeadAttentionParams,
    multi_head_attention_backward,
    multi_head_attention_decode,
    multi_head_attention_forward,
)
from .parameters import as_masters, matrix_init
from .rms_norm import RMSNormCache, rms_norm_backward, rms_norm_forward
from .rope import rope_init
from .time2vec import Time2VecCache, Time2VecParams, time2vec_backward, time2vec_forward, time2vec_init
from .time_bias import time_bias_init
from .timeline import Timeline


class TransformerBlockParams(NamedTuple):
    """The block's parts in the order of the data; time2vec is None in a block without it."""

    time2vec: Time2VecParams | None
    norm_attention: Inexact[ndarray, "E"]
    attention: MultiHeadAttentionParams
    norm_feed_forward: Inexact[ndarray, "E"]
    feed_forward: FeedForwardGegluParams


class Dropouts(NamedTuple):
    """The dropouts of one block outside its attention."""

    after_attention: Dropout | None
    feed_forward: Dropout | None
    after_feed_forward: Dropout | None


class TransformerBlockCache(NamedTuple):
    """What backward needs."""

    time2vec: Time2VecCache | None
    norm_attention: RMSNormCache
    attention: MultiHeadAttentionCache
    norm_feed_forward: RMSNormCache
    feed_forward: FeedForwardGegluCache
    at: Timeline
    drops: Dropouts
    config: BlockConfig


def transformer_block_init(config: BlockConfig, rng: np.random.Generator, layers: int = 1) -> TransformerBlockParams:
    """Master weights of one of `layers` blocks: projections N(0, 1/fan-in), those that write into the residual smaller by √(2·layers) (Radford et
    al. 2019, §2.3), norms 1. float64 for f64, else float32; frequencies are float64 always.
    """
    e, d = config.embed_dim, config.head_dim
    params = TransformerBlockParams(
        time2vec_init(e, config.time) if config.time2vec else None,
        np.ones(e),
        MultiHeadAttentionParams(
            matrix_init(rng, e, e + 2 * config.groups * d),
            matrix_init(rng, e, e, 1 / np.sqrt(2 * layers)),
            time_bias_init(config),
            rope_init(config),
        ),
        np.ones(e),
        feed_forward_geglu_init(config, rng, layers),
    )
    return as_masters(params, config.float_dtype)


def attention_input(
    x: Inexact[ndarray, "B T E"], params: TransformerBlockParams, at: Timeline, config: BlockConfig
) -> tuple[Inexact[ndarray, "B T E"], Time2VecCache | None, RMSNormCache]:
    """rms_norm(x + time2vec(t))."""
    time2vec_cache = None
    if params.time2vec is not None:
        features, time2vec_cache = time2vec_forward(at, params.time2vec, config.time)
        x = round_to_storage(x + at_precision_of(x, features), config.float_dtype)
    normed, norm_cache = rms_norm_forward(x, params.norm_attention, config.norm_eps)
    return round_to_storage(normed, config.float_dtype), time2vec_cache, norm_cache


def feed_forward_part(
    h: Inexact[ndarray, "B T E"], params: TransformerBlockParams, at: Timeline, drops: Dropouts, config: BlockConfig
) -> tuple[Inexact[ndarray, "B T E"], RMSNormCache, FeedForwardGegluCache]:
    """h + drop_block(drop_ff(geglu(rms_norm(h))))."""
    normed, norm_cache = rms_norm_forward(h, params.norm_feed_forward, config.norm_eps)
    f, feed_forward_cache = feed_forward_geglu_forward(round_to_storage(normed, config.float_dtype), params.feed_forward, config)
    f = dropout_forward(dropout_forward(f, drops.feed_forward, at), drops.after_feed_forward, at)
    return round_to_storage(h + f, config.float_dtype), norm_cache, feed_forward_cache


def transformer_block_forward(
    x: Inexact[ndarray, "B T E"], params: TransformerBlockParams, at: Timeline, config: BlockConfig, key: DropoutKey | None = None, layer: int = 0
) -> tuple[Inexact[ndarray, "B T E"], TransformerBlockCache]:
    """(y, cache); key None draws no dropout, layer numbers the block's dropout sites."""
    drops = Dropouts(
        dropout_at(config.dropout.block, key, layer, AFTER_ATTENTION),
        dropout_at(config.dropout.ff, key, layer, FEED_FORWARD),
        dropout_at(config.dropout.block, key, layer, AFTER_FEED_FORWARD),
    )
    normed, time2vec_cache, norm_attention = attention_input(x, params, at, config)
    a, attention_cache = multi_head_attention_forward(normed, params.attention, at, config, key, layer)
    h = round_to_storage(x + dropout_forward(a, drops.after_attention, at), config.float_dtype)
    y, norm_feed_forward, feed_forward_cache = feed_forward_part(h, params, at, drops, config)
    return y, TransformerBlockCache(time2vec_cache, norm_attention, attention_cache, norm_feed_forward, feed_forward_cache, at, drops, config)


def transformer_block_backward(
    dy: Inexact[ndarray, "B T E"], cache: TransformerBlockCache
) -> tuple[Inexact[ndarray, "B T E"], TransformerBlockParams]:
    """(dx, dparams).

    A residual sum hands its gradient to both branches: dh = dy + (through the feed-forward), dx = dh + (through attention).
    u = x + time2vec(t) hands du to both x and the features.
    """
    at, drops = cache.at, cache.drops
    store = partial(round_to_storage, dtype=cache.config.float_dtype)
    df = dropout_backward(dropout_backward(dy, drops.after_feed_forward, at), drops.feed_forward, at)
    dnormed, dfeed_forward = feed_forward_geglu_backward(store(df), cache.feed_forward)
    dh, dnorm_feed_forward = rms_norm_backward(store(dnormed), cache.norm_feed_forward)
    dh = store(dy + dh)
    dnormed, dattention = multi_head_attention_backward(store(dropout_backward(dh, drops.after_attention, at)), cache.attention)
    du, dnorm_attention = rms_norm_backward(store(dnormed), cache.norm_attention)
    dtime2vec = None if cache.time2vec is None else time2vec_backward(du, cache.time2vec)
    return store(dh + du), TransformerBlockParams(dtime2vec, dnorm_attention, dattention, dnorm_feed_forward, dfeed_forward)


def transformer_block_decode(
    x: Inexact[ndarray, "B 1 E"], params: TransformerBlockParams, at: Timeline, ring: KVRing, config: BlockConfig
) -> tuple[Inexact[ndarray, "B 1 E"], KVRing]:
    """One more token in every row, at the place `at`: its output and the ring that holds it."""
    normed, _, _ = attention_input(x, params, at, config)
    a, ring = multi_head_attention_decode(normed, params.attention, at, ring, config)
    h = round_to_storage(x + a, config.float_dtype)
    return feed_forward_part(h, params, at, Dropouts(None, None, None), config)[0], ring
