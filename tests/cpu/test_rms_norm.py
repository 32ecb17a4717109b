"""RMSNorm on the CPU against the oracle, and what holds bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy import ndarray

from tests.cpu.storages import STORAGES, assert_same_for_any_threads, empty, eps_of, limit, stored, values
from tests.ref.bounds import share
from ttr_fast.cpu import rms_norm as cpu
from ttr_fast.cpu.rows import CHUNK, chunks_of
from ttr_ref import rms_norm as ref
from ttr_ref.float_dtype import FloatDType, round_to_storage

EPS_NORM = 1e-6


def forward(x: ndarray, weight: ndarray, dtype: FloatDType) -> tuple[ndarray, ndarray]:
    y, r = empty(x.shape, dtype), np.empty(x.shape[0], dtype.compute)
    cpu.rms_norm_forward(x, weight, EPS_NORM, y, r)
    return y, r


def backward(dy: ndarray, x: ndarray, r: ndarray, weight: ndarray, residual: ndarray | None, dtype: FloatDType) -> tuple[ndarray, ndarray, ndarray]:
    """dx, du, dweight."""
    n, e = x.shape
    dx, du, dweight = empty(x.shape, dtype), np.full(x.shape, np.nan, dtype.compute), np.empty(e, dtype.compute)
    cpu.rms_norm_backward(dy, x, r, weight, residual, dx, du, dweight, np.full((chunks_of(n), e), np.nan, dtype.compute))
    return dx, du, dweight


@pytest.mark.parametrize("dtype", STORAGES)
@settings(max_examples=30)
@given(n=st.integers(0, 150), half=st.integers(1, 40), scale=st.sampled_from([1e-2, 1.0, 1e2]), seed=st.integers(0, 2**32 - 1))
def test_equals_the_oracle(dtype: FloatDType, n: int, half: int, scale: float, seed: int) -> None:
    """A sum of E squares, its mean and root are off by (E/2 + 3) eps, half of it in r; two factors more.

    Backward: each term of dx by r three times, the mean's sum of E products, a few roundings more.
    """
    e, eps, rng = 2 * half, eps_of(dtype), np.random.default_rng(seed)
    x, dy, residual = (stored(a, dtype) for a in scale * rng.standard_normal((3, n, e)))
    weight = stored(rng.standard_normal(e), dtype)
    y, r = forward(x, weight, dtype)
    dx, du, dweight = backward(dy, x, r, weight, residual, dtype)

    y_ref, cache = ref.rms_norm_forward(values(x), values(weight), EPS_NORM)
    du_ref, dw_ref = ref.rms_norm_backward(values(dy), cache)
    assert share(values(y), y_ref, limit(y_ref, (e / 4 + 4) * eps * np.abs(y_ref), dtype)) <= 1
    assert share(r, cache.r[:, 0], (e / 4 + 3) * eps * cache.r[:, 0]) <= 1
    g = np.abs(values(dy) * values(weight))
    size = (g + np.abs(cache.x_hat) * np.mean(g * np.abs(cache.x_hat), -1, keepdims=True)) / cache.r
    error = (1.5 * e + 12) * eps * size
    assert share(du, du_ref, error) <= 1
    expected = values(residual) + du_ref
    assert share(values(dx), expected, limit(expected, error + eps * np.abs(expected), dtype)) <= 1
    terms = CHUNK + chunks_of(n) + e / 4 + 4
    assert share(dweight, dw_ref, terms * eps * np.abs(values(dy) * cache.x_hat).sum(0)) <= 1


@pytest.mark.parametrize("dtype", STORAGES)
def test_time_features_are_added_first(dtype: FloatDType) -> None:
    """u is the oracle's sum bit for bit, and the rest is rms_norm_forward of it."""
    rng = np.random.default_rng(0)
    x, weight = stored(rng.standard_normal((70, 38)), dtype), stored(rng.standard_normal(38), dtype)
    features = rng.standard_normal(x.shape).astype(dtype.compute)
    u, y, r = empty(x.shape, dtype), empty(x.shape, dtype), np.empty(70, dtype.compute)
    cpu.rms_norm_add_forward(x, features, weight, EPS_NORM, u, y, r)
    np.testing.assert_array_equal(values(u), round_to_storage(values(x).astype(dtype.compute) + features, dtype))
    y2, r2 = forward(u, weight, dtype)
    assert (y.tobytes(), r.tobytes()) == (y2.tobytes(), r2.tobytes())


@pytest.mark.parametrize("dtype", [FloatDType.F32, FloatDType.BF16])
def test_bits_depend_on_the_row_alone(dtype: FloatDType) -> None:
    """One thread and two; a row alone and in a batch; without a residual dx is du, in place of dy."""
    rng = np.random.default_rng(1)
    x, dy = (stored(a, dtype) for a in rng.standard_normal((2, 200, 50)))
    weight = stored(rng.standard_normal(50), dtype)
    y, r = assert_same_for_any_threads(lambda: forward(x, weight, dtype))
    dx, du, _ = assert_same_for_any_threads(lambda: backward(dy, x, r, weight, dy, dtype))
    one = slice(77, 78)
    y_alone, r_alone = forward(x[one], weight, dtype)
    dx_alone, du_alone, _ = backward(dy[one], x[one], r_alone, weight, dy[one], dtype)
    for a, b in [(y_alone, y), (r_alone, r), (dx_alone, dx), (du_alone, du)]:
        assert a.tobytes() == b[one].tobytes()
    np.testing.assert_array_equal(values(backward(dy, x, r, weight, None, dtype)[0]), round_to_storage(du, dtype))
    in_place = dy.copy()
    cpu.rms_norm_backward(in_place, x, r, weight, in_place, in_place, None, np.empty(50, np.float32), np.empty((chunks_of(200), 50), np.float32))
    assert in_place.tobytes() == dx.tobytes()
