"""Multi-head attention (Vaswani et al. 2017, §3.2.2) with rotary keys and queries, a bias in time, shared key/value heads.

    [q | k | v] = x W_qkv         H, G and G heads of D features
    q, k        ← rope(q), rope(k)
    y           = [o_1 … o_H] W_out,   o = attention(q, k, v)

`multi_head_attention_decode` does the same for one more token with the keys and values of the past in a ring buffer.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Inexact
from numpy import ndarray

from .attention import AttentionCache, attention_backward, attention_forward
from .config import BlockConfig
from .dropout import ATTENTION, WHOLE_HEAD, Dropout, DropoutKey, dropout_at, head_dropout_backward, head_dropout_forward
from .float_dtype import round_to_storage
from .kv_ring import KVRing, kv_ring_append, kv_ring_timeline
from .linear import linear_backward
from .rope import RopeCache, rope_backward, rope_forward
from .time_bias import TimeBias
from .timeline import Timeline


class MultiHeadAttentionParams(NamedTuple):
    """Projections, laid out (in, out), the bias in time, the frequencies of the pairs turned by time."""

    w_qkv: Inexact[ndarray, "E H_plus_2G_times_D"]
    w_out: Inexact[ndarray, "E E"]
    time_bias: TimeBias
    rope_omega: Inexact[ndarray, "P_time"]


class MultiHeadAttentionCache(NamedTuple):
    """What backward needs."""

    x: Inexact[ndarray, "B T E"]
    params: MultiHeadAttentionParams
    q_rope: RopeCache
    k_rope: RopeCache
    attention: AttentionCache
    o: Inexact[ndarray, "B T E"]
    at: Timeline
    config: BlockConfig
    drop_head: Dropout | None


def split_heads(x: Inexact[ndarray, "B T E"], heads: int) -> Inexact[ndarray, "B heads T D"]:
    """Features of one head after the other → an axis of heads."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def merge_heads(x: Inexact[ndarray, "B heads T D"]) -> Inexact[ndarray, "B T E"]:
    """The inverse of split_heads."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def project(
    x: Inexact[ndarray, "B T E"], params: MultiHeadAttentionParams, at: Timeline, config: BlockConfig
) -> tuple[Inexact[ndarray, "B H T D"], Inexact[ndarray, "B G T D"], Inexact[ndarray, "B G T D"], RopeCache, RopeCache]:
    """Rotated queries and keys, values, all rounded to storage; and what turning them back needs."""
    store = partial(round_to_storage, dtype=config.float_dtype)
    h, g, d = config.heads, config.groups, config.head_dim
    q, k, v = np.split(x @ params.w_qkv, [h * d, (h + g) * d], axis=-1)
    q, q_rope = rope_forward(split_heads(q, h), at, params.rope_omega, config)
    k, k_rope = rope_forward(split_heads(k, g), at, params.rope_omega, config)
    return store(q), store(k), store(split_heads(v, g)), q_rope, k_rope


def multi_head_attention_forward(
    x: Inexact[ndarray, "B T E"], params: MultiHeadAttentionParams, at: Timeline, config: BlockConfig, key: DropoutKey | None = None, layer: int = 0
) -> tuple[Inexact[ndarray, "B T E"], MultiHeadAttentionCache]:
    """Every token reads its key set; key None draws no dropout."""
    q, k, v, q_rope, k_rope = project(x, params, at, config)
    drop = dropout_at(config.dropout.attn, key, layer, ATTENTION)
    drop_head = dropout_at(config.dropout.head, key, layer, WHOLE_HEAD)
    o, _, attention = attention_forward(q, k, v, at, at, params.time_bias, config.time, config.causal, config.window, drop)
    merged = round_to_storage(merge_heads(head_dropout_forward(o, drop_head, at)), config.float_dtype)
    y = merged @ params.w_out
    return y, MultiHeadAttentionCache(x, params, q_rope, k_rope, attention, merged, at, config, drop_head)


def multi_head_attention_backward(
    dy: Inexact[ndarray, "B T E"], cache: MultiHeadAttentionCache
) -> tuple[Inexact[ndarray, "B T E"], MultiHeadAttentionParams]:
    """(dx, dparams): the forward's steps in reverse. ω turns queries and keys, so its gradient is the sum of both."""
    x, params, q_rope, k_rope, attention, merged, at, config, drop_head = cache
    store = partial(round_to_storage, dtype=config.float_dtype)
    dmerged, dw_out = linear_backward(dy, merged, params.w_out)
    do = head_dropout_backward(store(split_heads(dmerged, config.heads)), drop_head, at)
    dq, dk, dv, dbias = attention_backward(do, None, attention)
    dq, domega_q = rope_backward(store(dq), q_rope)
    dk, domega_k = rope_backward(store(dk), k_rope)
    dqkv = np.concatenate([merge_heads(dq), merge_heads(dk), merge_heads(store(dv))], axis=-1)
    dx, dw_qkv = linear_backward(dqkv, x, params.w_qkv)
    return dx, MultiHeadAttentionParams(dw_qkv, dw_out, dbias, domega_q + domega_k)


def multi_head_attention_decode(
    x: Inexact[ndarray, "B 1 E"], params: MultiHeadAttentionParams, at: Timeline, ring: KVRing, config: BlockConfig
) -> tuple[Inexact[ndarray, "B 1 E"], KVRing]:
    """One more token in every row, at the place `at` (kv_ring_next): its output and the ring that holds it."""
    q, k, v, _, _ = project(x, params, at, config)
    ring = kv_ring_append(ring, k[:, :, 0], v[:, :, 0], at.time[:, 0], config.float_dtype)
    keys, values = ring.k.astype(q.dtype), ring.v.astype(q.dtype)
    o, _, _ = attention_forward(q, keys, values, at, kv_ring_timeline(ring), params.time_bias, config.time, True, ring.window)
    return round_to_storage(merge_heads(o), config.float_dtype) @ params.w_out, ring
