"""Vector values against NumPy in float64: every operation, whole ranges of exponents."""

import numpy as np
import pytest
from numpy import ndarray

from tests.ref.bounds import share
from ttr_fast.cpu import simd
from ttr_fast.cpu.jit import kernel

FLOATS = [np.float32, np.float64]


@kernel()
def exp2_of(x: ndarray, y: ndarray, step: int) -> None:
    for i in range(0, x.size, step):
        simd.store(simd.exp2(simd.load(x, i)), y, i)


@kernel()
def log2_of(x: ndarray, y: ndarray, step: int) -> None:
    for i in range(0, x.size, step):
        simd.store(simd.log2(simd.load(x, i)), y, i)


@kernel()
def arithmetic(x: ndarray, y: ndarray, out: ndarray, step: int) -> tuple:
    a, b = simd.load(x, 0), simd.load(y, 0)
    for k, v in enumerate((simd.add(a, b), simd.sub(a, b), simd.mul(a, b), simd.div(a, b), simd.vmax(a, b), simd.sqrt(b), simd.splat(x[1]))):
        simd.store(v, out, k * step)
    return simd.total(a), simd.largest(a)


def lanes(dtype: type) -> int:
    return 64 // np.dtype(dtype).itemsize


@pytest.mark.parametrize("dtype", FLOATS)
def test_exp2(dtype: type) -> None:
    """Two roundings of the polynomial's last step, one of the constant term, and the polynomial's own error of less than half an eps."""
    lowest = np.finfo(dtype).minexp
    x = np.concatenate([np.linspace(lowest, -lowest, 2**16), np.arange(lowest, 1 - lowest), np.linspace(-1, 1, 2**16)]).astype(dtype)
    x = x[: x.size // 16 * 16].copy()
    y = np.empty_like(x)
    exp2_of(x, y, lanes(dtype))
    expected = np.exp2(x.astype(np.longdouble))
    assert share(y, expected, 2 * np.finfo(dtype).eps * expected) <= 1


@pytest.mark.parametrize("dtype", FLOATS)
def test_exp2_at_its_borders(dtype: type) -> None:
    """Exact at integers, 0 below the normal numbers (nothing subnormal), NaN for NaN."""
    lowest = np.finfo(dtype).minexp
    x = np.resize(np.array([0, 1, -1, 7, -30, lowest, lowest - 1, -1e30, -np.inf, np.nan, 60, 3], dtype), 48)
    y = np.empty_like(x)
    exp2_of(x, y, lanes(dtype))
    expected = np.where(x < lowest, 0, np.exp2(np.where(np.isfinite(x), x, 0)))
    np.testing.assert_array_equal(y, np.where(np.isnan(x), np.nan, expected))


@pytest.mark.parametrize("dtype", FLOATS)
def test_log2(dtype: type) -> None:
    """n + f q: four roundings of size f q (float64 has a division more, and a quotient's sum) and one of the sum."""
    info = np.finfo(dtype)
    x = np.concatenate([np.exp2(np.linspace(info.minexp, info.maxexp - 1, 2**15)), np.linspace(0.5, 2, 2**15), [1.0] * 16]).astype(dtype)
    y = np.empty_like(x)
    log2_of(x, y, lanes(dtype))
    expected = np.log2(x.astype(np.longdouble))
    assert share(y, expected, info.eps * (np.abs(expected) / 2 + 2 * np.minimum(np.abs(expected), 1))) <= 1
    assert (y[-16:] == 0).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_arithmetic(dtype: type) -> None:
    n = lanes(dtype)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(n).astype(dtype), (0.1 + rng.random(n)).astype(dtype)
    out = np.empty((7, n), dtype)
    total, largest = arithmetic(x, y, out, n)
    np.testing.assert_array_equal(out, [x + y, x - y, x * y, x / y, np.maximum(x, y), np.sqrt(y), np.full(n, x[1])])
    folded = x
    while folded.size > 1:
        folded = folded[: folded.size // 2] + folded[folded.size // 2 :]
    assert total == folded[0]
    assert largest == x.max()
