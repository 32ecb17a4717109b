"""What attention does with one tile of scores, rows = keys, lanes = queries.

A score is x = (q_i · k_j) log₂ e / √D + log₂ e · b(Δ) − m_i with the row's reference m_i as the start of its sum: 2^x needs no subtraction later.
`scores_to_weights` does all of it in registers for a tile in which every query reads every key; for tiles with a mask, `raw_scores`, `add_bias` and
`where_read` do the same steps one by one, a vector of queries at a time and only where some of them reads, and give the same bits.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ttr_fast.cpu.panels import turned
from ttr_fast.cpu.simd import I64, Emitter, item_pointer
from ttr_fast.cpu.tiles import accumulate, number, offset
from ttr_fast.cpu.time_bias import add_bias_sums, emit_bias, emit_parameters

BLOCK = 64
"""Queries in a block, keys in a tile; both lie at multiples of it in position."""
MASK_STRIDE = BLOCK + 16
"""From one row of dropout's mask to the next in the backward: a tile may start inside a group of four keys."""


@intrinsic(prefer_literal=True)
def raw_scores(typing, k, k0, q, start, column, width, s, s0, rows):
    """S[j, :] = start + K_j · Q for `rows` keys and the vector of queries from `column` on; Q (width, BLOCK) packed, scaled."""
    scalar = q.dtype

    def generate(context, b, signature, arguments):
        e, kinds = Emitter(context, b, scalar), signature.args
        pk, ps = (item_pointer(context, b, kinds[i], arguments[i], arguments[i + 1]) for i in (0, 6))
        pq, first = (item_pointer(context, b, kinds[i], arguments[i], arguments[4]) for i in (2, 3))
        d = number(kinds[5], arguments[5])
        sums = accumulate(e, d, pk, d, 1, pq, BLOCK, 1, [e.load(first, scalar)] * rows.literal_value)
        for i, v in enumerate(sums):
            e.store(v, offset(e, ps, (i, BLOCK)), scalar)
        return context.get_dummy_value()

    return types.void(k, k0, q, start, column, width, s, s0, rows), generate


