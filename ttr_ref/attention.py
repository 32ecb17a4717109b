"""Scaled dot-product attention with a bias in time, as one full matrix (Vaswani et al. 2017, arXiv:1706.03762, eq. 1).

    S_ij  = q_i · k_j / √D + b_h(t_i − t_j)     for keys j that query i reads, −∞ elsewhere
    P     = softmax_j(S)
    O_i   = Σ_j m_ij P_ij v_j                   m: dropout
    LSE_i = ln Σ_j exp S_ij

H query heads share G heads of keys and values: head h reads head h // (H/G) (Ainslie et al. 2023, arXiv:2305.13245). A query that reads nothing has
O = 0, LSE = −∞ and passes no gradient. What is not read, be it masked, padding or a stale slot, changes nothing, even if it is NaN.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Inexact
from numpy import ndarray

from .config import TimeConfig
from .dropout import Dropout, attention_mask
from .time_bias import TimeBias, TimeBiasCache, time_bias_backward, time_bias_forward
from .timeline import Timeline, key_set, time_differences


class AttentionCache(NamedTuple):
    """What backward needs. `mask` is dropout's, 1 without dropout."""

    q: Inexact[ndarray, "B H T_q D"]
    k: Inexact[ndarray, "B H T_k D"]
    v: Inexact[ndarray, "B H T_k D"]
    read: Bool[ndarray, "B 1 T_q T_k"]
    p: Inexact[ndarray, "B H T_q T_k"]
    mask: Float[ndarray, "..."]
    o: Inexact[ndarray, "B H T_q D"]
    bias: TimeBiasCache
    groups: int


def attention_forward(
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
) -> tuple[Inexact[ndarray, "B H T_q D"], Inexact[ndarray, "B H T_q"], AttentionCache]:
    """(O, LSE, cache).

    Raises ValueError if H is not a multiple of G, or if a causal query reads a key later in time.
    """
    heads, groups = q.shape[1], k.shape[1]
    k, v = shared_by(heads, k), shared_by(heads, v)
    s, read, bias_cache = scores(q, k, at_q, at_k, bias, time, causal, window)
    top = row_maximum(s)
    e = np.exp(s - top)
    total = e.sum(axis=-1, keepdims=True)
    some = read.any(axis=-1, keepdims=True)
    p = np.where(read, e / np.where(some, total, 1), 0)  # a row that reads NaN is NaN, but only where it reads
    mask = np.ones(()) if drop is None else attention_mask(drop, at_q, at_k, heads)
    mask = mask.astype(p.real.dtype)
    o = weighted_sum(p * mask, v, read)
    lse = np.where(some, top + np.log(np.where(some, total, 1)), -np.inf)[..., 0]
    return o, lse, AttentionCache(q, k, v, read, p, mask, o, bias_cache, groups)


def attention_backward(
    do: Inexact[ndarray, "B H T_q D"], dlse: Inexact[ndarray, "B H T_q"] | None, cache: AttentionCache
) -> tuple[Inexact[ndarray, "B H T_q D"], Inexact[ndarray, "B G T_k D"], Inexact[ndarray, "B G T_k D"], TimeBias]:
    """(dq, dk, dv, dbias) from the gradients of O and of LSE (None: LSE is not used).

    Through O = (m ∘ P) V:         dV = (m ∘ P)ᵀ dO,   dP = m ∘ (dO Vᵀ)
    Through the softmax:           ∂P_ij/∂S_il = P_ij (δ_jl − P_il), so dS_ij = P_ij (dP_ij − Σ_l P_il dP_il)
    and the sum needs no matrix:   Σ_l P_il m_il (dO_i · v_l) = dO_i · O_i
    Through LSE:                   ∂LSE_i/∂S_ij = P_ij, so dLSE_i joins the bracket
    Through S = Q Kᵀ/√D + b:       dQ = dS K/√D,   dK = dSᵀ Q/√D,   db = dS
    """
    q, k, v, read, p, mask, o, bias_cache, groups = cache
    scale = q.shape[-1] ** -0.5
    dp = (do @ v.swapaxes(-1, -2)) * mask
    bracket = dp - (do * o).sum(axis=-1, keepdims=True)
    if dlse is not None:
        bracket = bracket + dlse[..., None]
    ds = np.where(read, p * bracket, 0)
    dq = weighted_sum(ds, k, read) * scale
    dk = weighted_sum(ds.swapaxes(-1, -2), q, read.swapaxes(-1, -2)) * scale
    dv = weighted_sum((p * mask).swapaxes(-1, -2), do, read.swapaxes(-1, -2))
    return dq, summed_over_sharers(groups, dk), summed_over_sharers(groups, dv), time_bias_backward(ds, bias_cache)


def scores(
    q: Inexact[ndarray, "B H T_q D"],
    k: Inexact[ndarray, "B H T_k D"],
    at_q: Timeline,
    at_k: Timeline,
    bias: TimeBias,
    time: TimeConfig,
    causal: bool,
    window: int | None,
) -> tuple[Inexact[ndarray, "B H T_q T_k"], Bool[ndarray, "B 1 T_q T_k"], TimeBiasCache]:
    """S with −∞ where nothing is read, where that is not so, and what the bias needs for backward."""
    read = key_set(at_q, at_k, causal, window)
    delta = time_differences(at_q, at_k, read, causal).astype(q.real.dtype)
    b, bias_cache = time_bias_forward(delta, bias, time)
    scale = q.shape[-1] ** -0.5
    s = (q * scale) @ k.swapaxes(-1, -2) + b
    return np.where(read[:, None], s, -np.inf), read[:, None], bias_cache


def row_maximum(s: Inexact[ndarray, "B H T_q T_k"]) -> Float[ndarray, "B H T_q 1"]:
    """The largest score of each row, 0 for an empty row: softmax does not change when it is taken off, and no exponential overflows.

    A constant for the derivative, hence real.
    """
    top = s.real.max(axis=-1, keepdims=True, initial=-np.inf)
    return np.where(top == -np.inf, 0, top)


def weighted_sum(
    weights: Inexact[ndarray, "B H I J"], values: Inexact[ndarray, "B H J D"], read: Bool[ndarray, "B 1 I J"]
) -> Inexact[ndarray, "B H I D"]:
    """weights @ values that reads no value where `read` is False; in a matrix product 0 · NaN would be NaN."""
    unusable = ~np.isfinite(values)
    if not unusable.any():
        return weights @ values
    spoiled = read.astype(np.float64) @ unusable > 0
    return np.where(spoiled, np.nan, weights @ np.where(unusable, 0, values))


def shared_by(heads: int, kv: Inexact[ndarray, "B G T_k D"]) -> Inexact[ndarray, "B H T_k D"]:
    """Each of the G heads of keys or values given to the H/G query heads that read it."""
    groups = kv.shape[1]
    if heads % groups != 0:
        raise ValueError(f"attention: {heads} query heads cannot share {groups} key/value heads evenly")
    return np.repeat(kv, heads // groups, axis=1)


def summed_over_sharers(groups: int, dkv: Inexact[ndarray, "B H T_k D"]) -> Inexact[ndarray, "B G T_k D"]:
    """The gradient of a shared head is the sum over those who read it."""
    rows, heads, places, width = dkv.shape
    return dkv.reshape(rows, groups, heads // groups, places, width).sum(axis=2)
