"""Time2Vec: phases at today's UNIX times against exact arithmetic, and the periods it starts with."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tests.ref.bounds import EPS, share
from tests.ref.cases import NOW
from ttr_ref.config import TimeConfig
from ttr_ref.time2vec import DAY, WEEK, YEAR, Time2VecParams, geometric_frequencies, reduced_phase, time2vec_forward, time2vec_init
from ttr_ref.timeline import timeline_from_lengths

PI = Fraction(314159265358979323846264338327950288419716939937510582097494459, 10**62)
"""To 62 decimals; twenty more than any phase here has digits."""


def exact_sine(phase: Fraction) -> float:
    """sin of an exact phase: whole turns are taken off in rational arithmetic, so only the last cast and the sine round."""
    return math.sin(float(phase - 2 * PI * round(phase / (2 * PI))))


@given(
    t=st.integers(NOW - 10**9, NOW + 10**9), period=st.sampled_from([60, 3600, 86_400, 604_800]), origin=st.sampled_from([0, NOW]),
    phi=st.floats(-3, 3),
)
def test_phases_at_unix_times(t, period, origin, phi):
    """Minute to week, counted in seconds from 1970: the float64 phase ω τ is off by a few eps of itself, 1e-7 at worst for minutes.

    A float32 phase would be off by whole turns. ω itself is what float64 holds of 2π / period, and is taken as exact here.
    """
    omega = 2 * np.pi / period
    at = timeline_from_lengths(np.array([[t]]), np.array([1]))
    y, _ = time2vec_forward(at, Time2VecParams(np.array([0.0, omega]), np.array([0.0, phi])), TimeConfig(origin=origin))
    phase = Fraction(omega) * (t - origin) + Fraction(phi)
    limit = (2 * abs(float(phase)) + 4) * EPS  # ω τ, + φ, whole turns and their 2π: half an eps of the phase each
    assert limit < 1e-6
    assert share(y[0, 0, 1], exact_sine(phase), limit) <= 1


@given(t=st.integers(NOW, NOW + 10**8), period=st.sampled_from([60, 3600, 86_400, 604_800]))
def test_a_period_later_looks_the_same(t, period):
    """Up to what the rounding of 2π / period, half an eps, adds up to since the origin."""
    at = timeline_from_lengths(np.array([[t, t + period]]), np.array([2]))
    y, _ = time2vec_forward(at, Time2VecParams(np.array([0.0, 2 * np.pi / period]), np.zeros(2)), TimeConfig())
    assert share(y[0, 0, 1], y[0, 1, 1], 4 * (2 * np.pi * (t + period) / period + 1) * EPS) <= 1


def test_straight_line_and_padding():
    """y₀ = ω₀ τ + φ₀ is not reduced; padding counts as the origin, whatever time stands there."""
    at = timeline_from_lengths(np.array([[30.0, np.nan]]), np.array([1]))
    y, _ = time2vec_forward(at, Time2VecParams(np.array([7.0, 0.5]), np.array([1.0, 0.25])), TimeConfig(origin=10, unit=2.0))
    assert y[0].tolist() == [[71.0, math.sin(5.25 - 2 * math.pi)], [1.0, math.sin(0.25)]]


def test_reduced_phase_is_within_half_a_turn():
    tau = np.linspace(-1e9, 1e9, 1001)
    phase = reduced_phase(tau, np.array([1.0, 1e-3, 6.0]), np.array([0.0, 1.0, -2.0]))
    assert np.all(np.abs(phase) <= np.pi + 2e-6)  # the phase itself, up to 6e9, is known to 1e-6


def periods_of(params: Time2VecParams, time: TimeConfig) -> np.ndarray:
    """In ticks, of the sines that are not silent."""
    omega = params.omega[1:]
    return 2 * np.pi * time.unit / omega[omega != 0]


@pytest.mark.parametrize("tick", [1.0, 60.0, 3600.0])
@pytest.mark.parametrize("span, covered", [(3600, []), (86_400, [DAY]), (WEEK, [DAY, WEEK]), (2 * YEAR, [DAY, WEEK, YEAR])])
def test_the_calendar(tick, span, covered):
    """Day, week and year are among the periods when the span covers them, in whatever tick and unit, and no period is longer than the span."""
    time = TimeConfig(unit=600 / tick, shortest=60 / tick, span=span / tick, tick_seconds=tick)
    periods = periods_of(time2vec_init(64, time), time) * tick
    for period in (DAY, WEEK, YEAR):
        assert np.any(np.abs(periods / period - 1) < 4 * EPS) == (period in covered)
    assert np.all(periods <= span * (1 + 4 * EPS))


@pytest.mark.parametrize("features", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("tick", [None, 1.0])
def test_init_shapes_and_pairs(features, tick):
    """The line rises by one over the span. Sines come in pairs a quarter turn apart, so each pair is a point on a circle."""
    time = TimeConfig(unit=10.0, shortest=1.0, span=1e6, tick_seconds=tick)
    omega, phi = time2vec_init(features, time)
    assert omega.shape == phi.shape == (features,)
    assert omega.dtype == np.float64
    assert omega[0] * time.span / time.unit == 1
    assert phi[0] == 0
    for k in range(1, features - 1, 2):
        assert omega[k] == omega[k + 1]
        assert phi[k + 1] - phi[k] == (np.pi / 2 if omega[k] else 0)


def test_geometric_periods():
    """From the shortest gap to the longest span, each the same multiple of the one before."""
    time = TimeConfig(unit=7.0, shortest=2.0, span=2000.0)
    periods = 2 * np.pi * time.unit / geometric_frequencies(4, time)
    assert share(periods, [2.0, 20.0, 200.0, 2000.0], 8 * EPS * periods) <= 1
    assert share(periods_of(time2vec_init(9, time), time), np.repeat(periods, 2), 8 * EPS * np.repeat(periods, 2)) <= 1
