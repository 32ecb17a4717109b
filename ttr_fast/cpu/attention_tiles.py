"""What attention does with one tile of scores, rows = keys, lanes = queries.

A score is x = (q_i · k_j) log₂ e / √D + log₂ e · b(Δ) − m_i with the row's reference m_i as the start of its sum: 2^x needs no subtraction later.
Scores are sums first (`raw_scores`), and go through registers a second time. `scores_to_weights` does it for a tile in which every query reads every
key; for tiles with a mask `add_bias` and `where_read` do it with the same bits, a vector of queries at a time and only where some of them read.

Queries and keys in pairs of bf16 numbers (attention_pairs.py) are not scaled when they are packed, and −m_i is added after the sum.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ttr_fast.cpu.panels import turned
from ttr_fast.cpu.simd import I64, Emitter, in_pairs, item_pointer
from ttr_fast.cpu.tiles import accumulate, counted_loop, number, offset
from ttr_fast.cpu.time_bias import add_bias_sums, emit_bias, emit_parameters

BLOCK = 64
"""Queries in a block, keys in a tile; both lie at multiples of it in position."""
AT_ONCE = 4
"""Vectors whose exponentials are formed together: one alone would wait for itself."""
MASK_STRIDE = BLOCK + 16
"""From one row of dropout's mask to the next in the backward: a tile may start inside a group of four keys."""


@intrinsic(prefer_literal=True)
def raw_scores(typing, a, a0, b, start, start0, along, scale, column, steps, s, s0, rows, columns):
    """S[i, :] = start + A_i · B for `rows` rows of A, one behind the other, and `columns` vectors of B (steps, BLOCK) from `column` on.

    start[start0 …] belongs to each lane ("lanes") or to each row ("rows") or is not used ("none"). steps: items of a row of A.
    Of pairs S = start + scale · (A_i · B), since B does not come scaled.
    """
    scalar, n, m, pairs = start.dtype, rows.literal_value, columns.literal_value, in_pairs(b)

    def generate(context, builder, signature, arguments):
        e, kinds = Emitter(context, builder, scalar), signature.args
        pa, first, ps = (item_pointer(context, builder, kinds[i], arguments[i], arguments[i + 1]) for i in (0, 3, 9))
        pb = item_pointer(context, builder, kinds[2], arguments[2], arguments[7])
        d, scaling, zero = number(kinds[8], arguments[8]), e.splat(arguments[6]), e.constant(0.0)

        def start_of(i: int, j: int) -> ir.Value:
            match along.literal_value:
                case "lanes":
                    return e.load(offset(e, first, (j, e.lanes)), scalar)
                case "rows":
                    return e.splat(builder.load(offset(e, first, (i, 1)), align=e.bytes))
                case _:
                    return zero

        def finish(i: int, j: int, total: ir.Value) -> None:
            x = e.fma(total, scaling, start_of(i, j)) if pairs else total
            e.store(x, offset(e, ps, (i, BLOCK), (j, e.lanes)), scalar)

        accumulate(e, d, pa, d, 1, pb, BLOCK, (n, m), (lambda i, j: zero) if pairs else start_of, finish, pairs)
        return context.get_dummy_value()

    return types.void(a, a0, b, start, start0, along, scale, column, steps, s, s0, rows, columns), generate


