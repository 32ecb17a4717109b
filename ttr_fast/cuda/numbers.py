"""The few operations that a device and the simulator have to be told apart for: storage, rounding, elementary functions.

16-bit floats travel as integers: int16 holds f16, uint16 holds bf16, as on the CPU. Arithmetic on them is float32.

    bf16 → f32   the bits, shifted up by 16
    f32 → bf16   (u + 0x7fff + (bit 16 of u)) >> 16: to nearest, ties to even; NaN stays a quiet NaN
    f16 ↔ f32    one instruction

Beside it only jit.py, primitives.py and workspace.py know which of the two they run on.
"""

import math
from typing import Any

import numpy as np

from ttr_fast.cuda.jit import SIMULATED
from ttr_ref.float_dtype import FloatDType

CARRIERS = {FloatDType.F64: np.float64, FloatDType.F32: np.float32, FloatDType.F16: np.int16, FloatDType.BF16: np.uint16}
"""NumPy's type of the arrays in which kernels see each storage."""

exp: Any
log: Any
log1p: Any
log2: Any
sqrt: Any
rint: Any

if SIMULATED:
    import ml_dtypes

    STORED = {"int16": np.float16, "uint16": ml_dtypes.bfloat16}

    def compute_type(like):
        """The type of arithmetic of an array of any storage, or of a number."""
        return np.float64 if like.dtype == np.float64 else np.float32

    def number(like, value):
        """A value in that type."""
        return compute_type(like)(value)

    def load(array, index):
        """An item of any storage in the type of arithmetic."""
        item = array[index]
        return np.float32(item.view(STORED[array.dtype.name])) if array.dtype.itemsize == 2 else item

    def store(value, array, index):
        """A value into an array of any storage, rounded once."""
        if array.dtype.itemsize == 2:
            array[index] = STORED[array.dtype.name](value).view(array.dtype)
        else:
            array[index] = value

    def times(a, b):
        """a · b, rounded before anything else happens to it."""
        return a * b

    exp, log, log1p, log2, sqrt, rint = np.exp, np.log, np.log1p, np.log2, np.sqrt, np.rint
else:
    from llvmlite import ir
    from numba import types
    from numba.cuda import libdevice
    from numba.cuda.extending import intrinsic, overload  # type: ignore[attr-defined]  # Numba alone has no overload

    I16, I32, F16, F32 = ir.IntType(16), ir.IntType(32), ir.HalfType(), ir.FloatType()

    @intrinsic
    def bf16_number(typing, bits):
        """uint16 → float32."""

        def generate(context, b, signature, arguments):
            return b.bitcast(b.shl(b.zext(arguments[0], I32), ir.Constant(I32, 16)), F32)

        return types.float32(types.uint16), generate

    @intrinsic
    def bf16_bits(typing, x):
        """float32 → uint16."""

        def generate(context, b, signature, arguments):
            u, half = b.bitcast(arguments[0], I32), ir.Constant(I32, 16)
            high = b.lshr(u, half)
            rounded = b.lshr(b.add(u, b.add(b.and_(high, ir.Constant(I32, 1)), ir.Constant(I32, 0x7FFF))), half)
            number = b.fcmp_ordered("ord", arguments[0], arguments[0])
            return b.trunc(b.select(number, rounded, b.or_(high, ir.Constant(I32, 0x40))), I16)

        return types.uint16(types.float32), generate

    @intrinsic
    def f16_number(typing, bits):
        """int16 → float32."""

        def generate(context, b, signature, arguments):
            return b.fpext(b.bitcast(arguments[0], F16), F32)

        return types.float32(types.int16), generate

    @intrinsic
    def f16_bits(typing, x):
        """float32 → int16."""

        def generate(context, b, signature, arguments):
            return b.bitcast(b.fptrunc(arguments[0], F16), I16)

        return types.int16(types.float32), generate

    def compute_type(like):
        """The type of arithmetic of an array of any storage, or of a number."""

    def number(like, value):
        """A value in that type."""

    def load(array, index):
        """An item of any storage in the type of arithmetic."""

    def store(value, array, index):
        """A value into an array of any storage, rounded once."""

    def times(a, b):
        """a · b, rounded before anything else happens to it."""

    @overload(compute_type)
    def compute_type_of(like):
        kind = np.float64 if getattr(like, "dtype", like) == types.float64 else np.float32
        return lambda like: kind

    @overload(number)
    def number_of(like, value):
        kind = types.float64 if getattr(like, "dtype", like) == types.float64 else types.float32
        return lambda like, value: kind(value)

    @overload(load)
    def load_of(array, index):
        if array.dtype == types.uint16:
            return lambda array, index: bf16_number(array[index])
        if array.dtype == types.int16:
            return lambda array, index: f16_number(array[index])
        return lambda array, index: array[index]

    @overload(store)
    def store_of(value, array, index):
        convert: Any = {types.uint16: bf16_bits, types.int16: f16_bits}.get(array.dtype)

        def plain(value, array, index):
            array[index] = value

        def rounded(value, array, index):
            array[index] = convert(value)

        return rounded if convert else plain

    @overload(times)
    def times_of(a, b):
        multiply = libdevice.dmul_rn if a == types.float64 else libdevice.fmul_rn

        def product(a, b):
            return multiply(a, b)

        return product

    exp, log, log1p, log2, sqrt, rint = math.exp, math.log, math.log1p, math.log2, math.sqrt, libdevice.rint
