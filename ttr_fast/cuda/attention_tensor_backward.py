"""Attention backward on tensor cores, for 16-bit storage; the algorithm is that of attention_backward.py, the layout that of attention_fragments.py.

Ladder:
1. The two passes of the readable kernels, so that every gradient has one owner. Pass one: a warp owns 16 queries of a head and has them and dO in
   registers, keys and values come through two buffers each; it adds up dQ, and its own sums of the bias's gradient. Pass two: a warp owns 16 keys of
   a group and has them and the values in registers, queries and dO come through the buffers: dK, dV. Measured: not yet, no device. Pass one
   takes all 255 registers of a thread on sm_80.
2. What wide heads hold lies in shared memory. Knots are summed by lanes that own them and not by shuffles: in a loop these, and `bar.warp.sync`,
   become calls on sm_80, for whose sake registers stay empty. So 128 features fit, and 64 take 200 (QUERY_REGISTERS). Measured: not yet.
"""

import functools
from typing import Any

import numpy as np

from ttr_fast.cuda.attention_backward import KEY_SIGNATURE, QUERY_SIGNATURE
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
    WARPS,
    TensorSpec,
    column_of,
    draw_mask,
    factor_of,
    for_tensor_cores,
    multiplier,
    reach_of_rows,
    row_adder,
    row_fetcher,
    row_holder,
    row_of,
    row_storer,
)
from ttr_fast.cuda.attention_tiles import elapsed, pair_is_read, pair_score
from ttr_fast.cuda.found import LANES
from ttr_fast.cuda.jit import cuda, inner, kernel
from ttr_fast.cuda.numbers import number
from ttr_fast.cuda.primitives import commit_copies, exp2, sync_warp, unknown, wait_copies
from ttr_fast.cuda.time_bias import MOST_TERMS, SUMS, TABLE, add_bias_sums, add_to_knots, head_bias, knot_place

QUERY_REGISTERS, KEY_REGISTERS = {32: 192, 64: 200, 128: 216}, {32: 184, 64: 224, 128: 255}
PAIR_BYTES = 2 * 4 * PAIRS * THREADS
"""Two numbers for each pair."""


