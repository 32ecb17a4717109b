"""Attention tile by tile: the same numbers as attention.py without ever holding a T × T matrix.

The online softmax (Milakov & Gimelshein 2018, arXiv:1805.02867, alg. 3; FlashAttention, Dao et al. 2022, arXiv:2205.14135, alg. 1) keeps for each
query a running maximum m, the sum l of exponentials relative to it, and the unnormalised output acc. A new tile of keys may raise the maximum to m′;
what was gathered before is then rescaled by e^(m − m′):

    m′ = max(m, max_j S_ij),   l ← l e^(m−m′) + Σ_j e^(S_ij−m′),   acc ← acc e^(m−m′) + Σ_j e^(S_ij−m′) v_j
    at the end  O = acc / l,  LSE = m + ln l

Backward (FlashAttention-2, Dao 2023, arXiv:2307.08691, alg. 2) needs no running quantities: LSE is known, so each tile's P = e^(S − LSE) is
recomputed.
This is the page to read before the fast kernels; they do the same with registers in place of arrays.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Inexact
from numpy import ndarray

from .attention import row_maximum, scores, shared_by, summed_over_sharers, weighted_sum
from .config import TimeConfig
from .dropout import Dropout, attention_mask
from .time_bias import TimeBias, time_bias_backward
from .timeline import Timeline
from .tree import tree_map

ALL = slice(None)


class BlockedAttentionCache(NamedTuple):
    """What backward needs: the inputs, O and LSE. Nothing here grows with T_q · T_k."""

    q: Inexact[ndarray, "B H T_q D"]
    k: Inexact[ndarray, "B G T_k D"]
    v: Inexact[ndarray, "B G T_k D"]
    at_q: Timeline
    at_k: Timeline
    bias: TimeBias
    time: TimeConfig
    causal: bool
    window: int | None
    drop: Dropout | None
    tile: int
    o: Inexact[ndarray, "B H T_q D"]
    lse: Inexact[ndarray, "B H T_q"]


def tiles(places: int, tile: int) -> list[slice]:
    """The tiles of an axis; the last may be shorter."""
    return [slice(start, min(start + tile, places)) for start in range(0, places, tile)]


def blocked_attention_forward(
    q: Inexact[ndarray, "B H T_q D"],
    k: Inexact[ndarray, "B G T_k D"],
    v: Inexact[ndarray, "B G T_k D"],
    at_q: Timeline,
    at_k: Timeline,
    bias: TimeBias,
    time: TimeConfig,
    causal: bool = True,
    window: int | None = None,
    drop: Dropout | None = None,
    tile: int = 16,
) -> tuple[Inexact[ndarray, "B H T_q D"], Inexact[ndarray, "B H T_q"], BlockedAttentionCache]:
    """(O, LSE, cache), as attention_forward; tiles are tile × tile."""
    heads = q.shape[1]
    k_h, v_h = shared_by(heads, k), shared_by(heads, v)
    kind = np.result_type(q, k, v, *bias)
    o, lse = np.zeros(q.shape, kind), np.zeros(q.shape[:3], kind)
    for i in tiles(q.shape[2], tile):
        at_i = at_q.places(ALL, i)
        m = np.full((*q.shape[:2], i.stop - i.start, 1), -np.inf, q.real.dtype)
        total, acc = np.zeros(m.shape, kind), np.zeros(q[:, :, i].shape, kind)
        for j in tiles(k.shape[2], tile):
            at_j = at_k.places(ALL, j)
            s, read, _ = scores(q[:, :, i], k_h[:, :, j], at_i, at_j, bias, time, causal, window)
            mask = np.ones(()) if drop is None else attention_mask(drop, at_i, at_j, heads)
            m_new = np.maximum(m, np.where(read.any(-1, keepdims=True), row_maximum(s), -np.inf))
            reference = np.where(m_new == -np.inf, 0, m_new)  # while nothing was read yet
            e = np.where(read, np.exp(s - reference), 0)
            rescale = np.exp(m - reference)
            total = total * rescale + e.sum(axis=-1, keepdims=True)
            acc = acc * rescale + weighted_sum(e * mask, v_h[:, :, j], read)
            m = m_new
        some = m > -np.inf
        total = np.where(some, total, 1)
        o[:, :, i] = acc / total
        lse[:, :, i] = np.where(some, m + np.log(total), -np.inf)[..., 0]
    return o, lse, BlockedAttentionCache(q, k, v, at_q, at_k, bias, time, causal, window, drop, tile, o, lse)


def blocked_attention_backward(
    do: Inexact[ndarray, "B H T_q D"], dlse: Inexact[ndarray, "B H T_q"] | None, cache: BlockedAttentionCache
) -> tuple[Inexact[ndarray, "B H T_q D"], Inexact[ndarray, "B G T_k D"], Inexact[ndarray, "B G T_k D"], TimeBias]:
    """(dq, dk, dv, dbias): the formulas of attention_backward, a tile at a time, summed over tiles in a fixed order."""
    q, k, v, at_q, at_k, bias, time, causal, window, drop, tile, o, lse = cache
    heads, groups, scale = q.shape[1], k.shape[1], q.shape[-1] ** -0.5
    k_h, v_h = shared_by(heads, k), shared_by(heads, v)
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k_h), np.zeros_like(v_h)
    dbias = tree_map(np.zeros_like, bias)
    offset = (do * o).sum(axis=-1, keepdims=True)
    if dlse is not None:
        offset = offset - dlse[..., None]
    for j in tiles(k.shape[2], tile):
        at_j = at_k.places(ALL, j)
        for i in tiles(q.shape[2], tile):
            at_i = at_q.places(ALL, i)
            s, read, bias_cache = scores(q[:, :, i], k_h[:, :, j], at_i, at_j, bias, time, causal, window)
            mask = np.ones(()) if drop is None else attention_mask(drop, at_i, at_j, heads)
            reference = np.where(read.any(-1, keepdims=True), lse[:, :, i, None], 0)
            p = np.where(read, np.exp(s - reference), 0)
            dp = (do[:, :, i] @ v_h[:, :, j].swapaxes(-1, -2)) * mask
            ds = np.where(read, p * (dp - offset[:, :, i]), 0)
            read_t = read.swapaxes(-1, -2)
            dq[:, :, i] += weighted_sum(ds, k_h[:, :, j], read) * scale
            dk[:, :, j] += weighted_sum(ds.swapaxes(-1, -2), q[:, :, i], read_t) * scale
            dv[:, :, j] += weighted_sum((p * mask).swapaxes(-1, -2), do[:, :, i], read_t)
            dbias = tree_map(np.add, dbias, time_bias_backward(ds, bias_cache))
    return dq, summed_over_sharers(groups, dk), summed_over_sharers(groups, dv), dbias
