"""The forward pass of attention, block by block; the mathematics is in ttr_ref/attention.py.

Nothing of size T × T exists (Dao et al. 2022, arXiv:2205.14135). A work item is one block of 64 queries of one head of one document. It visits tiles
of 64 keys: first its own, which fixes each row's reference m_i, then the earlier ones, latest first; without causality the later ones follow.
Borders lie at multiples of 64 in position. The reference of a row moves only when one of its own scores exceeds it by 2^60, and then by a whole
number of powers of two, which rescales exactly. So every bit of a row depends on the row, its position and the keys it reads, on nothing else.

A tile that all queries of the block read whole goes through registers once (attention_tiles.scores_to_weights). Tiles with a mask go step by step.
"""

import functools
from typing import Any

import numpy as np

from ttr_fast.cpu import simd
from ttr_fast.cpu.attention_dropout import LANES, THIRD, draw_by_key
from ttr_fast.cpu.attention_operands import Spec, difference_storer, keys_reader, panel_turner, panel_viewer, taker
from ttr_fast.cpu.attention_products import values_adder
from ttr_fast.cpu.attention_tiles import BLOCK, add_bias, raw_scores, scores_to_weights, where_read
from ttr_fast.cpu.jit import inner
from ttr_fast.cpu.team import team
from ttr_fast.cpu.time_bias import SHIFTS


