"""Attention forward on tensor cores, for 16-bit storage; the algorithm is that of attention_forward.py, the layout that of attention_fragments.py.

Ladder:
1. FlashAttention-2 (Dao 2023, arXiv:2307.08691): a warp owns 16 queries of a head, weights never leave its registers, keys and values come through
   two buffers each. A warp whose queries read nothing of a step leaves it out. Exponentials to the base 2, one instruction each; times are subtracted
   in float64. Dropout draws four words for each pair and uses one. Measured: not yet, no device.
2. Queries of wide heads lie in shared memory, so that these fit in REGISTERS as well. Measured: not yet.
"""

import functools
import math
from typing import Any

import numpy as np

from ttr_fast.cuda.attention_forward import SIGNATURE
from ttr_fast.cuda.attention_fragments import (
    INSTRUCTIONS,
    LOG2_E,
    PAIRS,
    ROWS,
    SECOND,
    SHELF,
    STEP,
    TENSOR_SPECS,
    THREADS,
    TILE,
    TensorSpec,
    column_of,
    draw_mask,
    for_tensor_cores,
    multiplier,
    reach_of_rows,
    row_adder,
    row_fetcher,
    row_holder,
    row_of,
    row_storer,
)
from ttr_fast.cuda.attention_tiles import elapsed, pair_score
from ttr_fast.cuda.found import LANES
from ttr_fast.cuda.jit import cuda, inner, kernel
from ttr_fast.cuda.numbers import log, number
from ttr_fast.cuda.primitives import commit_copies, exp2, shuffle_xor, unknown, wait_copies
from ttr_fast.cuda.time_bias import head_bias

REGISTERS = {32: 152, 64: 184, 128: 208}


@inner
def score_row(waiting, r, plan, bias, scale, b, query, begin):
    """Of the lane's pairs with a query, which are the r-th of its rows: products become scores, −∞ where nothing is read."""
    first, stop, time = 0, 0, 0.0
    if query < plan[0].shape[1]:
        first, stop, time = plan[0][b, query], plan[1][b, query], plan[2][b, query]
    for n in range(unknown(PAIRS // 4)):
        for e in range(2):
            i, t = 4 * n + 2 * r + e, cuda.threadIdx.x
            key, score = begin + column_of(n, e), np.float32(-math.inf)
            if first <= key and key < stop:
                score = pair_score(waiting[i, t], scale, bias, elapsed(waiting, time, plan[3][b, key], plan[7]))
            waiting[i, t] = score


@functools.cache
def tensor_forward_kernel(spec: TensorSpec) -> Any:
    """The kernel for a width of heads."""
    outputs, held = spec.width // 2, spec.held
    hold_rows, fetch_rows, multiply, add_rows, store_rows = (make(spec) for make in (row_holder, row_fetcher, multiplier, row_adder, row_storer))

    @kernel(
        for_tensor_cores(SIGNATURE), registers=REGISTERS[spec.width], shared=4 * PAIRS * THREADS, dynamic=spec.row_bytes(1), threads=THREADS,
        variant=str(spec.width), instructions=INSTRUCTIONS,
    )  # fmt: skip
    def attend(
        q, k, v, o, lse, reach, first, stop, time_q, time_k, position_q, position_k, document_q, causal, kind, terms, rate, parameters, scale, words,
        factors,
    ):  # fmt: skip
        """Block (x, h, b) has the tile x of queries of head h of row b."""
        rows = cuda.shared.array(0, np.uint16, alignment=16)
        waiting = cuda.shared.array((PAIRS, THREADS), np.float32)
        queries, weights = cuda.local.array(held, np.uint32), cuda.local.array(PAIRS, np.float32)
        sums, top, total = cuda.local.array(outputs, np.float32), cuda.local.array(2, np.float32), cuda.local.array(2, np.float32)
        rescale, nothing = cuda.local.array(2, np.float32), np.float32(-math.inf)
        plan = (first, stop, time_q, time_k, position_q, position_k, document_q, causal)
        block, h, b, t, heads = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z, cuda.threadIdx.x, q.shape[1]
        warp, g, span, slot = t // LANES, h // (heads // k.shape[1]), (reach[b, block, 0], reach[b, block, 1]), 0
        start, own = block * TILE + warp * ROWS, SHELF + warp * ROWS
        low, high = reach_of_rows(plan, b, start)
        hold_rows(q, b, h, start, queries, rows, own)
        for i in range(outputs):
            sums[i] = np.float32(0)
        for r in range(2):
            top[r], total[r] = nothing, np.float32(0)
        fetch_rows(k, b, g, span[0] // STEP * STEP, span, rows, 0)
        fetch_rows(v, b, g, span[0] // STEP * STEP, span, rows, SECOND)
        commit_copies()
        for begin in range(span[0] // STEP * STEP, span[1], STEP):
            wait_copies(0)
            cuda.syncthreads()
            fetch_rows(k, b, g, begin + STEP, span, rows, STEP - slot)
            fetch_rows(v, b, g, begin + STEP, span, rows, SECOND + STEP - slot)
            commit_copies()
            if low < begin + STEP and begin < high:
                row, head = unknown(b), unknown(h)
                bias = head_bias(kind, terms, rate, parameters, head)
                multiply(q, queries, rows, own, slot, weights)
                for i in range(PAIRS):
                    waiting[i, t] = weights[i]
                score_row(waiting, 0, plan, bias, scale, row, start + row_of(0), begin)
                score_row(waiting, 1, plan, bias, scale, row, start + row_of(2), begin)
                for r in range(2):
                    rescale[r] = top[r]
                for i in range(PAIRS):
                    weights[i] = waiting[i, t]
                    top[i // 2 % 2] = max(top[i // 2 % 2], weights[i])
                for r in range(2):
                    top[r] = max(top[r], shuffle_xor(top[r], 1))
                    top[r] = max(top[r], shuffle_xor(top[r], 2))
                    level = top[r] * LOG2_E if top[r] != nothing else np.float32(0)
                    rescale[r] = exp2(rescale[r] * LOG2_E - level)
                    total[r] *= rescale[r]
                    for m in range(PAIRS // 2):
                        i = m // 2 * 4 + 2 * r + m % 2
                        weights[i] = exp2(weights[i] * LOG2_E - level)
                        total[r] += weights[i]
                if factors.size > 0:
                    mask = draw_mask(plan, words, factors, heads, row, head, start, begin, False)
                    for i in range(PAIRS):
                        weights[i] = weights[i] * factors[0] if mask >> i & 1 else np.float32(0)
                for i in range(outputs):
                    sums[i] *= rescale[i // 2 % 2]
                add_rows(q, weights, rows, SECOND + slot, sums)
            slot = STEP - slot
        wait_copies(0)
        for r in range(2):
            query, x = start + row_of(2 * r), total[r]
            x += shuffle_xor(x, 1)
            x += shuffle_xor(x, 2)
            rescale[r] = number(lse, 1) / x if x != 0 else number(lse, 0)
            if query < q.shape[2] and t % 4 == 0:
                lse[b, h, query] = top[r] + log(x) if x != 0 else nothing
        store_rows(sums, rescale, o, b, h, start)

    return attend


for _spec in TENSOR_SPECS:
    tensor_forward_kernel(_spec)
