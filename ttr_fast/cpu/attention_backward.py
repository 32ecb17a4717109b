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
from ttr_fast.cpu.attention_forward import Spec, difference_storer, panel_turner, taken_as_it_is, taken_converted
from ttr_fast.cpu.attention_tiles import BLOCK, MASK_STRIDE, score_gradients
from ttr_fast.cpu.jit import inner
from ttr_fast.cpu.team import team
from ttr_fast.cpu.tiles import multiply
from ttr_fast.cpu.time_bias import LOG2E, SHIFTS, sums_size


@functools.cache
def backward_kernels(spec: Spec) -> tuple[Any, Any]:
    """The two steps of the backward pass for one specification: called with arrays and filled buffers, see attention.attend_backward."""
    kind, terms, shift = spec.kind, spec.terms, SHIFTS[spec.kind]
    f, lanes, drops = spec.compute, spec.lanes, spec.drops
    take = taken_as_it_is(spec) if spec.dtype == f.__name__ else taken_converted(spec)
    turn_panel, store_differences = panel_turner(spec), difference_storer(spec)
    collected = sums_size(kind, terms, lanes)

    @inner(spec)
    def brackets(o, do, dlse, delta, first, last, width):
        """delta[i] = dO_i · O_i − dLSE_i."""
        for i in range(first, last):
            total = simd.splat(f(0))
            for d in range(i * width, (i + 1) * width, lanes):
                total = simd.fma(simd.load(o, d), simd.load(do, d), total)
            delta[i] = simd.total(total) - dlse[i]

    @inner(spec)
    def has_no_number(a, first, last):
        spoiled = False
        for i in range(first, last):
            spoiled |= not abs(a[i]) < np.inf
        return spoiled

    @inner(spec)
    def add_product(n, rows, left, left_row, left_step, right, right_at, out, out_at, lo, hi, masked, by_row, width):
        """out[r] += Σ_s left[r, s] right[s] for `rows` rows and s < n.

        masked: row r takes s in lo[r] … hi[r], whose bounds grow with r; what lies between these bounds for one of 8 rows holds zeros for the others.
        by_row: nothing outside a row's own bounds is touched.
        """
        if by_row:
            for r in range(rows):
                first, last = max(lo[r], 0), min(hi[r], n - 1)
                if first <= last:
                    count, at, to, values = last - first + 1, r * left_row + first * left_step, out_at + r * width, right_at + first * width
                    for d in range(0, width, lanes):
                        multiply(count, left, at, left_row, left_step, right, values + d, width, out, to + d, width, 1, 1)
            return
        whole = rows // 8 * 8
        for r in range(0, whole, 8):
            first, end = (max(lo[r], 0), min(hi[r + 7] + 1, n)) if masked else (0, n)
            at, to, values = r * left_row + first * left_step, out_at + r * width, right_at + first * width
            for d in range(0, width if first < end else 0, lanes):
                multiply(end - first, left, at, left_row, left_step, right, values + d, width, out, to + d, width, 8, 1)
        for r in range(whole, rows):
            first, end = (max(lo[r], 0), min(hi[r] + 1, n)) if masked else (0, n)
            at, to, values = r * left_row + first * left_step, out_at + r * width, right_at + first * width
            for d in range(0, width if first < end else 0, lanes):
                multiply(end - first, left, at, left_row, left_step, right, values + d, width, out, to + d, width, 1, 1)

    @inner(spec)
    def weigh_block(q, do, at, rows, n, kt, vt, minus_lse, minus_delta, u, w, y, lo, hi, first, masked, par, mask, skipped, p, ds, sums,
                    width):  # fmt: skip
        """P and dS of `rows` queries and n keys, of which key j is read from query first[j] on."""
        for j in range(0, n, lanes):
            if not masked:
                for i in range(0, rows, 8):
                    x = at + i * width
                    score_gradients(
                        kind, terms, False, drops, q, do, x, width, kt, vt, j, minus_lse, minus_delta, i, u, w, y, lo, hi, par, mask, skipped,
                        p, ds, sums, 8
                    )  # fmt: skip
                continue
            whole = rows // 8 * 8
            begin = min(first[j], rows) // 8 * 8
            for i in range(begin, whole, 8):
                x = at + i * width
                score_gradients(
                    kind, terms, True, drops, q, do, x, width, kt, vt, j, minus_lse, minus_delta, i, u, w, y, lo, hi, par, mask, skipped,
                    p, ds, sums, 8
                )  # fmt: skip
            for i in range(whole, rows):
                x = at + i * width
                score_gradients(
                    kind, terms, True, drops, q, do, x, width, kt, vt, j, minus_lse, minus_delta, i, u, w, y, lo, hi, par, mask, skipped,
                    p, ds, sums, 1
                )  # fmt: skip

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
    def pack_keys(k, v, k_at, n, width, scale, keys, spare, kt, vt, ks, key_times):
        """Keys and values of a tile as `weigh_block` and the product for dQ take them, and the times of its lanes."""
        turn_panel(k, k_at, n, width, scale * f(LOG2E), spare, kt)
        turn_panel(v, k_at, n, width, f(1), spare, vt)
        for x in range(0, n * width, lanes):
            simd.store(simd.mul(simd.load(k, k_at + x), simd.splat(scale)), ks, x)
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
        kt, vt, ks, tile_dk, tile_dv = panels[0], panels[1], panels[2], panels[3], panels[4]
        q_panel, do_panel = panels[5], panels[6]
        p, ds, y = squares[0], squares[1], squares[2]
        minus_lse, minus_delta, u, w = vectors[0], vectors[1], vectors[2], vectors[3]
        lo, hi, first, last = limits[0], limits[1], limits[2], limits[3]
        keys = time_k[j0 - first_k : j0 - first_k + n]
        pack_keys(k, v, k_at, n, width, scale, keys, q_panel, kt, vt, ks, key_times)
        tile_dk[: n * width] = f(0)
        tile_dv[: n * width] = f(0)
        k_spoiled, v_spoiled = has_no_number(ks, 0, n * width), has_no_number(vt, 0, width * BLOCK)
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
                skipped = j0 % 4
                if drops:
                    draw_tile(rows, n, (j0 - skipped) // 4, p0, draw, factor, mask)
                par = parameters[heads[1] + head]
                weigh_block(q_block, do_block, at_block, rows, n, kt, vt, minus_lse, minus_delta, u, w, y, lo, hi, first, masked, par, mask,
                            skipped, p, ds, sums, width)  # fmt: skip
                spoiled = masked and (
                    v_spoiled
                    or has_no_number(do_block, at_block, at_block + rows * width)
                    or has_no_number(q_block, at_block, at_block + rows * width)
                )
                add_product(rows, n, p, 1, BLOCK, do_block, at_block, tile_dv, 0, first, last, masked, spoiled, width)
                add_product(rows, n, ds, 1, BLOCK, q_block, at_block, tile_dk, 0, first, last, masked, spoiled, width)
                add_product(n, rows, ds, BLOCK, 1, ks, 0, dq, at, lo, hi, masked, masked and k_spoiled, width)
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
