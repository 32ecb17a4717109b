"""f16 and bf16 storage: how their bits become float32 and back, exactly, on any CPU.

Numba has no 16-bit floats. Their bits travel as integers, and which integer says which float: **int16 holds f16, uint16 holds bf16**. So a kernel
is specialised for its storage by the types of its arrays, and nothing else needs to be told.

    bf16 → f32   the bits, shifted up by 16
    f32 → bf16   (u + 0x7fff + (bit 16 of u)) >> 16: to nearest, ties to even; NaN stays a quiet NaN with its sign
    f16 ↔ f32    one instruction where the CPU has it, otherwise arithmetic on the bits (after Maratyszcza's FP16, MIT):
                 up: multiply the shifted bits by 2¹¹², which also makes subnormals normal; down: let a float32 addition do the rounding

All four agree with NumPy and ml_dtypes for every pattern of bits but the payload of a NaN.
"""

import numpy as np
from llvmlite import ir
from numpy import ndarray

from ttr_ref.float_dtype import FloatDType

CARRIERS = {FloatDType.F64: np.float64, FloatDType.F32: np.float32, FloatDType.F16: np.int16, FloatDType.BF16: np.uint16}
"""NumPy's type of the arrays in which kernels see each storage."""


def as_bits(stored: ndarray) -> ndarray:
    """A view of an array in storage type (float64, float32, float16, ml_dtypes.bfloat16) as kernels take it.

    Raises TypeError for any other type.
    """
    for dtype, carrier in CARRIERS.items():
        if stored.dtype == dtype.storage:
            return stored.view(carrier)
    raise TypeError(f"storage must be float64, float32, float16 or bfloat16, got {stored.dtype}")


def as_storage(bits: ndarray) -> ndarray:
    """The inverse of as_bits."""
    for dtype, carrier in CARRIERS.items():
        if bits.dtype == carrier:
            return bits.view(dtype.storage)
    raise TypeError(f"no storage is carried by {bits.dtype}")


def has_feature(context, feature: str) -> bool:
    """Whether the CPU that code is generated for has it; NUMBA_CPU_NAME and NUMBA_CPU_FEATURES are honoured."""
    return f"+{feature}" in context.codegen().magic_tuple()[2].split(",")


def on_arm(context) -> bool:
    """Whether code is generated for AArch64."""
    return bool(context.codegen().magic_tuple()[0].startswith(("aarch64", "arm64")))


def native_f16(context) -> bool:
    """Whether f16 conversions are instructions: F16C or AVX-512 on x86, always on AArch64. Elsewhere LLVM would call functions that are not there."""
    return on_arm(context) or has_feature(context, "f16c") or has_feature(context, "avx512f")


def bf16_to_f32(b: ir.IRBuilder, bits: ir.Value, n: int) -> ir.Value:
    """<n x i16> → <n x float>."""
    words = b.zext(bits, ir.VectorType(I32, n))
    return b.bitcast(b.shl(words, constants(n, 16)), ir.VectorType(F32, n))


def f32_to_bf16(b: ir.IRBuilder, x: ir.Value, n: int) -> ir.Value:
    """<n x float> → <n x i16>."""
    u = b.bitcast(x, ir.VectorType(I32, n))
    odd = b.and_(b.lshr(u, constants(n, 16)), constants(n, 1))
    rounded = b.lshr(b.add(u, b.add(odd, constants(n, 0x7FFF))), constants(n, 16))
    quiet = b.or_(b.lshr(u, constants(n, 16)), constants(n, 0x40))
    return b.trunc(b.select(b.fcmp_unordered("uno", x, x), quiet, rounded), ir.VectorType(I16, n))


def f16_to_f32(context, b: ir.IRBuilder, bits: ir.Value, n: int) -> ir.Value:
    """<n x i16> → <n x float>."""
    floats = ir.VectorType(F32, n)
    if native_f16(context):
        return b.fpext(b.bitcast(bits, ir.VectorType(ir.HalfType(), n)), floats)
    w = b.zext(bits, ir.VectorType(I32, n))
    magnitude = b.and_(w, constants(n, 0x7FFF))
    scaled = b.fmul(b.bitcast(b.shl(magnitude, constants(n, 13)), floats), ir.Constant(floats, [2.0**112] * n))
    u = b.bitcast(scaled, ir.VectorType(I32, n))
    is_special = b.icmp_unsigned(">=", magnitude, constants(n, 0x7C00))
    u = b.select(is_special, b.or_(u, constants(n, 0x7F800000)), u)
    return b.bitcast(b.or_(u, b.shl(b.and_(w, constants(n, 0x8000)), constants(n, 16))), floats)


def f32_to_f16(context, b: ir.IRBuilder, x: ir.Value, n: int) -> ir.Value:
    """<n x float> → <n x i16>."""
    words, shorts, floats = ir.VectorType(I32, n), ir.VectorType(I16, n), ir.VectorType(F32, n)
    if native_f16(context):
        return b.bitcast(b.fptrunc(x, ir.VectorType(ir.HalfType(), n)), shorts)
    w = b.bitcast(x, words)
    magnitude = b.and_(w, constants(n, 0x7FFFFFFF))
    # past the largest f16 this is infinite; adding a number of exponent e + 13 then leaves 10 bits of fraction, rounded
    base = b.fmul(b.fmul(b.bitcast(magnitude, floats), ir.Constant(floats, [2.0**112] * n)), ir.Constant(floats, [2.0**-110] * n))
    exponent = b.and_(b.shl(magnitude, constants(n, 1)), constants(n, 0xFF000000))
    smallest = constants(n, 0x71000000)
    exponent = b.select(b.icmp_unsigned(">", exponent, smallest), exponent, smallest)
    rounder = b.bitcast(b.add(b.lshr(exponent, constants(n, 1)), constants(n, 0x07800000)), floats)
    u = b.bitcast(b.fadd(rounder, base), words)
    half = b.add(b.and_(b.lshr(u, constants(n, 13)), constants(n, 0x7C00)), b.and_(u, constants(n, 0x0FFF)))
    half = b.select(b.icmp_unsigned(">", magnitude, constants(n, 0x7F800000)), constants(n, 0x7E00), half)
    return b.trunc(b.or_(half, b.and_(b.lshr(w, constants(n, 16)), constants(n, 0x8000))), shorts)


F32, I32, I16 = ir.FloatType(), ir.IntType(32), ir.IntType(16)


def constants(n: int, value: int) -> ir.Constant:
    """<n x i32> of one value."""
    return ir.Constant(ir.VectorType(I32, n), [value] * n)
