"""The Δt bias of a pair of query and key on the GPU; the mathematics is in ttr_ref/time_bias.py.

A kernel is told the kind, the number of terms or knots, a rate and a row of parameters for each head:

| kind | b(Δ) | sums over pairs from which the gradients are made, G = ∂L/∂b |
|---|---|---|
| linear | p₀ Δ rate | Σ G Δ rate |
| log | p₀ ln(1 + Δ rate) | Σ G ln(1 + Δ rate), then Σ G Δ rate / (1 + Δ rate) |
| exp | Σ_m p_m e^(−p_{M+m} Δ) | Σ G e_m, then Σ G Δ e_m |
| table | between p_k and p_{k+1} | the shares of each knot |

A thread keeps the sums of its own pairs, the first half of them from 0 on and the second from MOST_TERMS on. Not so those of a table: there a thread
owns knots and goes through all pairs of a tile in order.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Inexact
from numpy import ndarray

from ttr_fast.cuda.jit import cuda, inner
from ttr_fast.cuda.numbers import exp, log1p, log2, number
from ttr_ref.config import TimeConfig
from ttr_ref.time_bias import ExpBias, LinearBias, LogBias, NoBias, TableBias, TimeBias, sigmoid, softplus
from ttr_ref.tree import tree_map

NONE, LINEAR, LOG, EXP, TABLE = range(5)
MOST_TERMS = 4
SUMS = 2 * MOST_TERMS
"""Sums that a thread keeps."""


class BiasTable(NamedTuple):
    """What a kernel is told."""

    kind: int
    terms: int
    rate: Inexact[ndarray, "H"]
    parameters: Inexact[ndarray, "H n"]


def bias_table(bias: TimeBias, time: TimeConfig, heads: int, compute: np.dtype) -> BiasTable:
    """The parameters as kernels take them."""

    def table(kind: int, terms: int, rate: Any, parameters: Any) -> BiasTable:
        return BiasTable(kind, terms, np.array(rate, compute), np.ascontiguousarray(parameters, compute))

    match bias:
        case NoBias():
            return table(NONE, 0, np.zeros(heads), np.zeros((heads, 1)))
        case LinearBias(a):
            return table(LINEAR, 0, np.full(heads, 1 / time.unit), -softplus(a.astype(np.float64))[:, None])
        case LogBias(a, rho):
            return table(LOG, 0, np.exp(-rho.astype(np.float64)), -softplus(a.astype(np.float64))[:, None])
        case ExpBias(alpha, log_rate):
            return table(EXP, alpha.shape[1], np.ones(heads), np.hstack([alpha, np.exp(log_rate.astype(np.float64))]))
        case TableBias(values):
            return table(TABLE, values.shape[1], np.full(heads, 1 / time.shortest), values)


def sums_of(table: BiasTable) -> int:
    """How many sums over pairs each head has."""
    return {NONE: 0, LINEAR: 1, LOG: 2, EXP: 2 * table.terms, TABLE: table.terms}[table.kind]


@inner
def knot_place(p, y, terms):
    """u = log₂(1 + Δ rate), at most that of the last knot, in the type of p."""
    return min(log2(number(p, 1) + y), number(p, terms - 1))


@inner
def left_knot(u, terms):
    """The knot below u."""
    return min(int(u), terms - 2)


@inner
def bias_of(bias, h, delta):
    """b(Δ) for head h; bias: the fields of BiasTable."""
    kind, terms, rate, p = bias
    y = delta * rate[h]
    b = number(p, 0)
    if kind == LINEAR:
        b = p[h, 0] * y
    elif kind == LOG:
        b = p[h, 0] * log1p(y)
    elif kind == EXP:
        for m in range(terms):
            b += p[h, m] * exp(-p[h, terms + m] * delta)
    elif kind == TABLE:
        u = knot_place(p, y, terms)
        k = left_knot(u, terms)
        f = u - number(p, k)
        b = (number(p, 1) - f) * p[h, k] + f * p[h, k + 1]
    return b


@inner
def add_bias_sums(bias, h, delta, g, sums):
    """Add a pair's share to the thread's column of sums (SUMS, threads)."""
    kind, terms, rate, p = bias
    y, t = delta * rate[h], cuda.threadIdx.x
    if kind == LINEAR:
        sums[0, t] += g * y
    elif kind == LOG:
        sums[0, t] += g * log1p(y)
        sums[MOST_TERMS, t] += g * (y / (number(p, 1) + y))
    elif kind == EXP:
        for m in range(terms):
            e = g * exp(-p[h, terms + m] * delta)
            sums[m, t] += e
            sums[MOST_TERMS + m, t] += e * delta


@inner
def add_to_knots(slopes, places, side, partial, terms):
    """Add the G of a tile (side, side) of pairs to the knots beside u, which is −1 where nothing is read: partial (terms,) in global memory."""
    for knot in range(cuda.threadIdx.x, terms, cuda.blockDim.x):
        s = number(slopes, 0)
        for i in range(side):
            for j in range(side):
                u = places[i, j]
                k = left_knot(u, terms)
                if u >= 0 and k == knot:
                    s += slopes[i, j] * (number(slopes, k + 1) - u)
                elif u >= 0 and k + 1 == knot:
                    s += slopes[i, j] * (u - number(slopes, k))
        partial[knot] += s


def bias_gradient(bias: TimeBias, sums: Float64[ndarray, "H n"]) -> TimeBias:
    """The parameters' gradients from the sums over all pairs."""
    match bias:
        case NoBias():
            return bias
        case LinearBias(a):
            gradient: TimeBias = LinearBias(-sums[:, 0] * sigmoid(a.astype(np.float64)))
        case LogBias(a, _):
            wide = a.astype(np.float64)
            gradient = LogBias(-sums[:, 0] * sigmoid(wide), softplus(wide) * sums[:, 1])
        case ExpBias(alpha, log_rate):
            m = alpha.shape[1]
            gradient = ExpBias(sums[:, :m], -alpha.astype(np.float64) * np.exp(log_rate.astype(np.float64)) * sums[:, m:])
        case TableBias():
            gradient = TableBias(sums)
    return tree_map(lambda g, p: g.astype(p.dtype), gradient, bias)

