"""Matrix products on the GPU: within the bound of one chain of sums, and the same bits whatever stands beside a row."""

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from numpy import ndarray

from tests.cpu.storages import STORAGES, empty, eps_of, limit, stored, values
from tests.cuda.schedules import in_every_schedule
from tests.ref.bounds import EPS, share
from ttr_fast.cuda import linear as gpu
from ttr_ref.float_dtype import FloatDType


def check(a: ndarray, b: ndarray, addend: ndarray, got: ndarray, dtype: FloatDType, rounded: bool) -> None:
    """A chain of K multiply-adds and an addition round 2 K + 1 times by half an eps, the expected value likewise, then once to storage."""
    expected = addend + a @ b
    error = (a.shape[1] + 1) * (eps_of(dtype) + EPS) * (np.abs(addend) + np.abs(a) @ np.abs(b))
    assert share(values(got), expected, limit(expected, error, dtype) if rounded else error) <= 1


@pytest.mark.parametrize("dtype", STORAGES)
@settings(max_examples=1)
@given(n=st.integers(1, 70), k=st.integers(1, 20), m=st.integers(1, 30), seed=st.integers(0, 2**32 - 1))
@example(n=65, k=17, m=3, seed=0)
def test_equals_the_oracle(dtype: FloatDType, n: int, k: int, m: int, seed: int) -> None:
    """y with and without a residual, in storage and in the type of sums; dx; dW, fresh and on top of what is there."""
    rng = np.random.default_rng(seed)
    x, w, dy, residual = (stored(rng.standard_normal(s), dtype) for s in ((n, k), (k, m), (n, m), (n, m)))
    onto = rng.standard_normal((k, m)).astype(dtype.compute)

    def run() -> tuple[ndarray, ...]:
        y, dx, wide = empty((n, m), dtype), empty((n, k), dtype), np.full((n, m), np.nan, dtype.compute)
        dw, more = np.full_like(onto, np.nan), onto.copy()
        gpu.linear_forward(x, w, y, residual)
        gpu.linear_forward(x, w, wide)
        gpu.linear_backward_input(dy, w, dx)
        gpu.linear_backward_weight(x, dy, dw)
        gpu.linear_backward_weight(x, dy, more, add=True)
        return y, wide, dx, dw, more

    y, wide, dx, dw, more = in_every_schedule(run)
    x, w, dy, residual = (values(a) for a in (x, w, dy, residual))
    check(x, w, residual, y, dtype, True)
    check(x, w, np.zeros((n, m)), wide, dtype, False)
    check(dy, w.T, np.zeros((n, k)), dx, dtype, True)
    check(x.T, dy, np.zeros((k, m)), dw, dtype, False)
    check(x.T, dy, onto.astype(np.float64), more, dtype, False)


def test_a_row_alone_has_the_same_bits() -> None:
    """And not a number stays in its row."""
    rng, dtype = np.random.default_rng(0), FloatDType.F32
    x, w = (stored(rng.standard_normal(s), dtype) for s in ((5, 20), (20, 7)))
    x[2] = np.nan
    y, alone = empty((5, 7), dtype), empty((1, 7), dtype)
    gpu.linear_forward(x, w, y)
    gpu.linear_forward(x[3:4], w, alone)
    assert alone.tobytes() == y[3:4].tobytes()
    assert np.isnan(y).sum() == 7
