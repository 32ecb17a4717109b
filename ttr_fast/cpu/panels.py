"""Packed panels of matrices, and the product of two of them in registers.

A panel holds `width` rows of A, or columns of B, side by side for each k: what a step of the micro-kernel reads lies together, in the order in which
it is read. The type of the panel says how products are formed:

    float32, float64    one number for each k, converted from its storage while packing; sums by fused multiply-adds
    uint32              two bf16 numbers, of an even k and the one after it; sums by the dot product of AVX512-BF16, which adds the odd one first and
                        takes subnormal numbers for 0. An odd count of k is filled up with a 0

Either way one element of the product is one chain over ascending k that starts at 0, whichever panel, tile or block it falls into.

    source whose lanes lie next to each other (rows of B)       copied row by row, bf16 pairs zipped from two rows
    source whose k lie next to each other (rows of A)           turned, a square in registers at a time

What a source has no lanes or no k for is 0 in its panel.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from ttr_fast.cpu.half import has_feature
from ttr_fast.cpu.jit import inner
from ttr_fast.cpu.simd import I16, I32, I64, Emitter, in_pairs, item_pointer, vector_at
from ttr_fast.cpu.tiles import counted_loop, offset, unrolled_loop

WIDE = has_feature(cpu_target.target_context, "avx512f")
"""Whether there are 32 registers of a whole vector. Kernels that freeze these constants are kept apart by Numba: the CPU is part of its key."""
ROWS, COLUMNS = (8, 2) if WIDE else (4, 1)
"""Rows of A and vectors of columns of B in a tile: as many sums as registers hold, and enough of them to hide the latency of an addition."""
PAIRS = has_feature(cpu_target.target_context, "avx512bf16")
"""Whether bf16 is multiplied in pairs."""


def compute_type(panel: types.Array) -> Any:
    """The type of its sums."""
    return types.float32 if in_pairs(panel) else panel.dtype


@intrinsic
def each(typing, panel):
    """How many k there are in one item of a panel."""

    def generate(context, b, signature, arguments):
        return ir.Constant(I64, 2 if in_pairs(panel) else 1)

    return types.intp(panel), generate


def put(b: ir.IRBuilder, vector: ir.Value, pointer: ir.Value, align: int) -> None:
    """The inverse."""
    b.store(vector, b.bitcast(pointer, vector.type.as_pointer()), align=align)


def shuffled(b: ir.IRBuilder, x: ir.Value, y: ir.Value, order: list[int]) -> ir.Value:
    """Lanes of x, then of y, in that order."""
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(order)), order))


def turned(b: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """The transpose, as as many vectors of the same length, its rows one behind the other; numbers of rows and lanes are powers of two.

    One perfect shuffle of all numbers moves the highest bit of a number's place (row, lane) to the lowest; after log₂(rows) it is (lane, row).
    """
    n, lanes = len(rows), rows[0].type.count
    zipped = [start for i in range(lanes) for start in (i, lanes + i)]
    for _ in range(n.bit_length() - 1):
        rows = [shuffled(b, rows[i], rows[i + n // 2], zipped[h * lanes : (h + 1) * lanes]) for i in range(n // 2) for h in range(2)]
    return rows


@intrinsic(prefer_literal=True)
def copy_step(typing, source, at, stride, panel, to, vectors):
    """One step of a panel from lanes that lie next to each other; rows of the source are `stride` apart. vectors: of columns, or 0 for ROWS rows."""

    def generate(context, b, signature, arguments):
        kinds, (_, _, row, *_) = signature.args, arguments
        e = Emitter(context, b, compute_type(panel))
        width = vectors.literal_value * e.lanes or ROWS
        p, q = (item_pointer(context, b, kinds[i], arguments[i], arguments[i + 1]) for i in (0, 3))
        if in_pairs(panel):
            even, odd = vector_at(b, p, I16, width), vector_at(b, offset(e, p, (row, 1)), I16, width)
            put(b, shuffled(b, even, odd, [start for i in range(width) for start in (i, width + i)]), q, 4)
        else:
            e = Emitter(context, b, panel.dtype, width)
            e.store(e.load(p, source.dtype), q, panel.dtype)
        return context.get_dummy_value()

    return types.void(source, at, stride, panel, to, vectors), generate


@intrinsic(prefer_literal=True)
def turn_steps(typing, source, at, stride, panel, to, vectors):
    """As many steps of a panel as a vector has lanes, from k that lie next to each other."""

    def generate(context, b, signature, arguments):
        kinds, (_, _, row, *_) = signature.args, arguments
        e = Emitter(context, b, compute_type(panel))
        width = vectors.literal_value * e.lanes or ROWS
        p, q = (item_pointer(context, b, kinds[i], arguments[i], arguments[i + 1]) for i in (0, 3))
        lanes = [offset(e, p, (row, i)) for i in range(width)]
        rows = [vector_at(b, x, I32, e.lanes) if in_pairs(panel) else e.load(x, source.dtype) for x in lanes]
        for i, v in enumerate(turned(b, rows)):
            put(b, v, offset(e, q, (i, e.lanes)), e.bytes)
        return context.get_dummy_value()

    return types.void(source, at, stride, panel, to, vectors), generate


@intrinsic(prefer_literal=True)
def advance(typing, count, a, a0, b, b0, c, c0, rows):
    """C[i, j] continues its chain with A[i, k] B[k, j] for `count` further steps: panels A and B, C one tile whose rows lie one behind the other.

    B may also be a panel of numbers in 16-bit storage; they are converted on the way.
    """
    n_rows, pairs = rows.literal_value, in_pairs(a)

    def generate(context, builder, signature, arguments):
        kinds = signature.args
        e = Emitter(context, builder, c.dtype)
        pa, pb, pc = (item_pointer(context, builder, kinds[i], arguments[i], arguments[i + 1]) for i in (1, 3, 5))
        width = COLUMNS * e.lanes
        product = e.dot if pairs else e.fma

        def step(k: ir.Value, u: int, sums: list[ir.Value]) -> list[ir.Value]:
            at_a, at_b = offset(e, pa, (k, ROWS), (u, ROWS)), offset(e, pb, (k, width), (u, width))
            places = [offset(e, at_b, (j, e.lanes)) for j in range(COLUMNS)]
            vectors = [vector_at(builder, p, I32, e.lanes) if pairs else e.load(p, b.dtype) for p in places]
            new = []
            for i in range(n_rows):
                x = e.splat(builder.load(offset(e, at_a, (i, 1)), align=e.bytes))
                new += [product(x, vectors[j], sums[i * COLUMNS + j]) for j in range(COLUMNS)]
            return new

        places = [offset(e, pc, (i, e.lanes)) for i in range(n_rows * COLUMNS)]
        sums = unrolled_loop(e, arguments[0], [e.load(p, c.dtype) for p in places], step)
        for p, v in zip(places, sums, strict=True):
            e.store(v, p, c.dtype)
        return context.get_dummy_value()

    if pairs and (not PAIRS or c.dtype != types.float32):
        return None
    return types.void(count, a, a0, b, b0, c, c0, rows), generate


@intrinsic(prefer_literal=True)
def stream(typing, panels, a, a0, b, b0, stride, c, c0, c_panel, rows, steps):
    """`advance` by a constant number of steps for several neighbouring panels of columns, B read where it lies: along its rows, several at a time."""
    n_rows, pairs = rows.literal_value, in_pairs(a)

    def generate(context, builder, signature, arguments):
        kinds = signature.args
        e = Emitter(context, builder, c.dtype)
        pa, pb, pc = (item_pointer(context, builder, kinds[i], arguments[i], arguments[i + 1]) for i in (1, 3, 6))
        row, c_step, product = arguments[5], arguments[8], e.dot if pairs else e.fma
        share, zipped = 2 if pairs else 1, [start for i in range(e.lanes) for start in (i, e.lanes + i)]

        def vector(u: int, place: ir.Value) -> ir.Value:
            at = offset(e, place, (row, share * u))
            if not pairs:
                return e.load(at, b.dtype)
            return shuffled(builder, vector_at(builder, at, I16, e.lanes), vector_at(builder, offset(e, at, (row, 1)), I16, e.lanes), zipped)

        def step(panel: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            for j in range(COLUMNS):
                at_b, at_c = offset(e, pb, (panel, COLUMNS * e.lanes), (j, e.lanes)), offset(e, pc, (panel, c_step), (j, e.lanes))
                places = [offset(e, at_c, (i, COLUMNS * e.lanes)) for i in range(n_rows)]
                sums = [e.load(p, c.dtype) for p in places]
                for u in range(steps.literal_value):
                    v = vector(u, at_b)
                    for i in range(n_rows):
                        x = e.splat(builder.load(offset(e, pa, (u, ROWS), (i, 1)), align=e.bytes))
                        sums[i] = product(x, v, sums[i])
                for p, v in zip(places, sums, strict=True):
                    e.store(v, p, c.dtype)
            return carried

        counted_loop(e, ir.Constant(I64, 0), arguments[0], 1, [], step)
        return context.get_dummy_value()

    if pairs and (not PAIRS or c.dtype != types.float32):
        return None
    return types.void(panels, a, a0, b, b0, stride, c, c0, c_panel, rows, steps), generate


def packer(vectors: int) -> Any:
    """The function that fills panels of `vectors` vectors of columns, or of ROWS rows for 0."""

    @inner(vectors)
    def pack(source, k_inside, stride, first, lanes, k, count, panel, to):
        """Lanes first … of the source's `lanes`, steps k … k + count, to panel[to …], whose room is a multiple of what is turned at once.

        k_inside: whether k or lanes lie next to each other; `stride` is the distance of the others.
        """
        vector = 64 // panel.itemsize
        width = vectors * vector if vectors else ROWS
        share = each(panel)
        depth = vector * share if k_inside else share
        valid = min(width, lanes - first)
        whole = count // depth * depth if valid == width else 0
        if k_inside:
            for s in range(0, whole, depth):
                turn_steps(source, first * stride + k + s, stride, panel, to + s // share * width, vectors)
        else:
            for s in range(0, whole, depth):
                copy_step(source, (k + s) * stride + first, stride, panel, to + s // share * width, vectors)
        if whole == count:
            return
        edge = np.zeros(width * depth, source.dtype)
        for s in range(whole, count, depth):
            n = min(depth, count - s)
            if n < depth:
                edge[:] = 0
            for i in range(valid):
                for j in range(n):
                    if k_inside:
                        edge[i * depth + j] = source[(first + i) * stride + k + s + j]
                    else:
                        edge[j * width + i] = source[(k + s + j) * stride + first + i]
            if k_inside:
                turn_steps(edge, 0, depth, panel, to + s // share * width, vectors)
            else:
                copy_step(edge, 0, width, panel, to + s // share * width, vectors)

    return pack


pack_rows, pack_columns = packer(0), packer(COLUMNS)
