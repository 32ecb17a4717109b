"""Attention backward on the GPU; the mathematics is in ttr_ref/attention.py, the algorithm in ttr_ref/blocked_attention.py.

Ladder:
1. Two passes that recompute P from LSE, so that every gradient has one owner and no number is added to by two blocks. Pass one: a block owns a tile
   of queries of one head and goes through its keys: dQ, and the sums of the bias's gradient. Pass two: a block owns a tile of keys and values of one
   group and goes through the heads that share them and through their queries, in order: dK, dV. Measured: not yet, no device.
"""

import functools
from typing import Any

import numpy as np

from ttr_fast.cuda.attention_tiles import (
    BIAS,
    DROP,
    PLAN,
    SIDE,
    SPECS,
    THREADS,
    Spec,
    chain_maker,
    difference,
    fetch,
    kept,
    pair_is_read,
    pair_score,
    row_adder,
)
from ttr_fast.cuda.jit import cuda, kernel
from ttr_fast.cuda.numbers import exp, load, number
from ttr_fast.cuda.time_bias import MOST_TERMS, SUMS, TABLE, add_bias_sums, add_to_knots, head_bias, knot_place

QUERY_REGISTERS = {("float32", 32): 232, ("float32", 64): 224, ("float32", 128): 200, ("float64", 32): 240}
KEY_REGISTERS = {("float32", 32): 200, ("float32", 64): 240, ("float32", 128): 224, ("float64", 32): 208}
OPERANDS = "S[:, :, :, ::1], S[:, :, :, ::1], S[:, :, :, ::1], S[:, :, :, ::1], C[:, :, ::1], C[:, :, ::1]"
QUERY_SIGNATURE = f"{OPERANDS}, C[:, :, :, ::1], float64[:, :, :, ::1], int64[:, :, ::1], {PLAN}, {BIAS}, C, {DROP}"
KEY_SIGNATURE = f"{OPERANDS}, C[:, :, :, ::1], C[:, :, :, ::1], int64[:, :, ::1], {PLAN}, {BIAS}, C, {DROP}"


@kernel("S[:, :, :, ::1], S[:, :, :, ::1], C[:, :, ::1], C[:, :, ::1]", registers=56, threads=THREADS)
def bracket_rows(o, do, dlse, bracket):
    """bracket = dO · O − dLSE of every query; a thread a query."""
    at, heads, places = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, o.shape[1], o.shape[2]
    if at < bracket.size:
        b, h, i = at // (heads * places), at // places % heads, at % places
        s = -dlse[b, h, i]
        for f in range(o.shape[3]):
            s += load(do, (b, h, i, f)) * load(o, (b, h, i, f))
        bracket[b, h, i] = s


def shared_bytes(spec: Spec, sums: int = 0) -> int:
    """Four panels of rows, two tiles of pairs, that many sums of each thread."""
    return np.dtype(spec.compute).itemsize * (spec.tile * (4 * (spec.width + 1) + 2 * (spec.tile + 1)) + sums * THREADS)