@functools.cache
def forward_kernel(spec: Spec) -> Any:
    """The forward pass for one specification: called with arrays and filled buffers, see attention_forward."""
    kind, terms, shift = spec.kind, spec.terms, SHIFTS[spec.kind]
    f, lanes, drops = spec.compute, spec.lanes, spec.drops
    take, seen, turn_panel, store_differences = taker(spec), panel_viewer(spec), panel_turner(spec), difference_storer(spec)
    keys_read, add_values, held = keys_reader(spec), values_adder(spec), spec.held
    highest = f(60.0)
    unset = f(-np.inf)

    @inner(spec)
    def move_references(lo, hi, n, width, ready, tops, moved, sums, values):
        """New references where they are due; `moved` holds each row's largest score, then how far the reference has moved."""
        for i in range(BLOCK):
            top, some = moved[i], max(lo[i], 0) <= min(hi[i], n - 1)
            moved[i] = f(0)
            if some and ready[i] == 0:
                ready[i] = 1
                moved[i] = tops[i] = top if top > unset else f(0)
            elif some and top > highest:
                moved[i] = np.ceil(top)
                tops[i] += moved[i]
                shrunk = f(2.0 ** -float(moved[i]))
                sums[i] *= shrunk
                for d in range(width):
                    values[i * width + d] *= shrunk

    @inner(spec)
    def masked_tile(k, k_at, n, lo, hi, width, packed, scale, exact, causal, time, keys, rate, u, w, y, start, ready, tops, moved, sums, weights,
                    values, parameters):  # fmt: skip
        """One tile step by step, query i reading the keys lo[i] … hi[i] of n. exact: differences of times in float64, else u + w."""
        steps = width // held
        for i in range(BLOCK):
            start[i] = -tops[i] if ready[i] else f(0)
        for c in range(0, BLOCK, lanes):
            first, end = keys_read(lo, hi, c, n)
            whole = first + max(end - first, 0) // 8 * 8
            for j in range(first, whole, 8):
                raw_scores(k, k_at + j * steps, packed, start, c, "lanes", scale, c, steps, weights, j * BLOCK + c, 8, 1)
            for j in range(whole, end):
                raw_scores(k, k_at + j * steps, packed, start, c, "lanes", scale, c, steps, weights, j * BLOCK + c, 1, 1)
            top = simd.splat(unset)
            for j in range(first, end):
                if exact:
                    for i in range(c, c + lanes, 8):
                        store_differences(simd.sub(simd.load(time, i), simd.splat(keys[j])), rate, causal, y, i)
                else:
                    simd.store(simd.add(simd.load(u, c), simd.splat(w[j])), y, c)
                x = add_bias(kind, terms, parameters, simd.load(weights, j * BLOCK + c), simd.load(y, c))
                x = where_read(x, lo, hi, c, j)
                top = simd.vmax(x, top)
                simd.store(x, weights, j * BLOCK + c)
            simd.store(top, moved, c)
        move_references(lo, hi, n, width, ready, tops, moved, sums, values)
        for c in range(0, BLOCK, lanes):
            first, end = keys_read(lo, hi, c, n)
            total, off = simd.splat(f(0)), simd.load(moved, c)
            for j in range(first, end):
                p = simd.exp2(simd.sub(simd.load(weights, j * BLOCK + c), off))
                total = simd.add(total, p)
                simd.store(p, weights, j * BLOCK + c)
            simd.store(simd.add(simd.load(sums, c), total), sums, c)

    @inner(spec)
    def whole_tile(k, k_at, n, steps, packed, scale, u, w, start, tile_sums, tile_tops, weights, parameters):
        """One tile that all queries read whole; False if some score is too large, and nothing has happened then."""
        for i in range(BLOCK):
            tile_sums[i] = f(0)
            tile_tops[i] = unset
        whole = n // 4 * 4
        for c in range(0, BLOCK, 4 * lanes):
            for j in range(0, whole, 4):
                raw_scores(k, k_at + j * steps, packed, start, c, "lanes", scale, c, steps, weights, j * BLOCK + c, 4, 4)
            for j in range(whole, n):
                raw_scores(k, k_at + j * steps, packed, start, c, "lanes", scale, c, steps, weights, j * BLOCK + c, 1, 4)
        scores_to_weights(kind, terms, n, weights, u, w, parameters, tile_sums, tile_tops)
        largest = simd.load(tile_tops, 0)
        for i in range(lanes, BLOCK, lanes):
            largest = simd.vmax(simd.load(tile_tops, i), largest)
        return not simd.largest(largest) > highest

    @inner(spec)
    def drop_weights(n, key, query, draw, factor, mask, weights):
        """weights ∘ dropout's mask, for n keys from position `key` on."""
        skipped = key % 4
        for j in range(0, skipped + n, 4):
            for i in range(0, BLOCK, LANES):
                draw_by_key(mask, j * BLOCK + i, BLOCK, (key - skipped + j) // 4, query + i, draw, factor)
        for x in range(n * BLOCK):
            weights[x] *= mask[skipped * BLOCK + x]

    @inner(spec)
    def block(q, k, v, o, lse, q_at, k_at, lse_at, table, time_q, time_k, number, causal, window, width, scale, rate, parameters, draw, factor,
              scratch):  # fmt: skip
        """Queries of block `number` of one head of one document; *_at: where the head's document starts in the flat arrays."""
        n_all, first_q, n_keys, first_k = table[2], table[3], table[6], table[7]
        p0 = max(number * BLOCK, first_q)
        p1 = min(number * BLOCK + BLOCK, first_q + n_all)
        n_q = p1 - p0
        panels, squares, vectors, limits, time = scratch
        packed, values, k_panel, v_panel = seen(panels[0]), panels[1], panels[2], panels[3]
        weights, mask, paired = squares[0], squares[1], squares[2]
        tops, start, sums, moved, u, w, y = vectors[0], vectors[1], vectors[2], vectors[3], vectors[4], vectors[5], vectors[6]
        ready, lo, hi = limits[0], limits[1], limits[2]
        times = time_q[p0 - first_q : p1 - first_q]
        turn_panel(q, q_at + (p0 - first_q) * width, n_q, width, scale, k_panel, packed)
        values[:] = 0
        for i in range(BLOCK):
            ready[i], tops[i], sums[i], time[i] = 0, 0, 0, times[min(i, n_q - 1)]

        last_tile = (first_k + n_keys - 1) // BLOCK
        lowest = max(first_k, p0 - window + 1) // BLOCK
        own = min(p0 // BLOCK, last_tile)
        top_tile = own if causal else last_tile
        steps = (own - lowest + 1) + (top_tile - own) if n_keys else 0
        moment = time_k[max(p0 // BLOCK * BLOCK - first_k, 0)] if n_keys and p0 // BLOCK * BLOCK < first_k + n_keys else times[0]
        for i in range(BLOCK):
            u[i] = f((times[min(i, n_q - 1)] - moment) * rate + shift)
        for step in range(steps):
            tile = own - step if own - step >= lowest else own + (step - (own - lowest))
            j0 = max(tile * BLOCK, first_k)
            n = min(tile * BLOCK + BLOCK, first_k + n_keys) - j0
            k_tile, tile_at = take(k, k_at + (j0 - first_k) * width, n, width, k_panel)
            v_at, skipped = k_at + (j0 - first_k) * width, j0 % 2
            keys = time_k[j0 - first_k : j0 - first_k + n]
            for j in range(n):
                w[j] = f((moment - keys[j]) * rate)
            # who reads all of a later tile has a reference from the first
            if causal and step > 0 and tile * BLOCK + BLOCK <= p0 and p0 + n_q - window <= j0:
                for i in range(BLOCK):
                    start[i] = -tops[i]
                if whole_tile(k_tile, tile_at, n, width // held, packed, scale, u, w, start, y, moved, weights, parameters):
                    for i in range(BLOCK):
                        sums[i] += y[i]
                    if drops:
                        drop_weights(n, j0, p0, draw, factor, mask, weights)
                    add_values(v, v_at, n, skipped, lo, hi, False, width, weights, values, v_panel, paired)
                    continue
            for i in range(BLOCK):
                hi[i] = min(p0 + i, j0 + n - 1) - j0 if causal else n - 1
                lo[i] = p0 + i - window + 1 - j0
            exact = not causal or tile * BLOCK + BLOCK > p0 // BLOCK * BLOCK
            masked_tile(k_tile, tile_at, n, lo, hi, width, packed, scale, exact, causal, time, keys, rate, u, w, y, start, ready, tops, moved, sums,
                        weights, values, parameters)  # fmt: skip
            if drops:
                drop_weights(n, j0, p0, draw, factor, mask, weights)
            add_values(v, v_at, n, skipped, lo, hi, True, width, weights, values, v_panel, paired)
        for i in range(n_q):
            row = p0 - first_q + i
            share = f(1) / sums[i] if ready[i] else f(0)
            lse[lse_at + row] = (float(tops[i]) + np.log2(float(sums[i]))) * np.log(2.0) if ready[i] else -np.inf
            for d in range(0, width, lanes):
                simd.store(simd.mul(simd.load(values, i * width + d), simd.splat(share)), o, q_at + row * width + d)

    @team(spec)
    def forward(worker, workers, q, k, v, o, lse, shape, table, time_q, time_k, items, causal, window, scale, rates, parameters, draw, factor,
                scratch):  # fmt: skip
        """All items, dealt to the workers (rows of each scratch array) to and fro, so that each gets as much of the costly ones."""
        heads, groups, t_q, t_k, width = shape
        panels, squares, vectors, limits, moments = scratch
        mine = (panels[worker], squares[worker], vectors[worker], limits[worker], moments[worker])
        for turn in range((items.shape[0] + workers - 1) // workers):
            item = turn * workers + (worker if turn % 2 == 0 else workers - 1 - worker)
            if item >= items.shape[0]:
                continue
            d, h, number = items[item]
            row_q, place_q, n_q, _, row_k, place_k, n_k, _, document = table[d]
            q_at = ((row_q * heads + h) * t_q + place_q) * width
            k_at = ((row_k * groups + h // (heads // groups)) * t_k + place_k) * width
            lse_at = (row_q * heads + h) * t_q + place_q
            times_q, times_k = time_q[row_q, place_q : place_q + n_q], time_k[row_k, place_k : place_k + n_k]
            draw[worker, THIRD] = np.uint32(document * heads + h)
            block(q, k, v, o, lse, q_at, k_at, lse_at, table[d], times_q, times_k,
                  number, causal, window, width, scale, rates[h], parameters[h], draw[worker], factor, mine)  # fmt: skip

    return forward
