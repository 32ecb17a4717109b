"""The Δt bias in self-attention: b_h(Δ), added to the score of a query and a key that lie Δ apart in time.

| kind | b(Δ) | idea |
|---|---|---|
| none | 0 | |
| linear | −s Δ/unit, s = softplus(a) | ALiBi (Press et al. 2022, arXiv:2108.12409) in time instead of position |
| log | −s ln(1 + Δ/c), s = softplus(a), c = e^ρ | a power law: attention fades like (1 + Δ/c)^−s |
| exp | Σ_m α_m e^(−β_m Δ), β_m = e^(λ_m) | the kernels of a Hawkes process (Hawkes 1971): recent events excite or inhibit |
| table | (1 − f) T[k] + f T[k+1], u = log₂(1 + Δ/c₀), k = ⌊u⌋, f = u − k | any shape: T5's buckets (Raffel et al. 2020) joined by lines |

Parameters belong to a head. Δ ≥ 0 is in the unit of the data. Since every kind is built from +, ·, ln and exp, its derivative is read off
term by term; G = ∂L/∂b below. A new kind is one NamedTuple and one branch in each of the three functions.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Inexact
from numpy import ndarray

from .config import BlockConfig, TimeConfig


class NoBias(NamedTuple):
    """b = 0."""


class LinearBias(NamedTuple):
    """s = softplus(a) per unit of time."""

    a: Inexact[ndarray, "H"]


class LogBias(NamedTuple):
    """s = softplus(a), c = e^ρ in the unit of the data."""

    a: Inexact[ndarray, "H"]
    rho: Inexact[ndarray, "H"]


class ExpBias(NamedTuple):
    """M terms α e^(−e^λ Δ), e^λ per unit of the data."""

    alpha: Inexact[ndarray, "H M"]
    log_rate: Inexact[ndarray, "H M"]


class TableBias(NamedTuple):
    """Values at Δ = c₀ (2^k − 1), k = 0 … K − 1; constant behind the last knot."""

    table: Inexact[ndarray, "H K"]


TimeBias = NoBias | LinearBias | LogBias | ExpBias | TableBias


class TimeBiasCache(NamedTuple):
    """What backward needs."""

    delta: Float[ndarray, "B T_q T_k"]
    params: TimeBias
    time: TimeConfig


def softplus(a: Inexact[ndarray, "*shape"]) -> Inexact[ndarray, "*shape"]:
    """ln(1 + e^a), without overflow."""
    positive = np.where(a.real > 0, a, 0)
    return positive + np.log1p(np.exp(a - 2 * positive))


def sigmoid(a: Inexact[ndarray, "*shape"]) -> Inexact[ndarray, "*shape"]:
    """1 / (1 + e^−a), the derivative of softplus, without overflow."""
    return np.exp(-softplus(-a))


def per_head(a: Inexact[ndarray, "H"]) -> Inexact[ndarray, "H 1 1"]:
    """A parameter against (B, H, T_q, T_k)."""
    return a[:, None, None]


def knots(delta: Float[ndarray, "*shape"], c0: float, count: int) -> tuple[ndarray, Float[ndarray, "*shape"]]:
    """The left knot k of each Δ and the fraction f towards the next, clamped at the last knot."""
    u = np.minimum(np.log2(1 + delta / c0), count - 1)
    k = np.minimum(u.astype(np.int64), count - 2)
    return k, u - k.astype(u.dtype)


def time_bias_forward(
    delta: Float[ndarray, "B T_q T_k"], params: TimeBias, time: TimeConfig
) -> tuple[Inexact[ndarray, "B _ T_q T_k"], TimeBiasCache]:
    """b (B, H, T_q, T_k) of every Δ; for no bias (B, 1, T_q, T_k) zeros."""
    d = delta[:, None]
    match params:
        case NoBias():
            b = np.zeros_like(d)
        case LinearBias(a):
            b = -per_head(softplus(a)) * (d / time.unit)
        case LogBias(a, rho):
            b = -per_head(softplus(a)) * np.log1p(d * per_head(np.exp(-rho)))
        case ExpBias(alpha, log_rate):
            b = sum(per_head(alpha[:, m]) * np.exp(-per_head(np.exp(log_rate[:, m])) * d) for m in range(alpha.shape[1]))
        case TableBias(table):
            k, f = knots(delta, time.shortest, table.shape[1])
            b = np.moveaxis((1 - f) * table[:, k] + f * table[:, k + 1], 0, 1)
    return b, TimeBiasCache(delta, params, time)


def time_bias_backward(db: Inexact[ndarray, "B H T_q T_k"], cache: TimeBiasCache) -> TimeBias:
    """Gradients of the parameters, summed over batch, queries and keys; the times are data and have none."""
    delta, params, time = cache
    d = delta[:, None]

    def over_pairs(x: Inexact[ndarray, "B H T_q T_k"]) -> Inexact[ndarray, "H"]:
        return x.sum(axis=(0, 2, 3))

    match params:
        case NoBias():
            return NoBias()
        case LinearBias(a):
            ds = -over_pairs(db * (d / time.unit))
            return LinearBias(ds * sigmoid(a))
        case LogBias(a, rho):
            x = d * per_head(np.exp(-rho))  # Δ/c, and dx = −x dρ
            ds = -over_pairs(db * np.log1p(x))
            drho = softplus(a) * over_pairs(db * (x / (1 + x)))
            return LogBias(ds * sigmoid(a), drho)
        case ExpBias(alpha, log_rate):
            dalpha, dlog_rate = np.zeros_like(alpha), np.zeros_like(log_rate)
            for m in range(alpha.shape[1]):
                beta_delta = per_head(np.exp(log_rate[:, m])) * d
                e = np.exp(-beta_delta)
                dalpha[:, m] = over_pairs(db * e)
                dlog_rate[:, m] = -alpha[:, m] * over_pairs(db * beta_delta * e)
            return ExpBias(dalpha, dlog_rate)
        case TableBias(table):
            k, f = knots(delta, time.shortest, table.shape[1])
            dtable = np.zeros_like(table)
            for h in range(table.shape[0]):
                np.add.at(dtable[h], k, db[:, h] * (1 - f))
                np.add.at(dtable[h], k + 1, db[:, h] * f)
            return TableBias(dtable)


def inverse_softplus(s: Float64[ndarray, "*shape"]) -> Float64[ndarray, "*shape"]:
    """a with softplus(a) = s > 0."""
    return np.log(np.expm1(s))


def time_bias_init(config: BlockConfig) -> TimeBias:
    """Heads start with different reaches, as ALiBi's do: slopes 4 · 2^(−8h/H) for h = 0 … H − 1, so that the first sees little but the present
    and the last nearly everything alike; scales of time spread from the shortest gap to the span. exp and table start at zero: no bias.
    """
    heads, time = config.heads, config.time
    slopes = 4 * 2.0 ** (-8 * np.arange(heads) / heads)
    scales = np.log(np.geomspace(time.shortest, time.span, heads + 2)[1:-1])
    match config.time_bias:
        case "none":
            return NoBias()
        case "linear":
            return LinearBias(inverse_softplus(slopes))
        case "log":
            return LogBias(inverse_softplus(slopes), scales)
        case "exp":
            rates = -np.log(np.geomspace(time.shortest, time.span, config.exp_terms + 2)[1:-1])
            return ExpBias(np.zeros((heads, config.exp_terms)), np.tile(rates, (heads, 1)))
        case "table":
            return TableBias(np.zeros((heads, config.table_knots)))