@functools.cache
def query_kernel(spec: Spec) -> Any:
    """Pass one for a width of heads and a type of arithmetic."""
    tile, width, dtype = spec.tile, spec.width, np.dtype(spec.compute).type
    part, columns, row, wide = tile // SIDE, width // SIDE, width + 1, tile + 1
    chains, add_row = chain_maker(spec), row_adder(spec)

    @kernel(
        spec.signatures(QUERY_SIGNATURE), registers=QUERY_REGISTERS[spec], shared=shared_bytes(spec, SUMS), threads=THREADS,
        variant=f"{spec.compute} {width}",
    )  # fmt: skip
    def query_gradients(
        q, k, v, do, lse, bracket, dq, partial, reach, first, stop, time_q, time_k, position_q, position_k, document_q, causal, kind, terms, rate,
        parameters, scale, words, factors,
    ):  # fmt: skip
        """Block (x, h, b) has the tile x of queries of head h of row b; partial[b, x, h] are its sums of the bias's gradient."""
        queries, upstream = cuda.shared.array((tile, row), dtype), cuda.shared.array((tile, row), dtype)
        keys, values = cuda.shared.array((tile, row), dtype), cuda.shared.array((tile, row), dtype)
        slopes, places = cuda.shared.array((tile, wide), dtype), cuda.shared.array((tile, wide), dtype)
        collected, sums = cuda.shared.array((SUMS, THREADS), dtype), cuda.local.array((part, columns), dtype)
        plan = (first, stop, time_q, time_k, position_q, position_k, document_q, causal)
        block, h, b, t = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z, cuda.threadIdx.x
        i, j, heads, d, start = t // SIDE, t % SIDE, q.shape[1], q.shape[3], block * tile
        g, bias = h // (heads // k.shape[1]), head_bias(kind, terms, rate, parameters, h)
        fetch(q, b, h, start, width, tile, queries)
        fetch(do, b, h, start, width, tile, upstream)
        for m in range(SUMS):
            collected[m, t] = number(lse, 0)
        for r in range(part):
            for f in range(columns):
                sums[r, f] = number(lse, 0)
        for m in range(t, partial.shape[3], THREADS):
            partial[b, block, h, m] = 0.0
        for begin in range(reach[b, block, 0] // tile * tile, reach[b, block, 1], tile):
            fetch(k, b, g, begin, width, tile, keys)
            fetch(v, b, g, begin, width, tile, values)
            cuda.syncthreads()
            chains(queries, keys, d, slopes)
            chains(upstream, values, d, places)
            for r in range(i, tile, SIDE):
                for c in range(j, tile, SIDE):
                    query, key, slope, place = start + r, begin + c, number(lse, 0), number(lse, -1)
                    if pair_is_read(plan, b, query, key):
                        delta = difference(plan, lse, b, query, key)
                        p = exp(pair_score(slopes[r, c], scale, bias, delta) - lse[b, h, query])
                        slope = p * (kept(places[r, c], plan, words, factors, heads, b, h, query, key) - bracket[b, h, query])
                        add_bias_sums(bias, delta, slope, collected)
                        if kind == TABLE:
                            place = knot_place(parameters, delta * bias[2], terms)
                    slopes[r, c], places[r, c] = slope, place
            cuda.syncthreads()
            for c in range(min(tile, reach[b, block, 1] - begin)):
                for r in range(part):
                    add_row(slopes[i + SIDE * r, c], r, keys, c, sums)
            if kind == TABLE:
                add_to_knots(slopes, places, tile, 0, tile, t, THREADS, partial[b, block, h], terms)
            cuda.syncthreads()
        for r in range(part):
            for f in range(columns):
                if start + i + SIDE * r < q.shape[2] and j + SIDE * f < d:
                    dq[b, h, start + i + SIDE * r, j + SIDE * f] = sums[r, f] * scale
        if kind != TABLE:
            cuda.syncthreads()
            half = (partial.shape[3] + 1) // 2
            for m in range(t, partial.shape[3], THREADS):
                whole = number(lse, 0)
                for other in range(THREADS):
                    whole += collected[m if m < half else MOST_TERMS + m - half, other]
                partial[b, block, h, m] = whole

    return query_gradients


@functools.cache
def key_kernel(spec: Spec) -> Any:
    """Pass two for a width of heads and a type of arithmetic."""
    tile, width, dtype = spec.tile, spec.width, np.dtype(spec.compute).type
    part, columns, row, wide = tile // SIDE, width // SIDE, width + 1, tile + 1
    chains, add_row = chain_maker(spec), row_adder(spec)

    @kernel(
        spec.signatures(KEY_SIGNATURE), registers=KEY_REGISTERS[spec], shared=shared_bytes(spec), threads=THREADS, variant=f"{spec.compute} {width}"
    )
    def key_gradients(
        q, k, v, do, lse, bracket, dk, dv, reach, first, stop, time_q, time_k, position_q, position_k, document_q, causal, kind, terms, rate,
        parameters, scale, words, factors,
    ):  # fmt: skip
        """Block (x, g, b) has the tile x of keys of group g of row b."""
        queries, upstream = cuda.shared.array((tile, row), dtype), cuda.shared.array((tile, row), dtype)
        keys, values = cuda.shared.array((tile, row), dtype), cuda.shared.array((tile, row), dtype)
        slopes, weights = cuda.shared.array((tile, wide), dtype), cuda.shared.array((tile, wide), dtype)
        dk_sums, dv_sums = cuda.local.array((part, columns), dtype), cuda.local.array((part, columns), dtype)
        plan = (first, stop, time_q, time_k, position_q, position_k, document_q, causal)
        block, g, b, t = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z, cuda.threadIdx.x
        i, j, heads, d, begin = t // SIDE, t % SIDE, q.shape[1], q.shape[3], block * tile
        sharers = heads // k.shape[1]
        fetch(k, b, g, begin, width, tile, keys)
        fetch(v, b, g, begin, width, tile, values)
        for r in range(part):
            for f in range(columns):
                dk_sums[r, f], dv_sums[r, f] = number(lse, 0), number(lse, 0)
        for h in range(g * sharers, (g + 1) * sharers):
            bias = head_bias(kind, terms, rate, parameters, h)
            for start in range(reach[b, block, 0] // tile * tile, reach[b, block, 1], tile):
                fetch(q, b, h, start, width, tile, queries)
                fetch(do, b, h, start, width, tile, upstream)
                cuda.syncthreads()
                chains(queries, keys, d, slopes)
                chains(upstream, values, d, weights)
                for r in range(i, tile, SIDE):
                    for c in range(j, tile, SIDE):
                        query, key, slope, weight = start + r, begin + c, number(lse, 0), number(lse, 0)
                        if pair_is_read(plan, b, query, key):
                            p = exp(pair_score(slopes[r, c], scale, bias, difference(plan, lse, b, query, key)) - lse[b, h, query])
                            mask = kept(number(lse, 1), plan, words, factors, heads, b, h, query, key)
                            slope, weight = p * (weights[r, c] * mask - bracket[b, h, query]), p * mask
                        slopes[r, c], weights[r, c] = slope, weight
                cuda.syncthreads()
                for c in range(min(tile, reach[b, block, 1] - start)):
                    for r in range(part):
                        add_row(slopes[c, i + SIDE * r], r, queries, c, dk_sums)
                        add_row(weights[c, i + SIDE * r], r, upstream, c, dv_sums)
                cuda.syncthreads()
        for r in range(part):
            for f in range(columns):
                if begin + i + SIDE * r < k.shape[2] and j + SIDE * f < d:
                    dk[b, g, begin + i + SIDE * r, j + SIDE * f] = dk_sums[r, f] * scale
                    dv[b, g, begin + i + SIDE * r, j + SIDE * f] = dv_sums[r, f]

    return key_gradients


for _spec in SPECS:
    query_kernel(_spec)
    key_kernel(_spec)