@inner
def slope_row(slopes, places, r, mask, factors, plan, bias, scale, lse, bracket, b, h, query, begin, collected):
    """Of the lane's pairs with a query, the r-th of its rows: products with keys and of dO with values become G and the place between knots."""
    first, stop, time, level, less = 0, 0, 0.0, number(lse, 0), number(lse, 0)
    if query < plan[0].shape[1]:
        first, stop, time, level, less = plan[0][b, query], plan[1][b, query], plan[2][b, query], lse[b, h, query], bracket[b, h, query]
    for m in range(unknown(PAIRS // 2)):
        i, t = m // 2 * 4 + 2 * r + m % 2, cuda.threadIdx.x
        key, slope, place = begin + column_of(i // 4, i), np.float32(0), np.float32(-1)
        if first <= key and key < stop:
            delta = elapsed(lse, time, plan[3][b, key], plan[7])
            p = exp2((pair_score(slopes[i, t], scale, bias, delta) - level) * LOG2_E)
            slope = p * (places[i, t] * factor_of(mask, i, factors) - less)
            add_bias_sums(bias, delta, slope, collected)
            if bias[0] == TABLE:
                place = knot_place(lse, delta * bias[2], bias[1])
        slopes[i, t], places[i, t] = slope, place


@inner
def slope_row_of_key(slopes, weights, r, mask, factors, plan, bias, scale, lse, bracket, b, h, start, key):
    """Of the lane's pairs with a key, the r-th of its rows: products with queries and of values with dO become G and dropped weights."""
    time = plan[3][b, key] if key < plan[3].shape[1] else 0.0
    for m in range(unknown(PAIRS // 2)):
        i, t = m // 2 * 4 + 2 * r + m % 2, cuda.threadIdx.x
        query, slope, weight = start + column_of(i // 4, i), np.float32(0), np.float32(0)
        if pair_is_read(plan, b, query, key):
            delta = elapsed(lse, plan[2][b, query], time, plan[7])
            p = exp2((pair_score(slopes[i, t], scale, bias, delta) - lse[b, h, query]) * LOG2_E)
            factor = factor_of(mask, i, factors)
            slope, weight = p * (weights[i, t] * factor - bracket[b, h, query]), p * factor
        slopes[i, t], weights[i, t] = slope, weight


@functools.cache
def tensor_query_kernel(spec: TensorSpec) -> Any:
    """Pass one for a width of heads."""
    outputs, held = spec.width // 2, spec.held
    hold_rows, fetch_rows, multiply, add_rows, store_rows = (make(spec) for make in (row_holder, row_fetcher, multiplier, row_adder, row_storer))

    @kernel(
        for_tensor_cores(QUERY_SIGNATURE), registers=QUERY_REGISTERS[spec.width], shared=PAIR_BYTES + 4 * SUMS * THREADS, dynamic=spec.row_bytes(2),
        threads=THREADS, variant=str(spec.width), instructions=INSTRUCTIONS,
    )  # fmt: skip
    def query_gradients(
        q, k, v, do, lse, bracket, dq, partial, reach, first, stop, time_q, time_k, position_q, position_k, document_q, causal, kind, terms, rate,
        parameters, scale, words, factors,
    ):  # fmt: skip
        """Block (x, h, b) has the tile x of queries of head h of row b; partial[b, WARPS x + w, h] are the sums of warp w of the bias's gradient."""
        rows = cuda.shared.array(0, np.uint16, alignment=16)
        slopes, places = cuda.shared.array((PAIRS, THREADS), np.float32), cuda.shared.array((PAIRS, THREADS), np.float32)
        collected = cuda.shared.array((SUMS, THREADS), np.float32)
        queries, upstream = cuda.local.array(held, np.uint32), cuda.local.array(held, np.uint32)
        products, sums = cuda.local.array(PAIRS, np.float32), cuda.local.array(outputs, np.float32)
        plan = (first, stop, time_q, time_k, position_q, position_k, document_q, causal)
        block, h, b, t, heads = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z, cuda.threadIdx.x, q.shape[1]
        warp, lane, g = t // LANES, t % LANES, h // (heads // k.shape[1])
        start, own, part = block * TILE + warp * ROWS, SHELF + warp * ROWS, WARPS * block + warp
        hold_rows(q, b, h, start, queries, rows, own)
        hold_rows(do, b, h, start, upstream, rows, own + TILE)
        low, high = reach_of_rows(plan, b, start)
        for m in range(SUMS):
            collected[m, t] = np.float32(0)
        for i in range(outputs):
            sums[i] = np.float32(0)
        for m in range(lane, partial.shape[3], LANES):
            partial[b, part, h, m] = 0.0
        span, slot = (reach[b, block, 0], reach[b, block, 1]), 0
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
                bias, mask = head_bias(kind, terms, rate, parameters, head), draw_mask(plan, words, factors, heads, row, head, start, begin, False)
                multiply(q, queries, rows, own, slot, products)
                for i in range(PAIRS):
                    slopes[i, t] = products[i]
                multiply(q, upstream, rows, own + TILE, SECOND + slot, products)
                for i in range(PAIRS):
                    places[i, t] = products[i]
                slope_row(slopes, places, 0, mask, factors, plan, bias, scale, lse, bracket, row, head, start + row_of(0), begin, collected)
                slope_row(slopes, places, 1, mask, factors, plan, bias, scale, lse, bracket, row, head, start + row_of(2), begin, collected)
                if kind == TABLE:
                    sync_warp(warp)
                    add_to_knots(slopes, places, PAIRS, t - lane, t - lane + LANES, lane, LANES, partial[row, part, head], terms)
                for i in range(PAIRS):
                    products[i] = slopes[i, t]
                add_rows(q, products, rows, slot, sums)
            slot = STEP - slot
        wait_copies(0)
        store_rows(sums, (scale, scale), dq, b, h, start)
        if kind != TABLE:
            cuda.syncthreads()
            half = (partial.shape[3] + 1) // 2
            for m in range(lane, partial.shape[3], LANES):
                whole = np.float32(0)
                for other in range(unknown(LANES)):
                    whole += collected[m if m < half else MOST_TERMS + m - half, warp * LANES + other]
                partial[b, part, h, m] = whole

    return query_gradients


@functools.cache
def tensor_key_kernel(spec: TensorSpec) -> Any:
    """Pass two for a width of heads."""
    outputs, held = spec.width // 2, spec.held
    hold_rows, fetch_rows, multiply, add_rows, store_rows = (make(spec) for make in (row_holder, row_fetcher, multiplier, row_adder, row_storer))

    @kernel(
        for_tensor_cores(KEY_SIGNATURE), registers=KEY_REGISTERS[spec.width], shared=PAIR_BYTES, dynamic=spec.row_bytes(2), threads=THREADS,
        variant=str(spec.width), instructions=INSTRUCTIONS,
    )  # fmt: skip
    def key_gradients(
        q, k, v, do, lse, bracket, dk, dv, reach, first, stop, time_q, time_k, position_q, position_k, document_q, causal, kind, terms, rate,
        parameters, scale, words, factors,
    ):  # fmt: skip
        """Block (x, g, b) has the tile x of keys of group g of row b."""
        rows = cuda.shared.array(0, np.uint16, alignment=16)
        slopes, weights = cuda.shared.array((PAIRS, THREADS), np.float32), cuda.shared.array((PAIRS, THREADS), np.float32)
        keys, values, products = cuda.local.array(held, np.uint32), cuda.local.array(held, np.uint32), cuda.local.array(PAIRS, np.float32)
        dk_sums, dv_sums = cuda.local.array(outputs, np.float32), cuda.local.array(outputs, np.float32)
        plan = (first, stop, time_q, time_k, position_q, position_k, document_q, causal)
        block, g, b, t, heads = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z, cuda.threadIdx.x, q.shape[1]
        warp, sharers = t // LANES, heads // k.shape[1]
        first_key, own = block * TILE + warp * ROWS, SHELF + warp * ROWS
        hold_rows(k, b, g, first_key, keys, rows, own)
        hold_rows(v, b, g, first_key, values, rows, own + TILE)
        for i in range(outputs):
            dk_sums[i], dv_sums[i] = np.float32(0), np.float32(0)
        span = (reach[b, block, 0], reach[b, block, 1])
        begin = span[0] // STEP * STEP
        steps, slot = max(0, -(-(span[1] - begin) // STEP)), 0
        fetch_rows(q, b, g * sharers, begin, span, rows, 0)
        fetch_rows(do, b, g * sharers, begin, span, rows, SECOND)
        commit_copies()
        for at in range(steps * sharers):
            h, start, following = g * sharers + at // steps, begin + at % steps * STEP, at + 1
            wait_copies(0)
            cuda.syncthreads()
            if following < steps * sharers:
                fetch_rows(q, b, g * sharers + following // steps, begin + following % steps * STEP, span, rows, STEP - slot)
                fetch_rows(do, b, g * sharers + following // steps, begin + following % steps * STEP, span, rows, SECOND + STEP - slot)
            commit_copies()
            if first_key < k.shape[2]:
                row, head = unknown(b), unknown(h)
                bias, mask = head_bias(kind, terms, rate, parameters, head), draw_mask(plan, words, factors, heads, row, head, first_key, start, True)
                multiply(q, keys, rows, own, slot, products)
                for i in range(PAIRS):
                    slopes[i, t] = products[i]
                multiply(q, values, rows, own + TILE, SECOND + slot, products)
                for i in range(PAIRS):
                    weights[i, t] = products[i]
                slope_row_of_key(slopes, weights, 0, mask, factors, plan, bias, scale, lse, bracket, row, head, start, first_key + row_of(0))
                slope_row_of_key(slopes, weights, 1, mask, factors, plan, bias, scale, lse, bracket, row, head, start, first_key + row_of(2))
                for i in range(PAIRS):
                    products[i] = weights[i, t]
                add_rows(q, products, rows, SECOND + slot, dv_sums)
                for i in range(PAIRS):
                    products[i] = slopes[i, t]
                add_rows(q, products, rows, slot, dk_sums)
            slot = STEP - slot
        wait_copies(0)
        store_rows(dk_sums, (scale, scale), dk, b, g, first_key)
        store_rows(dv_sums, (number(lse, 1), number(lse, 1)), dv, b, g, first_key)

    return key_gradients


for _spec in TENSOR_SPECS:
    tensor_query_kernel(_spec)
    tensor_key_kernel(_spec)
