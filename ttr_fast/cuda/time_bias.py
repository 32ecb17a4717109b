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

from typing import NamedTuple

from jaxtyping import Inexact
from numpy import ndarray

from ttr_fast.cuda.jit import blocks_for, cuda, inner, kernel
from ttr_fast.cuda.numbers import exp, log1p, log2, number
from ttr_ref.config import TimeConfig
from ttr_ref.time_bias import ExpBias, LinearBias, LogBias, NoBias, TableBias, TimeBias

NONE, LINEAR, LOG, EXP, TABLE = range(5)
THREADS = 32
MOST_TERMS = 4
SUMS = 2 * MOST_TERMS
"""Sums that a thread keeps."""


class BiasTable(NamedTuple):
    """What a kernel is told."""

    kind: int
    terms: int
    rate: Inexact[ndarray, "H"]
    parameters: Inexact[ndarray, "H n"]


def described(bias: TimeBias, time: TimeConfig) -> tuple[int, int, float, int]:
    """(kind, terms or knots, the rate where it is no parameter, columns of the parameters)."""
    match bias:
        case NoBias():
            return NONE, 0, 0.0, 1
        case LinearBias():
            return LINEAR, 0, 1 / time.unit, 1
        case LogBias():
            return LOG, 0, 0.0, 1
        case ExpBias(alpha, _):
            return EXP, alpha.shape[1], 1.0, 2 * alpha.shape[1]
        case TableBias(values):
            return TABLE, values.shape[1], 1 / time.shortest, values.shape[1]


def sums_of(table: BiasTable) -> int:
    """How many sums over pairs each head has."""
    return {NONE: 0, LINEAR: 1, LOG: 2, EXP: 2 * table.terms, TABLE: table.terms}[table.kind]


def two_tables(bias: TimeBias, spare: Inexact[ndarray, "H n"]) -> tuple[ndarray, ndarray]:
    """The one or two parameters of a bias (or their gradients), (H, n) each; `spare` where there is none."""
    tables = [leaf.reshape(leaf.shape[0], -1) for leaf in bias]
    return (*tables, spare, spare)[0], (*tables, spare, spare)[1]


@inner
def softplus(a):
    """ln(1 + e^a), without overflow."""
    return max(a, number(a, 0)) + log1p(exp(-abs(a)))


@kernel("int64, C, C[:, ::1], C[:, ::1], C[::1], C[:, ::1]", registers=40, threads=THREADS)
def fill_table(kind, fixed, first, second, rate, parameters):
    """One thread for each head."""
    h = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if h < rate.size:
        rate[h] = exp(-second[h, 0]) if kind == LOG else fixed
        if kind == NONE:
            parameters[h, 0] = number(rate, 0)
        elif kind in (LINEAR, LOG):
            parameters[h, 0] = -softplus(first[h, 0])
        else:
            for m in range(first.shape[1]):
                parameters[h, m] = first[h, m]
                if kind == EXP:
                    parameters[h, first.shape[1] + m] = exp(second[h, m])


def bias_table(bias: TimeBias, time: TimeConfig, rate, parameters) -> BiasTable:
    """The bias as kernels take it, in rate (H,) and parameters (H, n), n the last of described(); all in the type of arithmetic."""
    kind, terms, fixed, _ = described(bias, time)
    first, second = two_tables(bias, parameters)
    fill_table[blocks_for(rate.size, THREADS), THREADS](kind, rate.dtype.type(fixed), first, second, rate, parameters)
    return BiasTable(kind, terms, rate, parameters)


@inner
def knot_place(p, y, terms):
    """u = log₂(1 + Δ rate), at most that of the last knot, in the type of p."""
    return min(log2(number(p, 1) + y), number(p, terms - 1))


@inner
def left_knot(u, terms):
    """The knot below u."""
    return min(int(u), terms - 2)


@inner
def head_bias(kind, terms, rate, parameters, h):
    """The bias of a head: the fields of BiasTable, and p₀, which is best read once."""
    return kind, terms, rate[h], parameters[h, 0], parameters[h]


@inner
def bias_of(bias, delta):
    """b(Δ); bias: head_bias."""
    kind, terms, rate, slope, p = bias
    y = delta * rate
    b = number(p, 0)
    if kind == LINEAR:
        b = slope * y
    elif kind == LOG:
        b = slope * log1p(y)
    elif kind == EXP:
        for m in range(terms):
            b += p[m] * exp(-p[terms + m] * delta)
    elif kind == TABLE:
        u = knot_place(p, y, terms)
        k = left_knot(u, terms)
        f = u - number(p, k)
        b = (number(p, 1) - f) * p[k] + f * p[k + 1]
    return b


@inner
def add_bias_sums(bias, delta, g, sums):
    """Add a pair's share to the thread's column of sums (SUMS, threads)."""
    kind, terms, rate, _, p = bias
    y, t = delta * rate, cuda.threadIdx.x
    if kind == LINEAR:
        sums[0, t] += g * y
    elif kind == LOG:
        sums[0, t] += g * log1p(y)
        sums[MOST_TERMS, t] += g * (y / (number(p, 1) + y))
    elif kind == EXP:
        for m in range(terms):
            e = g * exp(-p[terms + m] * delta)
            sums[m, t] += e
            sums[MOST_TERMS + m, t] += e * delta


@inner
def share_of_knot(g, u, knot, terms):
    """What a pair adds to a knot beside u, which is −1 where nothing is read."""
    k, share = left_knot(u, terms), number(u, 0)
    if u >= 0 and k == knot:
        share = g * (number(u, k + 1) - u)
    elif u >= 0 and k + 1 == knot:
        share = g * (u - number(u, k))
    return share


@inner
def add_to_knots(slopes, places, rows, begin, end, owner, owners, partial, terms):
    """Add the G of a tile of pairs, in that many rows and the columns from begin to end, to the knots beside u, which is −1 where nothing is read:
    partial (terms,) in global memory. This is number `owner` of `owners` threads, each of which has its own knots.
    """
    for knot in range(owner, terms, owners):
        s = number(slopes, 0)
        for i in range(rows):
            for j in range(begin, end):
                s += share_of_knot(slopes[i, j], places[i, j], knot, terms)
        partial[knot] += s


@kernel("int64, C[:, ::1], C[:, ::1], float64[:, ::1], C[:, ::1], C[:, ::1]", registers=48, threads=THREADS)
def chain_rule(kind, first, second, sums, dfirst, dsecond):
    """One thread for each head."""
    h = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if h < sums.shape[0]:
        if kind in (LINEAR, LOG):
            dfirst[h, 0] = -number(first, sums[h, 0]) / (number(first, 1) + exp(-first[h, 0]))
        if kind == LOG:
            dsecond[h, 0] = softplus(first[h, 0]) * number(first, sums[h, 1])
        for m in range(first.shape[1]):
            if kind in (EXP, TABLE):
                dfirst[h, m] = number(first, sums[h, m])
            if kind == EXP:
                dsecond[h, m] = -first[h, m] * exp(second[h, m]) * number(first, sums[h, first.shape[1] + m])


def bias_gradient(bias: TimeBias, table: BiasTable, sums, dbias: TimeBias) -> None:
    """The parameters' gradients from the sums over all pairs (H, sums_of(table)) float64."""
    if table.kind != NONE:
        chain_rule[blocks_for(sums.shape[0], THREADS), THREADS](
            table.kind, *two_tables(bias, table.parameters), sums, *two_tables(dbias, table.parameters)
        )
