"""Attention of one query a head against the ring; the mathematics is in ttr_ref/attention.py, the order of all sums in attention_forward.py.

Lanes are keys where the forward pass has queries: each score is the same chain over features, each value the same chain over keys of one tile, and
tiles come in the same order, so the bits are those of the windowed forward pass. Keys outside the window are not visited, where it adds exact zeros.

Work is dealt to the threads by heads. Where these are few or come out uneven, a head's tiles are dealt out too: a tile's sums start at 0 and depend
on the reference alone, which every thread forms from the query's own tile; they are added in order at the end. Only if a score exceeds the reference
by 2^60, and moves it, the head is done again, one tile after the other.
"""

import functools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from ttr_fast.cpu import rows, simd
from ttr_fast.cpu.attention_operands import Spec, panel_viewer
from ttr_fast.cpu.attention_pairs import in_words, round_rows
from ttr_fast.cpu.attention_tiles import BLOCK, add_bias
from ttr_fast.cpu.jit import inner, kernel
from ttr_fast.cpu.kv_ring import kv_ring_append, kv_ring_append_pairs
from ttr_fast.cpu.rope import copy_row, turn_row
from ttr_fast.cpu.simd import I32, LINE, Emitter, in_pairs, item_pointer, vector_at
from ttr_fast.cpu.tiles import offset, unrolled_loop
from ttr_fast.cpu.time_bias import SHIFTS


