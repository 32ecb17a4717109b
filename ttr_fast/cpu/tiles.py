"""Matrix micro-kernels in registers: rows × columns accumulators, one broadcast and `rows` fused multiply-adds a step.

    C[i, j] = start[i, j] + Σ_k A[i, k] B[k, j]        k in ascending order, each step one fma

A is read one number at a time (any strides), B a vector at a time (columns are lanes, contiguous). Each element's sum runs over k alone, in order,
from a start of its own: its bits do not depend on the tile's shape, on its neighbours or on which kernel asks. A tile whose sums do not fit into the
CPU's registers is formed in parts that do.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ttr_fast.cpu.simd import I32, I64, LINE, Emitter, in_pairs, item_pointer, registers, vector_at

UNROLL = 4
Start = Callable[[int, int], ir.Value]
Finish = Callable[[int, int, ir.Value], None]
Step = Callable[[ir.Value, list[ir.Value]], list[ir.Value]]
UnrolledStep = Callable[[ir.Value, int, list[ir.Value]], list[ir.Value]]


def offset(e: Emitter, pointer: ir.Value, *products: tuple[Any, Any]) -> ir.Value:
    """pointer + Σ a·b items, where a and b are integers or values."""
    total: Any = 0
    for a, b in products:
        if isinstance(a, int) and isinstance(b, int):
            term: Any = a * b
        else:
            a, b = (ir.Constant(I64, x) if isinstance(x, int) else x for x in (a, b))
            term = e.b.mul(a, b)
        if isinstance(total, int) and isinstance(term, int):
            total += term
        else:
            x, y = (ir.Constant(I64, v) if isinstance(v, int) else v for v in (total, term))
            total = e.b.add(x, y)
    if isinstance(total, int):
        return e.b.gep(pointer, [ir.Constant(I64, total)]) if total else pointer
    return e.b.gep(pointer, [total])


def counted_loop(e: Emitter, start: ir.Value, stop: ir.Value, stride: int, carried: Sequence[ir.Value], step: Step) -> list[ir.Value]:
    """for k in range(start, stop, stride): carried = step(k, carried); may run zero times."""
    b = e.b
    before, loop, after = b.block, b.append_basic_block("loop"), b.append_basic_block("after")
    b.cbranch(b.icmp_signed("<", start, stop), loop, after)
    b.position_at_end(loop)
    k = b.phi(I64)
    k.add_incoming(start, before)
    phis = [b.phi(v.type) for v in carried]
    values = step(k, list(phis))
    following = b.add(k, ir.Constant(I64, stride))
    end = b.block
    k.add_incoming(following, end)
    for phi, first, new in zip(phis, carried, values, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(new, end)
    b.cbranch(b.icmp_signed("<", following, stop), loop, after)
    b.position_at_end(after)
    results = [b.phi(v.type) for v in carried]
    for phi, first, new in zip(results, carried, values, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(new, end)
    return results


def unrolled_loop(e: Emitter, count: Any, carried: Sequence[ir.Value], step: UnrolledStep) -> list[ir.Value]:
    """carried = step(k, u, carried) for u = 0 … UNROLL − 1 at k, k + UNROLL, …, and what is left over one by one; element k + u is meant."""

    def several(k: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
        """UNROLL steps."""
        for u in range(UNROLL):
            values = step(k, u, values)
        return values

    if isinstance(count, int):
        whole, count = ir.Constant(I64, count // UNROLL * UNROLL), ir.Constant(I64, count)
    else:
        whole = e.b.and_(count, ir.Constant(I64, -UNROLL))
    carried = counted_loop(e, ir.Constant(I64, 0), whole, UNROLL, carried, several)
    return counted_loop(e, whole, count, 1, carried, lambda k, values: step(k, 0, values))


def part_of(context: Any, rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of the parts of a tile: as many sums as fit into registers beside a vector of each column and a number that is broadcast."""
    count, width = registers(context)
    pieces = LINE // width
    shapes = [(min(rows, ((count - 1) // pieces - c) // c), c) for c in range(1, columns + 1)]
    most_rows, most_columns = max(shapes, key=lambda shape: (shape[0] * shape[1], -shape[1]))
    parts = -(-rows // max(most_rows, 1))
    return -(-rows // parts), most_columns


def accumulate(
    e: Emitter, count: Any, a: ir.Value, a_row: Any, a_step: Any, b: ir.Value, b_step: Any, shape: tuple[int, int], start: Start, finish: Finish,
    pairs: bool = False
) -> None:  # fmt: skip
    """finish(i, j, start(i, j) + Σ_k A[i, k] B[k, j·LANES …]) for a tile of that shape, A at a + i·a_row + k·a_step, B at b + k·b_step.

    pairs: each item of A and B holds two bf16 numbers, and a step is a dot product.
    """
    (rows, columns), (height, breadth) = shape, part_of(e.context, *shape)
    product = e.dot if pairs else e.fma

    def one_part(first: int, some_rows: int, left: int, some_columns: int) -> None:
        """Rows from `first` and columns from `left` on."""
        places = [(first + i, left + j) for i in range(some_rows) for j in range(some_columns)]
        row_pointers = [offset(e, a, (first + i, a_row)) for i in range(some_rows)]

        def step(k: ir.Value, u: int, sums: list[ir.Value]) -> list[ir.Value]:
            at = offset(e, b, (k, b_step), (u, b_step))
            columns_at = [offset(e, at, (left + j, e.lanes)) for j in range(some_columns)]
            vectors = [vector_at(e.b, p, I32, e.lanes) if pairs else e.load(p, SCALARS[e.double]) for p in columns_at]
            new = []
            for i in range(some_rows):
                x = e.splat(e.b.load(offset(e, row_pointers[i], (k, a_step), (u, a_step)), align=e.bytes))
                new += [product(x, vectors[j], sums[i * some_columns + j]) for j in range(some_columns)]
            return new

        for place, total in zip(places, unrolled_loop(e, count, [start(*place) for place in places], step), strict=True):
            finish(*place, total)

    for first in range(0, rows, height):
        for left in range(0, columns, breadth):
            one_part(first, min(height, rows - first), left, min(breadth, columns - left))


SCALARS = {False: types.float32, True: types.float64}


def number(numba_type: Any, value: ir.Value) -> Any:
    """An integer argument: a Python int where Numba knows it while compiling."""
    return numba_type.literal_value if isinstance(numba_type, types.IntegerLiteral) else value


@intrinsic(prefer_literal=True)
def multiply(typing, count, a, a0, a_row, a_step, b, b0, b_step, c, c0, c_row, rows, columns):
    """C[i, j] += Σ_k A[i, k] B[k, j] for `rows` rows and columns · LANES columns, k < count: the sum starts at 0 and is added at its end.

    Arrays are flat and contiguous, indices in items; rows and columns are constants. A and B may both be arrays of pairs of bf16 numbers.
    """
    if not isinstance(rows, types.IntegerLiteral) or not isinstance(columns, types.IntegerLiteral):
        return None
    n_rows, n_columns, scalar = rows.literal_value, columns.literal_value, c.dtype

    def generate(context, builder, signature, arguments):
        e, kinds = Emitter(context, builder, scalar), signature.args
        values = [number(kind, value) for kind, value in zip(kinds, arguments, strict=True)]
        n, _, _, row_a, step_a, _, _, step_b, _, _, row_c = values[:11]
        pa, pb, pc = (item_pointer(context, builder, kinds[i], arguments[i], arguments[i + 1]) for i in (1, 5, 8))

        def finish(i: int, j: int, total: ir.Value) -> None:
            at = offset(e, pc, (i, row_c), (j, e.lanes))
            e.store(builder.fadd(e.load(at, scalar), total), at, scalar)

        accumulate(e, n, pa, row_a, step_a, pb, step_b, (n_rows, n_columns), lambda i, j: e.constant(0.0), finish, in_pairs(b))
        return context.get_dummy_value()

    return types.void(count, a, a0, a_row, a_step, b, b0, b_step, c, c0, c_row, rows, columns), generate
