"""Float storage: f64, f32, bf16, f16, and the one rounding between them.

The names say how activations, caches and compute copies of weights are *stored*. Sums are formed in float32 at least, float64
for f64. A float with p bits of precision and smallest normal exponent e_min keeps, of a number in [2^e, 2^(e+1)), the nearest
multiple of its quantum

    q(x) = 2^(max(e, e_min) − p + 1)

ties to the even multiple (IEEE 754-2019 §4.3.1). Below 2^e_min the quantum stays the same: subnormals need no case of their own.
What rounds beyond the largest finite number becomes infinite and is left so, for the loss scaler to see.
"""

from enum import StrEnum
from typing import NamedTuple

import ml_dtypes
import numpy as np
from jaxtyping import Inexact, Shaped
from numpy import ndarray


class FloatFormat(NamedTuple):
    """Precision in bits (the hidden one included), smallest and largest exponent of normal numbers."""

    precision: int
    e_min: int
    e_max: int


class FloatDType(StrEnum):
    """The storage types."""

    F64 = "f64"
    F32 = "f32"
    BF16 = "bf16"
    F16 = "f16"

    @property
    def storage(self) -> np.dtype:
        """NumPy's type of one stored value."""
        return np.dtype({"f64": np.float64, "f32": np.float32, "bf16": ml_dtypes.bfloat16, "f16": np.float16}[self])

    @property
    def compute(self) -> np.dtype:
        """The type in which stored values are summed, and of master weights: float64 for f64, float32 for the others."""
        return np.dtype(np.float64 if self is FloatDType.F64 else np.float32)


HALF_FORMATS = {FloatDType.BF16: FloatFormat(8, -126, 127), FloatDType.F16: FloatFormat(11, -14, 15)}


def round_to_storage(x: Inexact[ndarray, "*shape"], dtype: FloatDType) -> Inexact[ndarray, "*shape"]:
    """The values of x as storage would keep them, in the type of x: nearest, ties to even, overflow to ±inf, NaN stays NaN.

    f64 and f32 are the types NumPy computes in here, so they leave x as it is.
    """
    if dtype not in HALF_FORMATS:
        return x
    precision, e_min, e_max = HALF_FORMATS[dtype]
    with np.errstate(over="ignore", invalid="ignore"):  # beyond float32's range too infinity is the answer, and NaN is as good as any number
        _, exponent = np.frexp(x)  # |x| = m · 2^exponent with m in [½, 1): the e of the formula is exponent − 1
        shift = precision - 1 - np.maximum(exponent - 1, e_min)
        rounded = np.ldexp(np.rint(np.ldexp(x, shift)), -shift)
    largest = np.ldexp(2 - 2.0 ** (1 - precision), e_max)
    overflow = np.isfinite(x) & (np.abs(rounded) > largest)
    return np.where(overflow, np.copysign(np.inf, x), rounded).astype(x.dtype)


def to_storage(x: Inexact[ndarray, "*shape"], dtype: FloatDType) -> Shaped[ndarray, "*shape"]:
    """x in storage type, rounded once."""
    return round_to_storage(x, dtype).astype(dtype.storage)


def at_precision_of(like: Inexact[ndarray, "..."], a: Inexact[ndarray, "*shape"]) -> Inexact[ndarray, "*shape"]:
    """a, formed in float64, rounded to the precision in which `like` is computed; complex stays complex."""
    return a if a.real.dtype == like.real.dtype else a.astype(like.real.dtype)
