"""RMSNorm on the GPU against the oracle."""

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from numpy import ndarray

from tests.cpu.storages import STORAGES, empty, eps_of, limit, stored, values
from tests.cuda.schedules import in_every_schedule
from tests.ref.bounds import share
from ttr_fast.cuda import rms_norm as gpu
from ttr_fast.cuda.rows import CHUNK, THREADS, chunks_of
from ttr_ref import rms_norm as ref
from ttr_ref.float_dtype import FloatDType, round_to_storage

EPS_NORM = 1e-6


def run(x: ndarray, dy: ndarray, weight: ndarray, residual: ndarray, dtype: FloatDType) -> tuple[ndarray, ...]:
    """y, r, dx, du, dweight."""
    n, e = x.shape
    y, r = empty(x.shape, dtype), np.full(n, np.nan, dtype.compute)
    gpu.rms_norm_forward(x, weight, EPS_NORM, y, r)
    dx, du, dweight = empty(x.shape, dtype), np.full(x.shape, np.nan, dtype.compute), np.full(e, np.nan, dtype.compute)
    gpu.rms_norm_backward(dy, x, r, weight, residual, dx, du, dweight, np.full((chunks_of(n), e), np.nan, dtype.compute))
    return y, r, dx, du, dweight


@pytest.mark.parametrize("dtype", STORAGES)
@settings(max_examples=3)
@given(n=st.integers(0, 4), e=st.integers(1, 150), scale=st.sampled_from([1e-2, 1.0, 1e2]), seed=st.integers(0, 2**32 - 1))
@example(n=CHUNK + 1, e=3, scale=1.0, seed=0)
@example(n=2, e=THREADS + 1, scale=1.0, seed=1)
def test_equals_the_oracle(dtype: FloatDType, n: int, e: int, scale: float, seed: int) -> None:
    """A sum of E squares, its mean and root are off by (E/2 + 3) eps, half of it in r; two factors more.

    Backward: each term of dx by r three times, the mean's sum of E products, a few roundings more.
    """
    eps, rng = eps_of(dtype), np.random.default_rng(seed)
    x, dy, residual = (stored(a, dtype) for a in scale * rng.standard_normal((3, n, e)))
    weight = rng.standard_normal(e).astype(dtype.compute)
    y, r, dx, du, dweight = in_every_schedule(lambda: run(x, dy, weight, residual, dtype))

    y_ref, cache = ref.rms_norm_forward(values(x), weight.astype(np.float64), EPS_NORM)
    du_ref, dw_ref = ref.rms_norm_backward(values(dy), cache)
    assert share(values(y), y_ref, limit(y_ref, (e / 4 + 4) * eps * np.abs(y_ref), dtype)) <= 1
    assert share(r, cache.r[:, 0], (e / 4 + 3) * eps * cache.r[:, 0]) <= 1
    g = np.abs(values(dy) * weight.astype(np.float64))
    size = (g + np.abs(cache.x_hat) * np.mean(g * np.abs(cache.x_hat), -1, keepdims=True)) / cache.r
    error = (1.5 * e + 12) * eps * size
    assert share(du, du_ref, error) <= 1
    expected = values(residual) + du_ref
    assert share(values(dx), expected, limit(expected, error + eps * np.abs(expected), dtype)) <= 1
    terms = CHUNK + chunks_of(n) + e / 4 + 4
    assert share(dweight, dw_ref, terms * eps * np.abs(values(dy) * cache.x_hat).sum(0)) <= 1


@pytest.mark.parametrize("dtype", [FloatDType.F32, FloatDType.BF16])
def test_without_a_residual_and_in_its_place(dtype: FloatDType) -> None:
    """dx is du, rounded; dx may take the residual's place; a row alone has the bits it has among others."""
    rng = np.random.default_rng(1)
    x, dy, residual = (stored(a, dtype) for a in rng.standard_normal((3, 3, 50)))
    weight = rng.standard_normal(50).astype(dtype.compute)
    y, r, dx, du, _ = run(x, dy, weight, residual, dtype)
    bare, dweight, partial = empty(x.shape, dtype), np.empty(50, dtype.compute), np.empty((1, 50), dtype.compute)
    gpu.rms_norm_backward(dy, x, r, weight, None, bare, None, dweight, partial)
    np.testing.assert_array_equal(values(bare), round_to_storage(du, dtype))
    gpu.rms_norm_backward(dy, x, r, weight, residual, residual, None, dweight, partial)
    assert residual.tobytes() == dx.tobytes()
    alone = run(x[1:2], dy[1:2], weight, stored(np.zeros((1, 50)), dtype), dtype)
    assert (alone[0].tobytes(), alone[3].tobytes()) == (y[1:2].tobytes(), du[1:2].tobytes())
