"""Time2Vec on the GPU against the oracle."""

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from numpy import ndarray

from tests.cpu.storages import STORAGES, empty, limit, stored, values
from tests.cuda.schedules import in_every_schedule
from tests.ref.bounds import EPS, share
from ttr_fast.cuda import rows, time2vec as gpu
from ttr_fast.cuda.jit import cuda, kernel
from ttr_ref.config import TimeConfig
from ttr_ref.float_dtype import FloatDType, round_to_storage
from ttr_ref.time2vec import Time2VecParams, reduced_phase, time2vec_backward, time2vec_forward
from ttr_ref.timeline import elapsed, timeline_from_lengths

NOW = 1_700_000_000


@kernel("float64[::1], float64[:, ::1]", registers=64, threads=64)
def sines(x, y):
    i = cuda.blockIdx.x * 64 + cuda.threadIdx.x
    if i < x.size:
        y[0, i], y[1, i] = rows.sine_and_cosine(x[i])


def test_sine_and_cosine() -> None:
    """|r| ≤ π/4 in two parts, so off by less than its own half eps; the series adds a rounding at its end and one of its second term."""
    x = np.concatenate([np.linspace(-3.2, 3.2, 2**12), np.geomspace(1e-300, 3, 2**8), np.arange(-4, 4) * np.pi / 4])
    y = np.full((2, x.size), np.nan)
    sines[-(-x.size // 64), 64](x, y)
    for actual, expected in zip(y, (np.sin(x.astype(np.longdouble)), np.cos(x.astype(np.longdouble))), strict=True):
        assert share(actual, expected, EPS * np.abs(expected)) <= 1


def run(time: ndarray, document: ndarray, config: TimeConfig, params: Time2VecParams, dy: ndarray, dtype: FloatDType) -> tuple[ndarray, ...]:
    """tau, y, domega, dphi."""
    n, e = dy.shape
    tau, y = np.full(n, np.nan), empty((n, e), dtype)
    domega, dphi = np.full(e, np.nan), np.full(e, np.nan, dtype.compute)
    gpu.elapsed(time, document, config.origin, config.unit, tau)
    gpu.time2vec_forward(tau, *params, None, y)
    gpu.time2vec_backward(dy, tau, *params, domega, dphi, np.full((2, rows.chunks_of(n), e), np.nan))
    return tau, y, domega, dphi


@pytest.mark.parametrize("dtype", STORAGES)
@settings(max_examples=4)
@given(b=st.integers(1, 3), t=st.integers(1, 20), e=st.integers(1, 20), whole=st.booleans(), seed=st.integers(0, 2**32 - 1))
@example(b=2, t=40, e=3, whole=True, seed=0)
def test_equals_the_oracle(dtype: FloatDType, b: int, t: int, e: int, whole: bool, seed: int) -> None:
    """τ and the phases are the oracle's bit for bit; sine and cosine are off by an eps on either side, the sums by half an eps a term."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, t + 1, b)
    time = NOW + rng.integers(0, 10**6, (b, t)).cumsum(1)
    if not whole:
        time = time + rng.random((b, t))
        time[np.arange(t) >= lengths[:, None]] = np.nan
    at = timeline_from_lengths(time, lengths)
    config = TimeConfig(origin=NOW - 5, unit=60.0)
    params = Time2VecParams(rng.standard_normal(e), rng.standard_normal(e).astype(dtype.compute))
    params.omega[0] *= 1e-3  # f16 goes no further than 65 504
    dy = stored(rng.standard_normal((b * t, e)), dtype)
    tau, y, domega, dphi = in_every_schedule(lambda: run(time.reshape(-1), at.document.reshape(-1), config, params, dy, dtype))
    np.testing.assert_array_equal(tau, elapsed(at, config).reshape(-1))

    y_ref, cache = time2vec_forward(at, params, config)
    y_ref = y_ref.reshape(b * t, e)
    through_f32 = 2.0**-24 if dtype in (FloatDType.F16, FloatDType.BF16) else 0
    assert share(values(y), y_ref, limit(y_ref, (2 * EPS + through_f32) * np.abs(y_ref) + 2.0**-126 * (dtype != FloatDType.F64), dtype)) <= 1
    expected = time2vec_backward(values(dy).reshape(b, t, e), cache)
    size = np.abs(values(dy) * np.where(np.arange(e) == 0, 1, np.cos(reduced_phase(tau, *params))))
    for actual, reference, terms in zip((domega, dphi), expected, (size * np.abs(tau)[:, None], size), strict=True):
        rounding = float(np.finfo(actual.dtype).eps) / 2 * np.abs(reference)
        assert share(actual, reference, (b * t + 4) * EPS * terms.sum(0) + rounding) <= 1


@pytest.mark.parametrize("dtype", STORAGES)
def test_added_to_rows(dtype: FloatDType) -> None:
    """The oracle's sum: features rounded to the type of arithmetic, then the sum to storage; x may give its place to it."""
    rng = np.random.default_rng(0)
    tau, params = rng.uniform(0, 1e3, 7), Time2VecParams(rng.standard_normal(9), rng.standard_normal(9).astype(dtype.compute))
    x, features = stored(rng.standard_normal((7, 9)), dtype), np.full((7, 9), np.nan, dtype.compute)
    gpu.time2vec_forward(tau, *params, None, features)
    expected = round_to_storage(values(x).astype(dtype.compute) + features, dtype)
    gpu.time2vec_forward(tau, *params, x, x)
    np.testing.assert_array_equal(values(x), expected)
