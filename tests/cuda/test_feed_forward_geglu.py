"""The gate of GeGLU on the GPU against the oracle."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy import ndarray

from tests.cpu.storages import STORAGES, empty, eps_of, limit, stored, values
from tests.cuda.schedules import in_every_schedule
from tests.ref.bounds import EPS, share
from ttr_fast.cuda import feed_forward_geglu as gpu
from ttr_ref.feed_forward_geglu import CUBIC, SLOPE, gelu_backward, gelu_forward
from ttr_ref.float_dtype import FloatDType


def run(hidden: ndarray, dact: ndarray, dtype: FloatDType) -> tuple[ndarray, ndarray]:
    """act, and dhidden in the place of hidden."""
    act, dhidden = empty(dact.shape, dtype), hidden.copy()
    gpu.geglu_forward(hidden, act)
    gpu.geglu_backward(dact, dhidden, dhidden)
    return act, dhidden


@pytest.mark.parametrize("dtype", STORAGES)
@settings(max_examples=10)
@given(n=st.integers(0, 5), f=st.integers(1, 70), scale=st.sampled_from([1e-3, 1.0, 10.0]), seed=st.integers(0, 2**32 - 1))
def test_equals_the_oracle(dtype: FloatDType, n: int, f: int, scale: float, seed: int) -> None:
    """−2u is off by 2 eps of itself (three roundings, one constant), so z = e^(−2u) by a share of 4|u| eps + 2 eps, s by (1 − s) of that and
    two roundings. The oracle's ½ (1 + t) is off by eps of 1. Where z is cut off, less than 2⁻¹¹⁰ is left of gelu.
    """
    eps, rng = eps_of(dtype), np.random.default_rng(seed)
    hidden, dact = stored(scale * rng.standard_normal((n, 2 * f)), dtype), stored(rng.standard_normal((n, f)), dtype)
    act, dhidden = in_every_schedule(lambda: run(hidden, dact, dtype))
    a, g = np.split(values(hidden), 2, axis=-1)
    d, gelu = values(dact), gelu_forward(g)
    u = SLOPE * (g + CUBIC * g**3)
    s = 1 / (1 + np.exp(-2 * np.clip(u, -300, None)))
    relative = (4 * np.abs(u) + 2) * (1 - s) * eps + 2 * eps
    oracle = 2 * EPS * np.abs(g) + 2.0**-110
    gelu_error = (relative + eps) * np.abs(g) * s + oracle
    expected = a * gelu
    assert share(values(act), expected, limit(expected, np.abs(a) * gelu_error + eps * np.abs(expected), dtype)) <= 1

    # gelu′ = s + 2 g s (1 − s) u′ with all terms positive: two factors s, one of them by z
    slope = 2 * SLOPE * (1 + 3 * CUBIC * g * g)
    second = np.abs(g) * s * (1 - s) * slope
    error = relative * s + second * (2 * relative + (4 * np.abs(u) + 8) * eps) + 4 * EPS * (1 + np.abs(g) * slope) + 2.0**-100
    assert share(values(dhidden)[:, :f], d * gelu, limit(d * gelu, np.abs(d) * gelu_error + eps * np.abs(d * gelu), dtype)) <= 1
    expected = gelu_backward(d * a, g)
    size = np.abs(d * a)
    assert share(values(dhidden)[:, f:], expected, limit(expected, size * (error + 2 * eps * (s + second)), dtype)) <= 1


@pytest.mark.parametrize("dtype", [FloatDType.F32, FloatDType.F64])
def test_far_out_and_not_a_number(dtype: FloatDType) -> None:
    """gelu(g) is g or nothing, its slope 1 or 0; NaN stays NaN."""
    gates = np.array([1e4, 50.0, 0.0, -50.0, -1e4, np.nan])
    hidden = stored(np.concatenate([np.ones(6), gates])[None], dtype)
    act, dhidden = run(hidden, stored(np.ones((1, 6)), dtype), dtype)
    np.testing.assert_allclose(values(act)[0], np.maximum(gates, 0), atol=1e-20)
    np.testing.assert_allclose(values(dhidden)[0, 6:], [1, 1, 0.5, 0, 0, np.nan], atol=1e-20)
