"""The backward pass of attention, tile by tile; the mathematics is in ttr_ref/attention.py.

A work item is one key/value head of one document: one pass over its tiles of 64 keys, and within each over the query heads that share it and the
blocks of 64 queries that read it. P is computed again from LSE. dK and dV of a tile stay in scratch until it is done; dQ is added to in the order
of the tiles. Sums for the bias's parameters are kept for each tile and head in float64 and added up in order afterwards. No two items write to the
same place, and the order of every sum depends on positions alone: no atomics, the same bits for any number of threads.
"""

import functools
from typing import Any

import numpy as np

from ttr_fast.cpu import simd
from ttr_fast.cpu.attention_dropout import LANES, THIRD, draw_by_query
from ttr_fast.cpu.attention_operands import Spec, difference_storer, number_checker, panel_turner, panel_viewer, taker
from ttr_fast.cpu.attention_products import products_adder
from ttr_fast.cpu.attention_tiles import BLOCK, MASK_STRIDE, raw_scores, score_gradients
from ttr_fast.cpu.jit import inner
from ttr_fast.cpu.team import team
from ttr_fast.cpu.time_bias import LOG2E, SHIFTS, sums_size


@functools.cache
def backward_kernels(spec: Spec) -> tuple[Any, Any]:
    """The two steps of the backward pass for one specification: called with arrays and filled buffers, see attention.attend_backward."""
    kind, terms, shift = spec.kind, spec.terms, SHIFTS[spec.kind]
    f, lanes, drops = spec.compute, spec.lanes, spec.drops
    take, seen, turn_panel, store_differences = taker(spec), panel_viewer(spec), panel_turner(spec), difference_storer(spec)
    (prepare_keys, add_products), has_no_number, held = products_adder(spec), number_checker(spec), spec.held
    collected, bracket = sums_size(kind, terms, lanes), "none" if drops else "rows"

    @inner(spec)
    def brackets(o, do, dlse, delta, first, last, width):
        """delta[i] = dO_i · O_i − dLSE_i."""
        for i in range(first, last):
            total = simd.splat(f(0))
            for d in range(i * width, (i + 1) * width, lanes):
                total = simd.fma(simd.load(o, d), simd.load(do, d), total)
            delta[i] = simd.total(total) - dlse[i]

    @inner(spec)
    def form_scores(q, do, at, steps, first, end, count, kt, vt, scale, minus_lse, minus_delta, column, p, ds):
        """S − LSE and dP − D of rows first … end − 1 and a vector of keys, or four where `count` is."""
        one = f(1)
        for i in range(first, end - 3, 4):
            x, to = at + i * steps, i * BLOCK + column
            if count == 4:
                raw_scores(q, x, kt, minus_lse, i, "rows", scale, column, steps, p, to, 4, 4)
                raw_scores(do, x, vt, minus_delta, i, bracket, one, column, steps, ds, to, 4, 4)
            else:
                raw_scores(q, x, kt, minus_lse, i, "rows", scale, column, steps, p, to, 4, 1)
                raw_scores(do, x, vt, minus_delta, i, bracket, one, column, steps, ds, to, 4, 1)
        for i in range(end - (end - first) % 4, end):
            x, to = at + i * steps, i * BLOCK + column
            raw_scores(q, x, kt, minus_lse, i, "rows", scale, column, steps, p, to, 1, 1)
            raw_scores(do, x, vt, minus_delta, i, bracket, one, column, steps, ds, to, 1, 1)

    @inner(spec)
    def weigh_block(q, do, at, rows, n, kt, vt, scale, minus_lse, minus_delta, u, w, y, lo, hi, first, masked, par, mask, skipped, p, ds, sums,
                    steps):  # fmt: skip
        """P and dS of `rows` queries and n keys, of which key j is read from query first[j] on."""
        if not masked:
            for j in range(0, BLOCK, 4 * lanes):
                form_scores(q, do, at, steps, 0, rows, 4, kt, vt, scale, minus_lse, minus_delta, j, p, ds)
                score_gradients(kind, terms, False, drops, 0, rows, j, minus_delta, u, w, y, lo, hi, par, mask, skipped, p, ds, sums, 4)
            return
        for j in range(0, n, lanes):
            begin = min(first[j], rows) // 8 * 8
            form_scores(q, do, at, steps, begin, rows, 1, kt, vt, scale, minus_lse, minus_delta, j, p, ds)
            score_gradients(kind, terms, True, drops, begin, rows, j, minus_delta, u, w, y, lo, hi, par, mask, skipped, p, ds, sums, 1)

    @inner(spec)
    def draw_tile(rows, n, group, query, draw, factor, mask):
        """Dropout's mask of a tile whose first key stands in the group."""
        for i in range(0, rows, 4):
            for j in range(0, n + 3, LANES):
                draw_by_query(mask, i * MASK_STRIDE + j, MASK_STRIDE, group + j // 4, query + i, draw, factor)

    @inner(spec)
    def fill_y(times, keys, own, causal, rate, u, w, y):
        """The scaled differences of times of a masked block, in the forward's arithmetic; keys: the last one's time again in lanes without a key."""
        for i in range(times.size):
            if own or not causal:
                for j in range(0, BLOCK, 8):
                    store_differences(simd.sub(simd.splat(times[i]), simd.load(keys, j)), rate, causal, y, i * BLOCK + j)
            else:
                for j in range(0, BLOCK, lanes):
                    simd.store(simd.add(simd.splat(u[i]), simd.load(w, j)), y, i * BLOCK + j)

    @inner(spec)
    def pack_keys(k, v, k_at, n, width, scale, keys, spare, kt, vt, key_times):
        """Keys and values of a tile as `weigh_block` takes them, and the times of its lanes."""
        turn_panel(k, k_at, n, width, scale * f(LOG2E), spare, kt)
        turn_panel(v, k_at, n, width, f(1), spare, vt)
        for j in range(BLOCK):
            key_times[j] = keys[min(j, n - 1)]

    @inner(spec)
    def one_tile(q, k, v, do, lse, delta, dq, dk, dv, k_start, row_start, stride, heads, table, time_q, time_k, tile, causal, window, scale,
                 rates, parameters, partial, draw, factor, scratch, width):  # fmt: skip
        """One tile of keys against all queries that read them. heads: how many there are, the first that shares the keys, how many do.

        row_start: of the first head's queries, those of the others follow `stride` rows apart; draw is told each head here.
        """
        n_all, first_q, n_keys, first_k = table[2], table[3], table[6], table[7]
        j0 = max(tile * BLOCK, first_k)
        n = min(tile * BLOCK + BLOCK, first_k + n_keys) - j0
        k_at = k_start + (j0 - first_k) * width
        panels, squares, vectors, sums, limits, mask, key_times = scratch
        kt, vt, ks = seen(panels[0]), seen(panels[1]), panels[2]
        tile_dk, tile_dv, q_panel, do_panel, steps = panels[3], panels[4], panels[5], panels[6], width // held
        p, ds, y = squares[0], squares[1], squares[2]
        minus_lse, minus_delta, u, w = vectors[0], vectors[1], vectors[2], vectors[3]
        lo, hi, first, last = limits[0], limits[1], limits[2], limits[3]
        keys = time_k[j0 - first_k : j0 - first_k + n]
        pack_keys(k, v, k_at, n, width, scale, keys, q_panel, kt, vt, key_times)
        prepare_keys(k, k_at, n, width, scale, ks)
        tile_dk[: n * width] = f(0)
        tile_dv[: n * width] = f(0)
        k_spoiled, v_spoiled = has_no_number(kt, 0, steps * BLOCK), has_no_number(vt, 0, steps * BLOCK)
        begin = max(first_q, j0) if causal else first_q
        end = min(first_q + n_all - 1, j0 + n - 1 + window - 1)
        for head in range(heads[2]):
            head_start = row_start + head * stride
            draw[THIRD] = np.uint32(table[8] * heads[0] + heads[1] + head)
            for number in range(begin // BLOCK, (end // BLOCK if begin <= end else begin // BLOCK - 1) + 1):
                p0, p1 = max(number * BLOCK, begin), min(number * BLOCK + BLOCK, end + 1)
                rows, at, row = p1 - p0, (head_start + p0 - first_q) * width, head_start + p0 - first_q
                times, block_start, rate = time_q[p0 - first_q : p1 - first_q], number * BLOCK, rates[heads[1] + head]
                known = n_keys > 0 and block_start < first_k + n_keys
                moment = time_k[max(block_start - first_k, 0)] if known else time_q[max(block_start - first_q, 0)]
                masked = not causal or number == tile or n < BLOCK or rows % 8 != 0 or p1 - window > j0
                for i in range(rows):
                    minus_lse[i], minus_delta[i] = f(-LOG2E * lse[row + i]), -delta[row + i]
                    u[i] = f((times[i] - moment) * rate + shift)
                    hi[i] = min(p0 + i - j0, n - 1) if causal else n - 1
                    lo[i] = max(p0 + i - window + 1 - j0, 0)
                for j in range(BLOCK):
                    w[j] = f((moment - keys[min(j, n - 1)]) * rate)
                    first[j], last[j] = (max(j0 + j - p0, 0) if causal else 0), min(j0 + j + window - 1 - p0, rows - 1)
                sums[:collected] = 0
                if masked:
                    fill_y(times, key_times, number == tile, causal, rate, u, w, y)
                q_block, at_block = take(q, at, rows, width, q_panel)
                do_block, _ = take(do, at, rows, width, do_panel)
                for x in range(at + rows * width, at + 2 * rows * width, lanes):  # numbers broadcast one by one come too late by themselves
                    simd.prefetch(q, x)
                    simd.prefetch(do, x)
                skipped = j0 % 4
                if drops:
                    draw_tile(rows, n, (j0 - skipped) // 4, p0, draw, factor, mask)
                par = parameters[heads[1] + head]
                weigh_block(q_block, do_block, at_block, rows, n, kt, vt, scale * f(LOG2E), minus_lse, minus_delta, u, w, y, lo, hi, first, masked,
                            par, mask, skipped, p, ds, sums, steps)  # fmt: skip
                spoiled = masked and (
                    v_spoiled
                    or has_no_number(do_block, at_block, at_block + rows * steps)
                    or has_no_number(q_block, at_block, at_block + rows * steps)
                )
                add_products(rows, n, p, ds, q, do, at, q_block, do_block, at_block, k, k_at, ks, scale, lo, hi, first, last, masked, spoiled,
                             masked and k_spoiled, dq, tile_dk, tile_dv, width, q_panel, do_panel, squares[3:])  # fmt: skip
                for m in range(collected // lanes):
                    total = 0.0
                    for lane in range(lanes):
                        total += sums[m * lanes + lane]
                    partial[heads[1] + head, m] += total
        for x in range(n * width):
            dk[k_at + x], dv[k_at + x] = tile_dk[x] * scale, tile_dv[x]

    @team(spec)
    def bracket_rows(worker, workers, o, do, dlse, delta, width):
        """The brackets of all rows."""
        rows = delta.size
        brackets(o, do, dlse, delta, rows * worker // workers, rows * (worker + 1) // workers, width)

    @team(spec)
    def backward(worker, workers, q, k, v, do, lse, delta, dq, dk, dv, shape, table, first_tile, time_q, time_k, causal, window, scale, rates,
                 parameters, partial, draw, factor, scratch):  # fmt: skip
        """All key/value heads of all documents, dealt to the workers in turn; dq, dk, dv and partial come filled with zeros."""
        heads, groups, t_q, t_k, width = shape
        panels, squares, vectors, sums, limits, masks, moments = scratch
        mine = (panels[worker], squares[worker], vectors[worker], sums[worker], limits[worker], masks[worker], moments[worker])
        sharers = heads // groups
        for item in range(worker, table.shape[0] * groups, workers):
            d, g = item // groups, item % groups
            row_q, place_q, n_q, _, row_k, place_k, n_k, first_k, _ = table[d]
            row_start = (row_q * heads + g * sharers) * t_q + place_q
            k_start = ((row_k * groups + g) * t_k + place_k) * width
            times_q, times_k = time_q[row_q, place_q : place_q + n_q], time_k[row_k, place_k : place_k + n_k]
            for t in range(first_tile[d], first_tile[d + 1]):
                tile = first_k // BLOCK + t - first_tile[d]
                one_tile(q, k, v, do, lse, delta, dq, dk, dv, k_start, row_start, t_q, (heads, g * sharers, sharers), table[d], times_q, times_k,
                         tile, causal, window, scale, rates, parameters, partial[t], draw[worker], factor, mine, width)  # fmt: skip

    return bracket_rows, backward
