"""Vector values: one emitter of LLVM vector instructions, and the same as values inside kernels.

`Emitter` writes the instructions; the matrix tiles of tiles.py use it directly. The functions below it (`load`, `store`, `splat`, `fma`, `vmax`,
`exp2`, `log2`, `total`, …) are what a kernel calls. A vector holds 16 float32 or 8 float64, on every CPU: LLVM splits it into the registers there
are, so the same sums run in the same order on each.

Memory in 16-bit storage is converted on the way (half.py): load gives float32, store rounds once.

    2^x      x = n + r, |r| ≤ ½:    2ⁿ · p(r)
    log₂ y   y = 2ⁿ · (1 + f), f in [−¼, ½):   n + f · q(f)

For float32 p and q are minimax polynomials of degree 6 and 9, found here once a process by Lawson's iteration (reweighted least squares).
For float64 such a fit would need more than float64: p is Taylor's series, and ln(1 + f) = 2 artanh(f / (2 + f)), in squares below 1/25.
"""

import functools
import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from ttr_fast.cpu import half

I8, I16, I32, I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
F32, F64 = ir.FloatType(), ir.DoubleType()
LINE = 64
"""Bytes that come from memory together."""
LANES = {types.float32: 16, types.float64: 8}


class Spelled(ir.Type):  # type: ignore[misc]
    """An LLVM type by its name; llvmlite has no bfloat."""

    def __init__(self, name: str) -> None:
        self.name = name

    def _to_string(self) -> str:
        return self.name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spelled) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


class Vector(types.Type):
    """Numba's type of LANES[scalar] numbers."""

    def __init__(self, scalar: Any) -> None:
        self.scalar = scalar
        super().__init__(name=f"{scalar}x{LANES[scalar]}")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    """A vector lives in registers as LLVM's vector."""

    def __init__(self, manager, vector):
        super().__init__(manager, vector, Emitter.of(vector.scalar).vector_type)


VECTORS = {scalar: Vector(scalar) for scalar in LANES}
COMPUTE = {types.float64: types.float64, types.float32: types.float32, types.int16: types.float32, types.uint16: types.float32}
"""The type of arithmetic for the type of an array's items."""


def registers(context: Any) -> tuple[int, int]:
    """How many vector registers the CPU has for which code is generated, and their bytes; NUMBA_CPU_NAME and NUMBA_CPU_FEATURES are honoured."""
    if half.has_feature(context, "avx512f"):
        return 32, 64
    if half.on_arm(context):
        return 32, 16
    return 16, 32 if half.has_feature(context, "avx") else 16


def chebyshev_points(low: float, high: float, count: int = 301) -> np.ndarray:
    """Points of [low, high], dense at both ends."""
    return (low + high) / 2 + (high - low) / 2 * np.cos(np.pi * np.arange(count) / (count - 1))


def minimax(values: np.ndarray, x: np.ndarray, weight: np.ndarray, degree: int) -> tuple[float, ...]:
    """Coefficients, lowest first, of the polynomial whose largest weighted error on the points x is nearly smallest (Lawson 1961)."""
    centre, half_width = (x.max() + x.min()) / 2, (x.max() - x.min()) / 2
    basis = np.polynomial.chebyshev.chebvander((x - centre) / half_width, degree)
    share = np.full(x.size, 1 / x.size)
    for _ in range(30):
        root = np.sqrt(share) * weight
        coefficients = np.linalg.lstsq(basis * root[:, None], values * root, rcond=None)[0]
        error = np.abs((basis @ coefficients - values) * weight)
        share = share * (error + 1e-30)
        share /= share.sum()
    fitted = np.polynomial.Chebyshev(coefficients, domain=[centre - half_width, centre + half_width]).convert(kind=np.polynomial.Polynomial)
    return tuple(float(c) for c in fitted.coef)


@functools.cache
def exp2_polynomial(double: bool) -> tuple[float, ...]:
    """p(r) ≈ 2^r on [−½, ½], relative."""
    if double:
        return tuple(math.log(2) ** k / math.factorial(k) for k in range(14))
    x = chebyshev_points(-0.5, 0.5)
    return minimax(np.exp2(x), x, np.exp2(-x), 6)


