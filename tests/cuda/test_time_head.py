"""The density of the next gap on the GPU against the oracle, and what holds bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy import ndarray

from tests.cuda.schedules import in_every_schedule
from tests.ref.bounds import EPS, share
from ttr_fast.cuda import time_head as gpu
from ttr_fast.cuda.rows import chunks_of
from ttr_ref.time_head import MixtureParams, time_head_backward, time_head_forward

RESOLUTION = 0.5


def run(dnats: ndarray, raw: ndarray, bias: ndarray, gap: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    """nats, draw, dbias."""
    n, width = raw.shape
    nats, draw, dbias = np.full(n, np.nan), np.full_like(raw, np.nan), np.full_like(bias, np.nan)
    gpu.time_head_forward(raw, bias, gap, RESOLUTION, nats)
    gpu.time_head_backward(dnats, raw, bias, gap, RESOLUTION, draw, dbias, np.full((n, width), np.nan), np.full((chunks_of(n), width), np.nan))
    return nats, draw, dbias


def problem(rng: np.random.Generator, n: int, m: int, dtype: type) -> tuple[ndarray, ndarray, ndarray, ndarray]:
    """dnats, raw, bias, gap; gaps of nothing among them."""
    gap = np.exp(rng.uniform(-2, 10, n)) * (rng.random(n) < 0.9)
    return rng.standard_normal(n), rng.standard_normal((n, 3 * m)).astype(dtype), rng.uniform(-1, 3, 3 * m).astype(dtype), gap


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=8)
@given(n=st.integers(1, 20), m=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))
def test_equals_the_oracle(dtype: type, n: int, m: int, seed: int) -> None:
    """An exponent's error is a share of what it is the exponent of: σ is off by (2 + |s| + |μ|) eps of itself, z² by four times that and what the
    difference ln g − μ cancels, and joint densities by the sum of all their terms. Gradients are products of r, z and 1/σ, each off by as much.
    """
    dnats, raw, bias, gap = problem(np.random.default_rng(seed), n, m, dtype)
    nats, draw, dbias = in_every_schedule(lambda: run(dnats, raw, bias, gap))
    params = MixtureParams(np.eye(3 * m), bias.astype(np.float64))
    nats_ref, cache = time_head_forward(raw.astype(np.float64), gap, params, RESOLUTION)
    draw_ref, dparams = time_head_backward(dnats, cache)

    (log_weight, mu, sigma), r, z = cache.mixture, cache.responsibility, cache.z
    summed = raw.astype(np.float64) + bias
    s = summed[:, 2 * m :]
    log_gap = np.log(np.maximum(gap, RESOLUTION / 2))[:, None]
    sigma_error = 4 + np.abs(s) + np.abs(mu)  # in eps, as a share
    z_error = (np.abs(log_gap) + np.abs(mu)) / sigma + np.abs(z) * (sigma_error + 2)
    logits = np.abs(summed[:, :m]).max(-1, keepdims=True)
    joint = np.abs(z) * z_error + z * z + sigma_error + np.abs(np.log(sigma)) + np.abs(log_weight) + np.abs(log_gap) + 2 * logits + m + 4
    log_p_error = joint.max(-1, keepdims=True)
    assert share(nats, nats_ref, 2 * EPS * (log_p_error[:, 0] + np.abs(nats_ref))) <= 1

    share_error = joint + log_p_error + 4
    scale, floor = 1 / sigma, RESOLUTION * np.exp(-mu)
    dsigma = r * (1 + z * z) * scale
    dsigma_error = dsigma * (share_error + sigma_error + 4) + r * scale * 2 * np.abs(z) * z_error
    dmu_error = r * scale * (np.abs(z) * (share_error + sigma_error + 4) + z_error) + (dsigma_error + dsigma * (np.abs(mu) + 4)) * floor
    ds_error = dsigma_error * (sigma - floor) + dsigma * 4 * sigma * (1 + sigma_error)
    dlogit_error = np.exp(log_weight) * (2 * logits + m + 4) + r * share_error
    eps, tiny = float(np.finfo(dtype).eps), float(np.finfo(dtype).tiny)
    error = 2 * EPS * np.abs(dnats)[:, None] * np.concatenate([dlogit_error, dmu_error, ds_error], axis=-1)
    assert share(draw, draw_ref, error + eps * np.abs(draw_ref) + tiny) <= 1
    rounding = eps / 2 * np.abs(dparams.b_mixture) + tiny
    assert share(dbias, dparams.b_mixture, error.sum(0) + n * EPS * np.abs(draw_ref).sum(0) + rounding) <= 1


def test_bits_depend_on_the_row_alone() -> None:
    """More rows than a chunk; a row alone; the gradient in place of what it is formed from."""
    p = problem(np.random.default_rng(0), 70, 4, np.float32)
    nats, draw, dbias = run(*p)
    dnats, raw, bias, gap = p
    alone = run(dnats[66:67], raw[66:67], bias, gap[66:67])
    assert alone[0].tobytes() == nats[66:67].tobytes()
    assert alone[1].tobytes() == draw[66:67].tobytes()
    more = np.empty(12, np.float32)
    gpu.time_head_backward(dnats, raw, bias, gap, RESOLUTION, raw, more, np.empty((70, 12)), np.empty((2, 12)))
    assert raw.tobytes() == draw.tobytes()
    assert more.tobytes() == dbias.tobytes()