@intrinsic(prefer_literal=True)
def scores_to_weights(typing, kind, terms, n, s, u, w, parameters, sums, tops):
    """P[j, :] = 2^(S[j, :] + bias(u + w_j)) for n keys and BLOCK queries, in S's place, added to `sums`; the largest exponents are kept in `tops`."""
    scalar = s.dtype

    def generate(context, b, signature, arguments):
        e, kinds, zero = Emitter(context, b, scalar), signature.args, ir.Constant(I64, 0)
        ps, pu, pw, par, pl, px = (item_pointer(context, b, kinds[i], arguments[i], zero) for i in range(3, 9))
        name, count, row = kind.literal_value, terms.literal_value, e.several(AT_ONCE)
        values = emit_parameters(row, name, count, par)

        def all_keys(column: int) -> None:
            us, *carried = (row.load(offset(e, p, (column, 1)), scalar) for p in (pu, pl, px))

            def step(j: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                at = offset(e, ps, (j, BLOCK), (column, 1))
                y = b.fadd(us, row.splat(b.load(offset(e, pw, (j, 1)), align=e.bytes)))
                x = emit_bias(row, name, count, values, par, row.load(at, scalar), y)
                weight = row.exp2(x)
                row.store(weight, at, scalar)
                return [b.fadd(carried[0], weight), row.maximum(x, carried[1])]

            for v, p in zip(counted_loop(e, zero, arguments[2], 1, carried, step), (pl, px), strict=True):
                row.store(v, offset(e, p, (column, 1)), scalar)

        for column in range(0, BLOCK, row.lanes):
            all_keys(column)
        return context.get_dummy_value()

    return types.void(kind, terms, n, s, u, w, parameters, sums, tops), generate


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
    typing, kind, terms, masked, drops, first, end, column, minus_delta, u, w, y, lo, hi, parameters, mask, skipped, p, ds, sums, columns
):  # fmt: skip
    """The backward's tile: rows = queries first … end − 1, lanes = `columns` vectors of keys from `column` on; `p` holds S − LSE, `ds` holds dP − D.

    P = 2^(S + bias − LSE) and dS = P (dP − D) take their places, or m ∘ P and P (m ∘ dP − D) with dropout's mask m, where D does not come subtracted.
    What the bias's parameters need is added to `sums`. masked: y comes from an array, and P = dS = 0 outside the keys lo[i] … hi[i].
    """
    scalar = p.dtype
    given = (kind, terms, masked, drops, first, end, column, minus_delta, u, w, y, lo, hi, parameters, mask, skipped, p, ds, sums, columns)

    def generate(context, b, signature, arguments):
        narrow, zero = Emitter(context, b, scalar), ir.Constant(I64, 0)
        values_of, types_of = (dict(zip(GRADIENT_ARGUMENTS, all_of, strict=True)) for all_of in (arguments, signature.args))
        name, count, masks, dropping = (literal.literal_value for literal in (kind, terms, masked, drops))
        e, lane0 = narrow.several(columns.literal_value), values_of["column"]

        def pointer(array, index=zero):
            return item_pointer(context, b, types_of[array], values_of[array], index)

        def row_value(array, i):
            return b.load(pointer(array, i), align=8 if array in ("lo", "hi") else e.bytes)

        def integers(x):
            return e.splat(x if e.int_type == I64 else b.trunc(x, e.int_type))

        table = pointer("parameters")
        values, later = emit_parameters(e, name, count, table), e.load(pointer("w", lane0), scalar)
        lane = b.add(integers(lane0), e.iota())

        def step(i: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            place = b.add(b.mul(i, ir.Constant(I64, BLOCK)), lane0)
            s, dp = (e.load(pointer(array, place), scalar) for array in ("p", "ds"))
            delta = e.load(pointer("y", place), scalar) if masks else b.fadd(e.splat(row_value("u", i)), later)
            weight = e.exp2(emit_bias(e, name, count, values, table, s, delta))
            if dropping:
                at = b.add(b.mul(i, ir.Constant(I64, MASK_STRIDE)), b.add(lane0, values_of["skipped"]))
                factor = e.load(pointer("mask", at), scalar)
                gradient, weight = b.fmul(weight, e.fma(factor, dp, e.splat(row_value("minus_delta", i)))), b.fmul(weight, factor)
            else:
                gradient = b.fmul(weight, dp)
            if masks:
                reads = b.and_(b.icmp_signed(">=", lane, integers(row_value("lo", i))), b.icmp_signed("<=", lane, integers(row_value("hi", i))))
                weight, gradient = (b.select(reads, x, e.constant(0.0)) for x in (weight, gradient))
            e.store(weight, pointer("p", place), scalar)
            e.store(gradient, pointer("ds", place), scalar)
            add_bias_sums(narrow, e, name, count, values, gradient, delta, pointer("sums"))
            return carried

        counted_loop(e, values_of["first"], values_of["end"], 1, [], step)
        return context.get_dummy_value()

    return types.void(*given), generate


GRADIENT_ARGUMENTS = (
    "kind", "terms", "masked", "drops", "first", "end", "column", "minus_delta", "u", "w", "y", "lo", "hi", "parameters", "mask", "skipped", "p",
    "ds", "sums", "columns",
)  # fmt: skip