@functools.cache
def log2_polynomial() -> tuple[float, ...]:
    """q(f) ≈ log₂(1 + f)/f on [−¼, ½], relative to log₂(1 + f)."""
    x = chebyshev_points(-0.25, 0.5, 300)
    return minimax(np.log1p(x) / x / math.log(2), x, np.abs(x / np.log1p(x)), 9)


ARTANH_SERIES = tuple(2 / math.log(2) / (2 * k + 1) for k in range(13))
"""2 artanh(s) / (s ln 2) in powers of s²."""


class Emitter:
    """Vector instructions for one scalar type, written with an IR builder."""

    def __init__(self, context, builder: Any, scalar: Any, lanes: int | None = None) -> None:
        self.context, self.b, self.double = context, builder, scalar == types.float64
        self.lanes = lanes or LANES[scalar]
        self.float_type, self.int_type = (F64, I64) if self.double else (F32, I32)
        self.vector_type, self.int_vector = ir.VectorType(self.float_type, self.lanes), ir.VectorType(self.int_type, self.lanes)
        self.bytes = 8 if self.double else 4
        self.suffix = f"v{self.lanes}f{8 * self.bytes}"

    @staticmethod
    def of(scalar: Any) -> "Emitter":
        """For the types alone."""
        return Emitter(None, None, scalar)

    def constant(self, value: float) -> ir.Constant:
        """A vector of one value, rounded to the scalar's type."""
        return ir.Constant(self.vector_type, [value if self.double else float(np.float32(value))] * self.lanes)

    def integers(self, value: int) -> ir.Constant:
        """A vector of one integer."""
        return ir.Constant(self.int_vector, [value] * self.lanes)

    def iota(self) -> ir.Constant:
        """0, 1, 2, … as integers."""
        return ir.Constant(self.int_vector, list(range(self.lanes)))

    def splat(self, x: ir.Value) -> ir.Value:
        """A scalar in every lane."""
        undefined = ir.Constant(ir.VectorType(x.type, self.lanes), ir.Undefined)
        first = self.b.insert_element(undefined, x, ir.Constant(I32, 0))
        return self.b.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes))

    def several(self, count: int) -> "Emitter":
        """For `count` vectors as one: LLVM writes each instruction for all of them before the next, so that none waits for the one before."""
        return Emitter(self.context, self.b, types.float64 if self.double else types.float32, count * self.lanes)

    def joined(self, vectors: list[ir.Value]) -> ir.Value:
        """Vectors, a power of two of them, as one."""
        while len(vectors) > 1:
            n = 2 * vectors[0].type.count
            order = ir.Constant(ir.VectorType(I32, n), list(range(n)))
            vectors = [self.b.shuffle_vector(vectors[i], vectors[i + 1], order) for i in range(0, len(vectors), 2)]
        return vectors[0]

    def parts(self, x: ir.Value) -> list[ir.Value]:
        """The inverse: the vectors of LANES that a longer one holds."""
        n = self.lanes
        if x.type.count == n:
            return [x]
        return [self.b.shuffle_vector(x, x, ir.Constant(ir.VectorType(I32, n), list(range(i, i + n)))) for i in range(0, x.type.count, n)]

    def call(self, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
        """An LLVM intrinsic."""
        function = cgutils.get_or_insert_function(self.b.module, ir.FunctionType(result, [a.type for a in arguments]), name)
        return self.b.call(function, arguments)

    def fma(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        """x·y + z, one rounding where the CPU fuses, else two (llvm.fma would call a function there)."""
        return self.call(f"llvm.fmuladd.{self.suffix}", self.vector_type, x, y, z)

    def dot(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        """x·y + z for words that hold two bf16 numbers: the odd products are added first, subnormal numbers are 0 (AVX512-BF16)."""
        bf16 = Spelled(f"<{2 * self.lanes} x bfloat>")
        return self.call("llvm.x86.avx512bf16.dpbf16ps.512", self.vector_type, z, self.b.bitcast(x, bf16), self.b.bitcast(y, bf16))

    def both_to_bf16(self, low: ir.Value, high: ir.Value) -> ir.Value:
        """The lanes of one vector, then of another, rounded to bf16, subnormal numbers to 0, as bits (AVX512-BF16)."""
        bf16 = Spelled(f"<{2 * self.lanes} x bfloat>")
        rounded = self.call("llvm.x86.avx512bf16.cvtne2ps2bf16.512", bf16, high, low)
        return self.b.bitcast(rounded, ir.VectorType(I16, 2 * self.lanes))

    def maximum(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """The larger; y where either is NaN."""
        return self.b.select(self.b.fcmp_ordered(">", x, y), x, y)

    def sqrt(self, x: ir.Value) -> ir.Value:
        """√x."""
        return self.call(f"llvm.sqrt.{self.suffix}", self.vector_type, x)

    def load(self, pointer: ir.Value, item: Any) -> ir.Value:
        """LANES items of an array of `item`, in the type of arithmetic."""
        if item in (types.float32, types.float64):
            return self.b.load(self.b.bitcast(pointer, self.vector_type.as_pointer()), align=self.bytes)
        return self.from_storage(self.b.load(self.b.bitcast(pointer, ir.VectorType(I16, self.lanes).as_pointer()), align=2), item)

    def store(self, v: ir.Value, pointer: ir.Value, item: Any) -> None:
        """The inverse, rounded once to the storage of `item`."""
        v = self.to_storage(v, item)
        self.b.store(v, self.b.bitcast(pointer, v.type.as_pointer()), align=self.bytes if item in (types.float32, types.float64) else 2)

    def prefetch(self, pointer: ir.Value) -> None:
        """Ask for the line at an address, into the second cache."""
        reads, near, data = (ir.Constant(I32, n) for n in (0, 2, 1))
        self.call("llvm.prefetch.p0", ir.VoidType(), self.b.bitcast(pointer, I8.as_pointer()), reads, near, data)

    def from_storage(self, stored: ir.Value, item: Any) -> ir.Value:
        """A vector as it lies in memory, in the type of arithmetic."""
        if item in (types.float32, types.float64):
            return stored
        if item == types.uint16:
            return half.bf16_to_f32(self.b, stored, self.lanes)
        return half.f16_to_f32(self.context, self.b, stored, self.lanes)

    def to_storage(self, v: ir.Value, item: Any) -> ir.Value:
        """The inverse, rounded once."""
        if item in (types.float32, types.float64):
            return v
        if item == types.uint16:
            return half.f32_to_bf16(self.b, v, self.lanes)
        return half.f32_to_f16(self.context, self.b, v, self.lanes)

    def polynomial(self, coefficients: tuple[float, ...], x: ir.Value) -> ir.Value:
        """Horner's rule."""
        p = self.constant(coefficients[-1])
        for c in coefficients[-2::-1]:
            p = self.fma(p, x, self.constant(c))
        return p

    def exp2(self, x: ir.Value) -> ir.Value:
        """2^x for x ≤ 127 (float64: 1023); 0 below the smallest normal number's exponent; NaN stays NaN."""
        fraction, lowest = (52, -1022.0) if self.double else (23, -126.0)
        shifter = self.constant(1.5 * 2**fraction)
        t = self.b.fadd(x, shifter)
        r = self.b.fsub(x, self.b.fsub(t, shifter))
        p = self.polynomial(exp2_polynomial(self.double), r)
        n = self.b.shl(self.b.bitcast(t, self.int_vector), self.integers(fraction))
        result = self.b.bitcast(self.b.add(self.b.bitcast(p, self.int_vector), n), self.vector_type)
        return self.b.select(self.b.fcmp_ordered("<", x, self.constant(lowest)), self.constant(0.0), result)

    def log2(self, y: ir.Value) -> ir.Value:
        """log₂ y of a normal y > 0."""
        fraction, three_quarters = (52, 0x3FE8000000000000) if self.double else (23, 0x3F400000)
        u = self.b.bitcast(y, self.int_vector)
        n = self.b.ashr(self.b.sub(u, self.integers(three_quarters)), self.integers(fraction))
        f = self.b.fsub(self.b.bitcast(self.b.sub(u, self.b.shl(n, self.integers(fraction))), self.vector_type), self.constant(1.0))
        if self.double:
            f = self.b.fdiv(f, self.b.fadd(f, self.constant(2.0)))
            q = self.polynomial(ARTANH_SERIES, self.b.fmul(f, f))
        else:
            q = self.polynomial(log2_polynomial(), f)
        return self.fma(q, f, self.b.sitofp(n, self.vector_type))

    def total(self, x: ir.Value, combine: str = "fadd") -> ir.Value:
        """The sum of all lanes, halves folded onto each other: the order is fixed."""
        width = self.lanes
        while width > 1:
            width //= 2
            lower, upper = (ir.Constant(ir.VectorType(I32, width), [start + i for i in range(width)]) for start in (0, width))
            low, high = self.b.shuffle_vector(x, x, lower), self.b.shuffle_vector(x, x, upper)
            x = self.b.fadd(low, high) if combine == "fadd" else self.b.select(self.b.fcmp_ordered(">", low, high), low, high)
        return self.b.extract_element(x, ir.Constant(I32, 0))


def item_pointer(context, b: ir.IRBuilder, array_type: types.Array, array: ir.Value, index: ir.Value) -> ir.Value:
    """The address of item `index` of a contiguous array, whatever its number of axes."""
    return b.gep(context.make_array(array_type)(context, b, array).data, [index])


def in_pairs(panel: types.Array) -> bool:
    """Whether each item is two bf16 numbers."""
    return panel.dtype == types.uint32


def vector_at(b: ir.IRBuilder, pointer: ir.Value, item: ir.Type, lanes: int) -> ir.Value:
    """Items from anywhere, as bits."""
    kind = ir.VectorType(item, lanes)
    return b.load(b.bitcast(pointer, kind.as_pointer()), align=2)


def is_contiguous(array: types.Type) -> bool:
    """Whether vectors can be read from it."""
    return isinstance(array, types.Array) and array.layout == "C" and array.dtype in COMPUTE


@intrinsic
def load(typing, array, index):
    """LANES consecutive items from the flat index."""
    if not is_contiguous(array):
        return None
    scalar = COMPUTE[array.dtype]

    def generate(context, b, signature, arguments):
        return Emitter(context, b, scalar).load(item_pointer(context, b, array, *arguments), array.dtype)

    return VECTORS[scalar](array, types.intp), generate


@intrinsic
def store(typing, vector, array, index):
    """LANES consecutive items to the flat index, rounded to the array's storage."""
    if not is_contiguous(array):
        return None

    def generate(context, b, signature, arguments):
        v, a, i = arguments
        Emitter(context, b, vector.scalar).store(v, item_pointer(context, b, array, a, i), array.dtype)
        return context.get_dummy_value()

    return types.void(vector, array, types.intp), generate


@intrinsic
def prefetch(typing, array, index):
    """Ask for the line of an item that will be read soon, into the second cache."""

    def generate(context, b, signature, arguments):
        Emitter(context, b, types.float32).prefetch(item_pointer(context, b, array, *arguments))
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic
def splat(typing, x):
    """One number in every lane."""
    if x not in LANES:
        return None

    def generate(context, b, signature, arguments):
        return Emitter(context, b, x).splat(arguments[0])

    return VECTORS[x](x), generate


def typed(emit, *vectors):
    """Numba's signature of a function of equal vectors, and how to emit it; None for anything else."""
    if any(v != vectors[0] or not isinstance(v, Vector) for v in vectors):
        return None

    def generate(context, b, signature, arguments):
        return emit(Emitter(context, b, vectors[0].scalar), *arguments)

    return vectors[0](*vectors), generate


def unary(emit):
    """A kernel's function of one vector."""
    return intrinsic(lambda typing, x: typed(emit, x))


def binary(emit):
    """A kernel's function of two vectors."""
    return intrinsic(lambda typing, x, y: typed(emit, x, y))


def folding(combine: str):
    """A kernel's function from a vector to a number."""

    def function(typing, x):
        found = typed(lambda e, v: e.total(v, combine), x)
        return found and (x.scalar(x), found[1])

    return intrinsic(function)


add = binary(lambda e, x, y: e.b.fadd(x, y))
sub = binary(lambda e, x, y: e.b.fsub(x, y))
mul = binary(lambda e, x, y: e.b.fmul(x, y))
div = binary(lambda e, x, y: e.b.fdiv(x, y))
vmax = binary(Emitter.maximum)
fma = intrinsic(lambda typing, x, y, z: typed(Emitter.fma, x, y, z))
sqrt = unary(Emitter.sqrt)
exp2 = unary(Emitter.exp2)
log2 = unary(Emitter.log2)
total = folding("fadd")
largest = folding("max")