@intrinsic(prefer_literal=True)
def chains(typing, count, a, a0, start, b, b0, b_step, c, c0, columns, ahead):
    """C[j] = start + Σ_k a[k] B[k, j] for columns · LANES columns, k < count: one chain each; B in storage, read once. All arrays flat.

    a and B may both be arrays of pairs of bf16 numbers. ahead: how far behind B lies what will be read next, and is asked for meanwhile.
    """
    if not isinstance(columns, types.IntegerLiteral):
        return None
    scalar, n, pairs = c.dtype, columns.literal_value, in_pairs(b)

    def generate(context, builder, signature, arguments):
        e, kinds = Emitter(context, builder, scalar), signature.args
        pa, pb, pc = (item_pointer(context, builder, kinds[i], arguments[i], arguments[i + 1]) for i in (1, 4, 7))

        def step(k: ir.Value, u: int, sums: list[ir.Value]) -> list[ir.Value]:
            at = offset(e, pb, (k, arguments[6]), (u, arguments[6]))
            x = e.splat(builder.load(offset(e, pa, (k, 1), (u, 1)), align=e.bytes))
            places = [offset(e, at, (j, e.lanes)) for j in range(n)]
            for p in places[:: max(LINE * 8 // (e.lanes * b.dtype.bitwidth), 1)]:
                e.prefetch(offset(e, p, (arguments[10], 1)))
            if pairs:
                return [e.dot(x, vector_at(builder, p, I32, e.lanes), s) for p, s in zip(places, sums, strict=True)]
            return [e.fma(x, e.load(p, b.dtype), s) for p, s in zip(places, sums, strict=True)]

        for j, v in enumerate(unrolled_loop(e, arguments[0], [e.splat(arguments[3])] * n, step)):
            e.store(v, offset(e, pc, (j, e.lanes)), scalar)
        return context.get_dummy_value()

    return types.void(count, a, a0, start, b, b0, b_step, c, c0, columns, ahead), generate


@functools.cache
def decode_kernel(spec: Spec) -> Any:
    """One more token in every row, for one specification: see `decode`, made here."""
    kind, terms, shift = spec.kind, spec.terms, SHIFTS[spec.kind]
    f, lanes, pairs, held = spec.compute, spec.lanes, spec.pairs, spec.held
    columns, seen = BLOCK // lanes, panel_viewer(spec)
    append = kv_ring_append_pairs if pairs else kv_ring_append
    highest, unset = f(60.0), f(-np.inf)

    @inner(spec)
    def scores(k, k_at, q, q_at, steps, start, scale, time, time_at, first, last, is_own, moment, now, rate, parameters, y, x, ahead):
        """x of the tile's keys first … last, −∞ for the others; the largest. What lies in other slots is read, but reaches nothing."""
        y[:] = f(shift)
        if is_own:
            for j in range(first, last + 1):
                y[j] = f(max(now - time[time_at + j], 0.0) * rate + shift)
        else:
            u = f((now - moment) * rate + shift)
            for j in range(first, last + 1):
                y[j] = u + f((moment - time[time_at + j]) * rate)
        chains(steps, q, q_at, f(0) if pairs else start, k, k_at, BLOCK, x, 0, columns, ahead)
        for j in range(0, BLOCK, lanes):
            score = simd.load(x, j)
            if pairs:
                score = simd.fma(score, simd.splat(scale), simd.splat(start))
            simd.store(add_bias(kind, terms, parameters, score, simd.load(y, j)), x, j)
        for j in range(first):
            x[j] = unset
        for j in range(last + 1, BLOCK):
            x[j] = unset
        top = simd.splat(unset)
        for j in range(0, BLOCK, lanes):
            top = simd.vmax(simd.load(x, j), top)
        return simd.largest(top)

    @inner(spec)
    def add_values(weights, first, end, v, v_at, width, tile_values, ahead):
        """The values of a tile from its weights first … end − 1, counted as v is."""
        wide, n, at = width // (4 * lanes) * (4 * lanes), end - first, v_at + first * width
        for d in range(0, wide, 4 * lanes):
            chains(n, weights, first, f(0), v, at + d, width, tile_values, d, 4, ahead)
        for d in range(wide, width, lanes):
            chains(n, weights, first, f(0), v, at + d, width, tile_values, d, 1, ahead)

    @inner(spec)
    def add_values_in_pairs(weights, first, end, v, v_at, width, tile_values, ahead, words):
        round_rows(weights, 1, f(1), words)
        add_values(words, first // 2, (end + 1) // 2, v, v_at, width, tile_values, ahead)

    @inner(spec)
    def weigh(v, v_at, first, last, width, off, y, x, tile_values, ahead):
        """Scores to weights; their sum, and the values of the tile."""
        for j in range(0, BLOCK, lanes):
            simd.store(simd.exp2(simd.sub(simd.load(x, j), simd.splat(off))), x, j)
        if pairs:
            add_values_in_pairs(x, first, last + 1, v, v_at, width, tile_values, ahead, in_words(y))
        else:
            add_values(x, first, last + 1, v, v_at, width, tile_values, ahead)
        total = f(0)
        for j in range(first, last + 1):
            total += x[j]
        return total

    @inner(spec)
    def some_tiles(k, v, time, b, g, q, q_at, position, window, scale, rate, parameters, begin, end, apart, partial, values,
                   scratch):  # fmt: skip
        """Sums over the tiles begin … end − 1 of one head, counted from its own downwards, into values (width + 1), the weights' sum at its end;
        or if `apart` each tile's for itself into partial (tiles, width + 2), and whether a score of it moves the reference."""
        tiles, width = v.shape[2], v.shape[4]
        x, y, tile_values = scratch[0], scratch[1], scratch[2]
        own, now = position // BLOCK, time[b, position % (tiles * BLOCK)]
        moment, clock = time[b, own % tiles * BLOCK], time[b]
        reference = f(0)
        values[: width + 1] = f(0)
        for step in range(end):
            if 0 < step < begin:
                continue
            tile = own - step
            first, last = max(position - window + 1 - tile * BLOCK, 0), min(position - tile * BLOCK, BLOCK - 1)
            at = ((b * k.shape[1] + g) * tiles + tile % tiles) * BLOCK * width // held
            ahead = ((tile + tiles - 1) % tiles - tile % tiles) * BLOCK * width // held
            start, slot = -reference if step else f(0), tile % tiles * BLOCK
            top = scores(k, at, q, q_at, width // held, start, scale, clock, slot, first, last, step == 0, moment, now, rate, parameters, y, x, ahead)
            off, moves = f(0), step > 0 and top > highest
            if step == 0:
                off = reference = top if top > unset else f(0)
            elif moves and not apart:
                off = np.ceil(top)
                reference += off
                shrunk = f(2.0 ** -float(off))
                for d in range(width + 1):
                    values[d] *= shrunk
            if step < begin:
                continue
            total = weigh(v, at, first, last, width, off, y, x, tile_values, ahead)
            if apart:
                partial[step, :width] = tile_values[:width]
                partial[step, width], partial[step, width + 1] = total, f(moves)
                continue
            for d in range(width):
                values[d] += tile_values[d]
            values[width] += total

    @inner(spec)
    def finish(values, width, d, o, at):
        """o[at …] = values / their weights' sum, rounded once."""
        share = simd.splat(f(1) / values[width])
        for i in range(0, d, lanes):
            rows.store_part(simd.mul(simd.load(values, i), share), o, at + i, d - i)

    @inner(spec)
    def take_query(source, at, width, scale, q, to):
        """A query as `scores` takes it: scaled, or in pairs as it is."""
        for i in range(0, width, lanes):
            simd.store(simd.mul(simd.load(source, at + i), simd.splat(scale)), q, to + i)

    @inner(spec)
    def take_query_in_pairs(source, at, width, scale, q, to):
        q[to : to + width // 2] = in_words(source)[at // 2 : (at + width) // 2]

    take = take_query_in_pairs if pairs else take_query

    @inner(spec)
    def turn(qkv, cos, sin, d, b, g, heads, position, window, scale, turned, q, k, v):
        """Queries, key and value of one group: turned, rounded; queries scaled, key and value appended."""
        groups, width, shared = k.shape[1], v.shape[4], heads // k.shape[1]
        features, angle_at, row = (heads + 2 * groups) * d, b * (d // 2), b * (heads + 2 * groups) * width
        for h in range(g * shared, (g + 1) * shared):
            turn_row(qkv, b * features + h * d, cos, sin, angle_at, d, turned, row + h * width, 1)
            take(turned.reshape(-1), row + h * width, width, scale, q, (b * heads + h) * width)
        k_at, v_at = row + (heads + g) * width, row + (heads + groups + g) * width
        turn_row(qkv, b * features + (heads + g) * d, cos, sin, angle_at, d, turned, k_at, 1)
        copy_row(qkv, b * features + (heads + groups + g) * d, d, turned, v_at)
        append(turned.reshape(-1), k_at, v_at, b, g, position, window, k, v)

    @inner(spec)
    def combine(partial, tiles, values, width):
        """The tiles' sums in order; False if a score would have moved the reference."""
        values[: width + 1] = f(0)
        for step in range(tiles):
            if partial[step, width + 1] != 0:
                return False
            for d in range(width + 1):
                values[d] += partial[step, d]
        return True

    @kernel(spec, parallel=True)
    def decode(qkv, cos, sin, position, time, k, v, window, scale, rates, parameters, turned, q, partial, scratch, o):
        """o (B, H D) from qkv (B, (H + 2G) D); keys and values go into the ring.

        turned (B, H + 2G, 1, width), q (B, H, width), partial (B, H, tiles, width + 2), scratch (threads, 4, at least 64 and width + 1) are scratch.
        """
        groups, width, workers = v.shape[1], v.shape[4], scratch.shape[0]
        n, heads, queries = q.shape[0], q.shape[1], seen(q.reshape(-1))
        d, shared = o.shape[1] // heads, heads // groups
        for unsigned in prange(n * groups):
            b, g = np.int64(unsigned) // groups, np.int64(unsigned) % groups
            turn(qkv, cos, sin, d, b, g, heads, position[b], window, scale, turned, queries, k, v)
        parts = 1 if n * heads >= 4 * workers or n * heads % workers == 0 else workers
        for unsigned in prange(workers):
            worker = np.int64(unsigned)
            mine = scratch[worker]
            values = mine[3]
            for item in range(worker * n * heads * parts // workers, (worker + 1) * n * heads * parts // workers):
                head, part = item // parts, item % parts
                b, h = head // heads, head % heads
                i = position[b]
                steps = i // BLOCK - max(i - window + 1, 0) // BLOCK + 1
                some_tiles(k, v, time, b, h // shared, queries, head * width, i, window, scale, rates[h], parameters[h], part * steps // parts,
                           (part + 1) * steps // parts, parts > 1, partial[b, h], values, mine)  # fmt: skip
                if parts == 1:
                    finish(values, width, d, o, head * d)
        if parts > 1:
            mine = scratch[0]
            values = mine[3]
            for head in range(n * heads):
                b, h = head // heads, head % heads
                i = position[b]
                steps = i // BLOCK - max(i - window + 1, 0) // BLOCK + 1
                if not combine(partial[b, h], steps, values, width):
                    some_tiles(k, v, time, b, h // shared, queries, head * width, i, window, scale, rates[h], parameters[h], 0, steps, False,
                               partial[b, h], values, mine)  # fmt: skip
                finish(values, width, d, o, head * d)

    return decode