@intrinsic(prefer_literal=True)
def scores_to_weights(typing, kind, terms, k, k0, q, start, width, u, w, w0, parameters, p, p0, sums, tops, rows):
    """P[j, :] = 2^(start + K_j · Q + bias(u + w_j)), added to `sums`, the largest exponents kept in `tops`; for `rows` keys, BLOCK queries."""
    scalar = q.dtype

    def generate(context, b, signature, arguments):
        e, kinds = Emitter(context, b, scalar), signature.args
        zero = ir.Constant(I64, 0)
        pk, pw, pp = (item_pointer(context, b, kinds[i], arguments[i], arguments[i + 1]) for i in (2, 8, 11))
        pq, ps, pu, par, pl, px = (item_pointer(context, b, kinds[i], arguments[i], zero) for i in (4, 5, 7, 10, 13, 14))
        d, n = number(kinds[6], arguments[6]), rows.literal_value
        columns, name, count = 4, kind.literal_value, terms.literal_value
        for group in range(0, BLOCK // e.lanes, columns):
            at = [offset(e, ps, (group + c, e.lanes)) for c in range(columns)]
            x = accumulate(e, d, pk, d, 1, offset(e, pq, (group, e.lanes)), BLOCK, columns, [e.load(a, scalar) for a in at] * n)
            values = emit_parameters(e, name, count, par)
            lane = [(group + c) * e.lanes for c in range(columns)]
            us, ls, xs = ([e.load(offset(e, base, (o, 1)), scalar) for o in lane] for base in (pu, pl, px))
            for i in range(n):
                wi = e.splat(b.load(offset(e, pw, (i, 1)), align=e.bytes))
                for c in range(columns):
                    v = emit_bias(e, name, count, values, par, x[i * columns + c], b.fadd(us[c], wi))
                    xs[c] = e.maximum(v, xs[c])
                    weight = e.exp2(v)
                    ls[c] = b.fadd(ls[c], weight)
                    e.store(weight, offset(e, pp, (i, BLOCK), (lane[c], 1)), scalar)
            for c in range(columns):
                e.store(ls[c], offset(e, pl, (lane[c], 1)), scalar)
                e.store(xs[c], offset(e, px, (lane[c], 1)), scalar)
        return context.get_dummy_value()

    return types.void(kind, terms, k, k0, q, start, width, u, w, w0, parameters, p, p0, sums, tops, rows), generate


@intrinsic(prefer_literal=True)
def add_bias(typing, kind, terms, parameters, x, y):
    """x + bias(y), vectors."""

    def generate(context, b, signature, arguments):
        e = Emitter(context, b, x.scalar)
        par = item_pointer(context, b, parameters, arguments[2], ir.Constant(I64, 0))
        values = emit_parameters(e, kind.literal_value, terms.literal_value, par)
        return emit_bias(e, kind.literal_value, terms.literal_value, values, par, arguments[3], arguments[4])

    return x(kind, terms, parameters, x, y), generate


@intrinsic
def where_read(typing, x, lo, hi, column, key):
    """x in the lanes whose query reads the key, lo[i] ≤ key ≤ hi[i] from i = column on, and −∞ in the others."""

    def generate(context, b, signature, arguments):
        e = Emitter(context, b, x.scalar)
        bounds = ir.VectorType(I64, e.lanes).as_pointer()
        at = [b.bitcast(item_pointer(context, b, a, arguments[i], arguments[3]), bounds) for i, a in ((1, lo), (2, hi))]
        j = e.splat(arguments[4])
        reads = b.and_(b.icmp_signed("<=", b.load(at[0], align=8), j), b.icmp_signed(">=", b.load(at[1], align=8), j))
        return b.select(reads, arguments[0], e.constant(float("-inf")))

    return x(x, lo, hi, types.intp, types.intp), generate


@intrinsic
def turned_tile(typing, a, at, stride, factor, panel, to):
    """panel[to + x · BLOCK + i] = factor · a[at + i · stride + x] for as many i and x as a vector has lanes."""

    def generate(context, b, signature, arguments):
        e = Emitter(context, b, panel.dtype)
        source, target = item_pointer(context, b, a, *arguments[:2]), item_pointer(context, b, panel, *arguments[4:])
        many = e.splat(arguments[3])
        rows = [e.load(offset(e, source, (arguments[2], i)), a.dtype) for i in range(e.lanes)]
        for x, v in enumerate(turned(b, rows)):
            e.store(b.fmul(v, many), offset(e, target, (x, BLOCK)), panel.dtype)
        return context.get_dummy_value()

    return types.void(a, types.intp, types.intp, panel.dtype, panel, types.intp), generate


@intrinsic(prefer_literal=True)
def score_gradients(
    typing, kind, terms, masked, drops, q, do, at, width, kt, vt, column, minus_lse, minus_delta, row, u, w, y, lo, hi, parameters, mask, skipped,
    p, ds, sums, rows
):  # fmt: skip
    """The backward's tile: rows = `rows` queries from `row` of the block, lanes = keys from `column` of the tile.

    S and dP are formed together, kt and vt (width, BLOCK) being packed and kt scaled; then in registers P = 2^(S + bias − LSE) and
    dS = P (m ∘ dP − D); dS and m ∘ P are stored, m being dropout's mask, and what the bias's parameters need is added to `sums`.
    masked: y comes from an array, and P = dS = 0 outside the keys lo[i] … hi[i].
    """
    scalar = kt.dtype
    given = (
        kind, terms, masked, drops, q, do, at, width, kt, vt, column, minus_lse, minus_delta, row, u, w, y, lo, hi, parameters, mask, skipped,
        p, ds, sums, rows,
    )  # fmt: skip

    def generate(context, b, signature, arguments):
        e, zero = Emitter(context, b, scalar), ir.Constant(I64, 0)
        values_of, types_of = (dict(zip(GRADIENT_ARGUMENTS, all_of, strict=True)) for all_of in (arguments, signature.args))
        n, name, count = rows.literal_value, kind.literal_value, terms.literal_value
        masks, dropping = masked.literal_value, drops.literal_value
        first, lane0, d = values_of["row"], values_of["column"], number(types_of["width"], values_of["width"])

        def pointer(array, index=zero):
            return item_pointer(context, b, types_of[array], values_of[array], index)

        def row_value(array, i):
            return b.load(offset(e, pointer(array, first), (i, 1)), align=8 if array in ("lo", "hi") else e.bytes)

        def integers(x):
            return e.splat(x if e.int_type == I64 else b.trunc(x, e.int_type))

        starts = [[e.splat(row_value(array, i)) for i in range(n)] for array in ("minus_lse", "minus_delta")]
        s = accumulate(e, d, pointer("q", values_of["at"]), d, 1, pointer("kt", lane0), BLOCK, 1, starts[0])
        dp_starts = [e.constant(0.0)] * n if dropping else starts[1]
        dp = accumulate(e, d, pointer("do", values_of["at"]), d, 1, pointer("vt", lane0), BLOCK, 1, dp_starts)
        table = pointer("parameters")
        values, later = emit_parameters(e, name, count, table), e.load(pointer("w", lane0), scalar)
        lane = b.add(integers(lane0), e.iota())
        for i in range(n):
            place = b.add(b.mul(b.add(first, ir.Constant(I64, i)), ir.Constant(I64, BLOCK)), lane0)
            delta = e.load(pointer("y", place), scalar) if masks else b.fadd(e.splat(row_value("u", i)), later)
            weight = e.exp2(emit_bias(e, name, count, values, table, s[i], delta))
            if dropping:
                stride = b.mul(b.add(first, ir.Constant(I64, i)), ir.Constant(I64, MASK_STRIDE))
                factor = e.load(pointer("mask", b.add(stride, b.add(lane0, values_of["skipped"]))), scalar)
                gradient, weight = b.fmul(weight, e.fma(factor, dp[i], starts[1][i])), b.fmul(weight, factor)
            else:
                gradient = b.fmul(weight, dp[i])
            if masks:
                reads = b.and_(b.icmp_signed(">=", lane, integers(row_value("lo", i))), b.icmp_signed("<=", lane, integers(row_value("hi", i))))
                weight, gradient = (b.select(reads, x, e.constant(0.0)) for x in (weight, gradient))
            e.store(weight, pointer("p", place), scalar)
            e.store(gradient, pointer("ds", place), scalar)
            add_bias_sums(e, name, count, values, gradient, delta, pointer("sums"))
        return context.get_dummy_value()

    return types.void(*given), generate


GRADIENT_ARGUMENTS = (
    "kind", "terms", "masked", "drops", "q", "do", "at", "width", "kt", "vt", "column", "minus_lse", "minus_delta", "row", "u", "w", "y", "lo", "hi",
    "parameters", "mask", "skipped", "p", "ds", "sums", "rows",
)  # fmt: skip
