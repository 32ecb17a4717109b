"""Time2Vec on the CPU against the oracle, and what holds bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy import ndarray

from tests.cpu.storages import STORAGES, assert_same_for_any_threads, empty, limit, stored, values
from tests.ref.bounds import EPS, share
from ttr_fast.cpu import rows, simd, time2vec as cpu
from ttr_fast.cpu.jit import kernel
from ttr_ref.config import TimeConfig
from ttr_ref.float_dtype import FloatDType
from ttr_ref.time2vec import Time2VecParams, reduced_phase, time2vec_backward, time2vec_forward
from ttr_ref.timeline import elapsed, timeline_from_lengths

NOW = 1_700_000_000


@kernel()
def sine_and_cosine(x: ndarray, y: ndarray, z: ndarray) -> None:
    for i in range(0, x.size, 8):
        v = simd.load(x, i)
        simd.store(rows.sine(v), y, i)
        simd.store(rows.cosine(v), z, i)


def test_sine_and_cosine() -> None:
    """|r| ≤ π/4 in two parts, so off by less than its own half eps; the series adds a rounding at its end and one of its second term."""
    x = np.concatenate([np.linspace(-3.2, 3.2, 2**16), np.geomspace(1e-300, 3, 2**12), np.arange(-4, 4) * np.pi / 4])
    y, z = np.empty_like(x), np.empty_like(x)
    sine_and_cosine(x, y, z)
    for actual, expected in [(y, np.sin(x.astype(np.longdouble))), (z, np.cos(x.astype(np.longdouble)))]:
        assert share(actual, expected, EPS * np.abs(expected)) <= 1


def forward(tau: ndarray, params: Time2VecParams, dtype: FloatDType) -> ndarray:
    y = empty((tau.size, params.omega.size), dtype)
    cpu.time2vec_forward(tau, *params, y)
    return y


def backward(dy: ndarray, tau: ndarray, params: Time2VecParams) -> ndarray:
    n, e = dy.shape
    dparams = np.full((2, e), np.nan)
    cpu.time2vec_backward(dy, tau, *params, dparams.reshape(-1), np.full((rows.chunks_of(n), 2 * e), np.nan))
    return dparams


@pytest.mark.parametrize("dtype", STORAGES)
@settings(max_examples=30)
@given(b=st.integers(1, 3), t=st.integers(1, 60), half=st.integers(1, 20), whole=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_equals_the_oracle(dtype: FloatDType, b: int, t: int, half: int, whole: bool, seed: int) -> None:
    """τ and the phases are the oracle's bit for bit; sine and cosine are off by an eps on either side, the sums by half an eps a term."""
    rng, e = np.random.default_rng(seed), 2 * half
    lengths = rng.integers(0, t + 1, b)
    time = NOW + rng.integers(0, 10**6, (b, t)).cumsum(1)
    if not whole:
        time = time + rng.random((b, t))
        time[np.arange(t) >= lengths[:, None]] = np.nan
    at = timeline_from_lengths(time, lengths)
    config = TimeConfig(origin=NOW - 5, unit=60.0)
    params = Time2VecParams(rng.standard_normal(e), rng.standard_normal(e))
    params.omega[0] *= 1e-3  # f16 goes no further than 65 504
    tau = np.full(b * t, np.nan)
    cpu.elapsed(time.reshape(-1), at.document.reshape(-1), time.dtype.type(config.origin), config.unit, tau)
    np.testing.assert_array_equal(tau, elapsed(at, config).reshape(-1))

    y_ref, cache = time2vec_forward(at, params, config)
    y_ref = y_ref.reshape(b * t, e)
    y, dy = forward(tau, params, dtype), stored(rng.standard_normal((b * t, e)), dtype)
    through_f32 = 2.0**-24 if dtype in (FloatDType.F16, FloatDType.BF16) else 0
    assert share(values(y), y_ref, limit(y_ref, (2 * EPS + through_f32) * np.abs(y_ref) + 2.0**-126 * (dtype != FloatDType.F64), dtype)) <= 1
    dparams = backward(dy, tau, params)
    expected = time2vec_backward(values(dy).reshape(b, t, e), cache)
    size = np.abs(values(dy) * np.where(np.arange(e) == 0, 1, np.cos(reduced_phase(tau, *params))))
    for actual, reference, terms in zip(dparams, expected, (size * np.abs(tau)[:, None], size), strict=True):
        assert share(actual, reference, (b * t + 4) * EPS * terms.sum(0)) <= 1


def test_bits_depend_on_the_row_alone() -> None:
    """One thread and two; a row alone; the vectors' borders lie elsewhere with more features."""
    rng, dtype = np.random.default_rng(0), FloatDType.F32
    tau, params = rng.uniform(0, 1e6, 150), Time2VecParams(*rng.standard_normal((2, 30)))
    dy = rng.standard_normal((150, 30)).astype(np.float32)
    y, _ = assert_same_for_any_threads(lambda: (forward(tau, params, dtype), backward(dy, tau, params)))
    assert forward(tau[99:100], params, dtype).tobytes() == y[99].tobytes()
    fewer = Time2VecParams(params.omega[:12], params.phi[:12])
    assert forward(tau, fewer, dtype).tobytes() == np.ascontiguousarray(y[:, :12]).tobytes()
