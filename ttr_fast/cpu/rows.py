"""What the kernels that go through rows share: vectors at the end of a row, sums over rows, sine and cosine.

A row of E features is read a vector at a time. Behind its end stand zeros (`load_part`), or any value that changes nothing (`load_or`), and
`store_part` writes no further than the row goes. So one loop serves every E, and the order of a sum over a row depends on E alone.

Sums over rows, as a weight's gradient, are formed in CHUNK rows each and then added in order: their number depends on the input, never on the number
of threads.

    sin x, cos x    x − n π/2 = r, |r| ≤ π/4, with π/2 in two parts; Taylor's series in r², in float64 always
"""

import math
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ttr_fast.cpu import simd
from ttr_fast.cpu.simd import COMPUTE, I32, I64, LANES, VECTORS, Emitter, is_contiguous, item_pointer
from ttr_fast.cpu.team import share, team

CHUNK = 64
"""Rows whose sums are formed together."""
HALF_PI_HIGH, HALF_PI_LOW = math.pi / 2, 6.123233995736766e-17
SINE = tuple((-1) ** k / math.factorial(2 * k + 1) for k in range(9))
COSINE = tuple((-1) ** k / math.factorial(2 * k) for k in range(10))


def chunks_of(rows: int) -> int:
    """How many chunks: the first axis of the buffers for partial sums."""
    return -(-rows // CHUNK)


class RowEmitter(Emitter):
    """An emitter for one type of items, which knows the end of a row; its vectors may be narrower than LANES."""

    def __init__(self, context, builder: Any, item: Any, lanes: int) -> None:
        super().__init__(context, builder, COMPUTE[item])
        self.item, self.lanes, self.is_half = item, lanes, item not in (types.float32, types.float64)
        self.vector_type, self.int_vector = ir.VectorType(self.float_type, lanes), ir.VectorType(self.int_type, lanes)
        self.kind = ir.VectorType(ir.IntType(16), lanes) if self.is_half else self.vector_type  # as it lies in memory
        self.kind_name = f"v{lanes}i16" if self.is_half else f"v{lanes}f{8 * self.bytes}"
        self.item_bytes = 2 if self.is_half else self.bytes

    def part(self, count: ir.Value) -> ir.Value:
        """True in the lanes before `count`."""
        return self.b.icmp_signed("<", ir.Constant(ir.VectorType(I64, self.lanes), list(range(self.lanes))), self.splat(count))

    def is_whole(self, count: ir.Value) -> ir.Value:
        """Whether all lanes lie before `count`."""
        return self.b.icmp_signed(">=", count, ir.Constant(I64, self.lanes))

    def load_or(self, pointer: ir.Value, count: ir.Value, other: ir.Value) -> ir.Value:
        """The items before `count`, and `other` behind them, where memory is not read."""
        b = self.b
        with b.if_else(self.is_whole(count)) as (then, otherwise):
            with then:
                full, full_block = self.load(pointer, self.item), b.block
            with otherwise:
                mask, zeros = self.part(count), ir.Constant(self.kind, [0] * self.lanes)
                at = b.bitcast(pointer, self.kind.as_pointer())
                stored = self.call(f"llvm.masked.load.{self.kind_name}.p0", self.kind, at, ir.Constant(I32, self.item_bytes), mask, zeros)
                part, part_block = b.select(mask, self.from_storage(stored, self.item), other), b.block
        result = b.phi(self.vector_type)
        result.add_incoming(full, full_block)
        result.add_incoming(part, part_block)
        return result

    def store_part(self, v: ir.Value, pointer: ir.Value, count: ir.Value) -> None:
        """The lanes before `count`, rounded once."""
        b, stored = self.b, self.to_storage(v, self.item)
        at = b.bitcast(pointer, self.kind.as_pointer())
        with b.if_else(self.is_whole(count)) as (then, otherwise):
            with then:
                b.store(stored, at, align=self.item_bytes)
            with otherwise:
                size = ir.Constant(I32, self.item_bytes)
                self.call(f"llvm.masked.store.{self.kind_name}.p0", ir.VoidType(), stored, at, size, self.part(count))

    def shuffle(self, v: ir.Value, lanes: list[int]) -> ir.Value:
        """The lanes of v in another order."""
        return self.b.shuffle_vector(v, v, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


@intrinsic
def load_or(typing, array, index, count, other):
    """The next items from the flat index, `count` at most, with the lanes of the vector `other` behind them."""
    if not is_contiguous(array):
        return None
    scalar = COMPUTE[array.dtype]

    def generate(context, b, signature, arguments):
        a, i, n, behind = arguments
        return RowEmitter(context, b, array.dtype, LANES[scalar]).load_or(item_pointer(context, b, array, a, i), n, behind)

    return VECTORS[scalar](array, types.intp, types.intp, VECTORS[scalar]), generate


@intrinsic
def load_part(typing, array, index, count):
    """The next items from the flat index, `count` at most, with zeros behind them."""
    if not is_contiguous(array):
        return None
    scalar = COMPUTE[array.dtype]

    def generate(context, b, signature, arguments):
        e = RowEmitter(context, b, array.dtype, LANES[scalar])
        return e.load_or(item_pointer(context, b, array, *arguments[:2]), arguments[2], e.constant(0.0))

    return VECTORS[scalar](array, types.intp, types.intp), generate


@intrinsic
def load_twice(typing, array, index, count):
    """Half a vector's items, each in two neighbouring lanes, zeros behind `count` items: what a pair shares."""
    if not is_contiguous(array):
        return None
    scalar = COMPUTE[array.dtype]

    def generate(context, b, signature, arguments):
        e = RowEmitter(context, b, array.dtype, LANES[scalar] // 2)
        v = e.load_or(item_pointer(context, b, array, *arguments[:2]), arguments[2], e.constant(0.0))
        return e.shuffle(v, [lane // 2 for lane in range(LANES[scalar])])

    return VECTORS[scalar](array, types.intp, types.intp), generate


@intrinsic
def load_wide(typing, array, index, count):
    """Like load_part, as float64 whatever the array holds."""
    if not is_contiguous(array):
        return None
    wide = VECTORS[types.float64]

    def generate(context, b, signature, arguments):
        e = RowEmitter(context, b, array.dtype, LANES[types.float64])
        v = e.load_or(item_pointer(context, b, array, *arguments[:2]), arguments[2], e.constant(0.0))
        return v if e.double else b.fpext(v, Emitter.of(types.float64).vector_type)

    return wide(array, types.intp, types.intp), generate


@intrinsic
def store_part(typing, vector, array, index, count):
    """The lanes before `count` to the flat index, rounded to the array's storage; from float64 to 16 bits by way of float32."""
    if not is_contiguous(array):
        return None

    def generate(context, b, signature, arguments):
        v, a, i, n = arguments
        e = RowEmitter(context, b, array.dtype, LANES[vector.scalar])
        if v.type != e.vector_type:
            v = b.fptrunc(v, e.vector_type)
        e.store_part(v, item_pointer(context, b, array, a, i), n)
        return context.get_dummy_value()

    return types.void(vector, array, types.intp, types.intp), generate


@intrinsic
def number(typing, array, x):
    """A number in the array's type of arithmetic."""
    scalar: Any = COMPUTE[array.dtype]

    def generate(context, b, signature, arguments):
        return context.cast(b, arguments[1], x, scalar)

    return scalar(array, x), generate


@intrinsic
def full(typing, array, x):
    """A number in every lane of a vector of the array's type of arithmetic."""
    scalar = COMPUTE[array.dtype]

    def generate(context, b, signature, arguments):
        return Emitter(context, b, scalar).splat(context.cast(b, arguments[1], x, scalar))

    return VECTORS[scalar](array, x), generate


@intrinsic
def lanes_of(typing, array):
    """Numbers in a vector of the array's type of arithmetic."""
    lanes = LANES[COMPUTE[array.dtype]]
    return types.intp(array), lambda context, b, signature, arguments: ir.Constant(I64, lanes)


@intrinsic
def only_lane(typing, vector, lane):
    """The vector in one lane, zeros in the others; in all of them if there is no such lane."""

    def generate(context, b, signature, arguments):
        e = RowEmitter(context, b, vector.scalar, LANES[vector.scalar])
        places = ir.Constant(ir.VectorType(I64, e.lanes), list(range(e.lanes)))
        return b.select(b.icmp_signed("==", places, e.splat(arguments[1])), arguments[0], e.constant(0.0))

    return vector(vector, types.intp), generate


def emit_swap(e: Emitter, x: ir.Value) -> ir.Value:
    """Neighbours change places."""
    return e.b.shuffle_vector(x, x, ir.Constant(ir.VectorType(I32, e.lanes), [lane ^ 1 for lane in range(e.lanes)]))


def emit_turn(e: Emitter, x: ir.Value) -> ir.Value:
    """(x₀, x₁) → (−x₁, x₀) for each pair of neighbours."""
    return e.b.fmul(emit_swap(e, x), ir.Constant(e.vector_type, [-1.0, 1.0] * (e.lanes // 2)))


def emit_sine(e: Emitter, x: ir.Value, quarters: int) -> ir.Value:
    """sin(x + quarters · π/2) for |x| of a few turns at most, float64."""
    n = e.call(f"llvm.rint.{e.suffix}", e.vector_type, e.b.fmul(x, e.constant(2 / math.pi)))
    r = e.fma(n, e.constant(-HALF_PI_HIGH), x)
    r = e.fma(n, e.constant(-HALF_PI_LOW), r)
    square = e.b.fmul(r, r)
    sine = e.fma(e.b.fmul(r, square), e.polynomial(SINE[1:], square), r)
    cosine = e.polynomial(COSINE, square)
    quadrant = e.b.add(e.b.fptosi(n, e.int_vector), e.integers(quarters))
    odd = e.b.icmp_signed("!=", e.b.and_(quadrant, e.integers(1)), e.integers(0))
    sign = e.b.shl(e.b.and_(quadrant, e.integers(2)), e.integers(62))
    v = e.b.bitcast(e.b.select(odd, cosine, sine), e.int_vector)
    return e.b.bitcast(e.b.xor(v, sign), e.vector_type)


def emit_phase(e: Emitter, x: ir.Value) -> ir.Value:
    """x less the nearest whole number of turns, with the oracle's own roundings (time2vec.reduced_phase)."""
    turns = e.call(f"llvm.rint.{e.suffix}", e.vector_type, e.b.fdiv(x, e.constant(2 * math.pi)))
    return e.b.fsub(x, e.b.fmul(e.constant(2 * math.pi), turns))


turn = simd.unary(emit_turn)
phase = simd.unary(emit_phase)
sine = simd.unary(lambda e, x: emit_sine(e, x, 0))
cosine = simd.unary(lambda e, x: emit_sine(e, x, 1))
vmin = simd.binary(lambda e, x, y: e.b.select(e.b.fcmp_ordered(">", x, y), y, x))


@team()
def sum_chunks(worker, workers, partial, total):
    """total (E,) = the sum of partial (chunks, E), in order."""
    chunks, e = partial.shape
    lanes = lanes_of(partial)
    begin, end = share(worker, workers, (e + lanes - 1) // lanes)
    for block in range(begin, end):
        k = block * lanes
        s = full(partial, 0)
        for c in range(chunks):
            s = simd.add(s, load_part(partial, c * e + k, e - k))
        store_part(s, total, k, e - k)
