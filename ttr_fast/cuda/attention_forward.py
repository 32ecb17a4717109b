"""Attention forward on the GPU: an online softmax over tiles of keys; the algorithm is in ttr_ref/blocked_attention.py.

Ladder:
1. A block owns a tile of queries of one head and goes through the tiles of keys that one of them reads. Scores and weights take turns in one tile,
   keys and values in one panel; a row's maximum is one thread's. Dropout draws four words for each pair and uses one. Measured: not yet, no device.
"""

import functools
import math
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
from ttr_fast.cuda.numbers import exp, log, number, store
from ttr_fast.cuda.time_bias import head_bias

REGISTERS = {("float32", 32): 200, ("float32", 64): 192, ("float32", 128): 168, ("float64", 32): 216}
SIGNATURE = f"S[:, :, :, ::1], S[:, :, :, ::1], S[:, :, :, ::1], S[:, :, :, ::1], C[:, :, ::1], int64[:, :, ::1], {PLAN}, {BIAS}, C, {DROP}"


def shared_bytes(spec: Spec) -> int:
    """Two panels of rows, one tile of weights, three numbers and SIDE parts of a sum for each row."""
    return np.dtype(spec.compute).itemsize * spec.tile * (2 * (spec.width + 1) + spec.tile + 1 + 3 + SIDE + 1)


@functools.cache
def forward_kernel(spec: Spec) -> Any:
    """The kernel for a width of heads and a type of arithmetic."""
    tile, width, dtype = spec.tile, spec.width, np.dtype(spec.compute).type
    part, columns, row, wide, parts = tile // SIDE, width // SIDE, width + 1, tile + 1, SIDE + 1
    chains, add_row = chain_maker(spec), row_adder(spec)

    @kernel(spec.signatures(SIGNATURE), registers=REGISTERS[spec], shared=shared_bytes(spec), threads=THREADS, variant=f"{spec.compute} {width}")
    def attend(
        q, k, v, o, lse, reach, first, stop, time_q, time_k, position_q, position_k, document_q, causal, kind, terms, rate, parameters, scale, words,
        factors,
    ):  # fmt: skip
        """Block (x, h, b) has the tile x of queries of head h of row b."""
        queries, panel = cuda.shared.array((tile, row), dtype), cuda.shared.array((tile, row), dtype)
        weights, shares = cuda.shared.array((tile, wide), dtype), cuda.shared.array((tile, parts), dtype)
        top, total, rescale = cuda.shared.array(tile, dtype), cuda.shared.array(tile, dtype), cuda.shared.array(tile, dtype)
        sums = cuda.local.array((part, columns), dtype)
        plan = (first, stop, time_q, time_k, position_q, position_k, document_q, causal)
        nothing = number(lse, -math.inf)
        block, h, b, t = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z, cuda.threadIdx.x
        i, j, heads, d, start = t // SIDE, t % SIDE, q.shape[1], q.shape[3], block * tile
        g, bias = h // (heads // k.shape[1]), head_bias(kind, terms, rate, parameters, h)
        fetch(q, b, h, start, width, tile, queries)
        if t < tile:
            top[t], total[t] = nothing, number(lse, 0)
        for r in range(part):
            for f in range(columns):
                sums[r, f] = number(lse, 0)
        cuda.syncthreads()
        for begin in range(reach[b, block, 0] // tile * tile, reach[b, block, 1], tile):
            fetch(k, b, g, begin, width, tile, panel)
            cuda.syncthreads()
            chains(queries, panel, d, weights)
            for r in range(i, tile, SIDE):
                for c in range(j, tile, SIDE):
                    score = nothing
                    if pair_is_read(plan, b, start + r, begin + c):
                        score = pair_score(weights[r, c], scale, bias, difference(plan, lse, b, start + r, begin + c))
                    weights[r, c] = score
            cuda.syncthreads()
            fetch(v, b, g, begin, width, tile, panel)
            if t < tile:
                m = top[t]
                for c in range(tile):
                    m = max(m, weights[t, c])
                rescale[t] = exp(top[t] - m) if top[t] != nothing else number(lse, 0)
                top[t] = m
            cuda.syncthreads()
            for r in range(i, tile, SIDE):
                shares[r, j] = number(lse, 0)
                for c in range(j, tile, SIDE):
                    p = number(lse, 0)
                    if weights[r, c] != nothing:
                        p = exp(weights[r, c] - top[r])
                        shares[r, j] += p
                        p = kept(p, plan, words, factors, heads, b, h, start + r, begin + c)
                    weights[r, c] = p
            cuda.syncthreads()
            if t < tile:
                x = total[t] * rescale[t]
                for c in range(SIDE):
                    x += shares[t, c]
                total[t] = x
            for r in range(part):
                for f in range(columns):
                    sums[r, f] *= rescale[i + SIDE * r]
            for c in range(min(tile, reach[b, block, 1] - begin)):
                for r in range(part):
                    add_row(weights[i + SIDE * r, c], r, panel, c, sums)
            cuda.syncthreads()
        for r in range(part):
            query, x = start + i + SIDE * r, total[i + SIDE * r]
            if query < q.shape[2]:
                for f in range(columns):
                    if j + SIDE * f < d:
                        store(sums[r, f] / x if x != 0 else number(lse, 0), o, (b, h, query, j + SIDE * f))
                if j == 0:
                    lse[b, h, query] = top[i + SIDE * r] + log(x) if x != 0 else nothing

    return attend


for _spec in SPECS:
    forward_kernel(_spec)
