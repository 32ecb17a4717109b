"""The density of the next gap is one: it integrates to 1, is the derivative of its distribution, and cannot be narrower than the recording."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tests.ref.bounds import EPS, share
from tests.ref.cases import seeds
from ttr_ref.config import TimeConfig
from ttr_ref.time_head import (
    HALF_LN_TURN,
    Mixture,
    MixtureParams,
    mixture_cdf,
    mixture_init,
    mixture_of,
    mixture_quantile,
    time_head_backward,
    time_head_forward,
)

FEATURES = 3
TINY = 1e-200
"""A resolution far below all gaps here."""


def random_head(seed: int, components: int) -> tuple[np.ndarray, MixtureParams]:
    """One state and a head whose medians spread over e^±5 and whose widths, e^s, over 0.1 … 10."""
    rng = np.random.default_rng(seed)
    b = np.concatenate([rng.standard_normal(components), rng.uniform(-5, 5, components), rng.uniform(-2.3, 2.3, components)])
    return rng.standard_normal((1, FEATURES)), MixtureParams(0.1 * rng.standard_normal((FEATURES, 3 * components)), b)


def nats_of(gaps: np.ndarray, u: np.ndarray, params: MixtureParams, resolution: float) -> np.ndarray:
    return time_head_forward(np.repeat(u, gaps.size, 0), gaps, params, resolution)[0]


def repeated(mixture: Mixture, times: int) -> Mixture:
    return Mixture(*(np.repeat(a, times, 0) for a in mixture))


@settings(max_examples=50)
@given(seed=seeds, components=st.integers(1, 8))
def test_density_integrates_to_one(seed, components):
    """Over ln g, where it is a mixture of normals, by the trapezoid rule, whose error for a normal is 2 exp(−2π² (σ/h)²): nothing for h = σ/3.

    9 σ beyond the outermost medians leave 2e-19. What is summed is rounded to (z² + |ln p|) eps at most, with |z| ≤ 9 where it counts.
    """
    u, params = random_head(seed, components)
    mixture = mixture_of(u, params, TINY)
    low, high = (mixture.mu - 9 * mixture.sigma).min(), (mixture.mu + 9 * mixture.sigma).max()
    log_gap, step = np.linspace(low, high, int((high - low) / (mixture.sigma.min() / 3)) + 2, retstep=True)
    density = np.exp(-nats_of(np.exp(log_gap), u, params, TINY) + log_gap)
    assert share(density.sum() * step, 1.0, (9**2 + 100 + log_gap.size) * EPS) <= 1


@settings(max_examples=50)
@given(seed=seeds, components=st.integers(1, 8), place=st.floats(-3, 3))
def test_density_is_the_slope_of_the_distribution(seed, components, place):
    """Central difference over ln g: its error is h²/6 of a third derivative, at most 0.4/σ³, and the rounding of F over h."""
    u, params = random_head(seed, components)
    mixture = mixture_of(u, params, TINY)
    log_gap = mixture.mu[0, 0] + place * mixture.sigma[0, 0]
    narrow, h = mixture.sigma.min(), 1e-5 * mixture.sigma.min()
    below, above = mixture_cdf(repeated(mixture, 2), np.exp(log_gap + np.array([-h, h])))
    density = np.exp(-nats_of(np.exp(np.array([log_gap])), u, params, TINY)[0] + log_gap)
    rounding = (4 + 0.4 / narrow * (abs(log_gap) + 2) * 2) * EPS / h  # of F itself, and of ln exp(ln g ± h)
    assert share((above - below) / (2 * h), density, h * h / 6 * 0.4 / narrow**3 + rounding) <= 1


@settings(max_examples=50)
@given(seed=seeds, components=st.integers(1, 8), probability=st.sampled_from([1e-12, 0.001, 0.1, 0.5, 0.9, 0.999]))
def test_quantile_inverts_the_distribution(seed, components, probability):
    """50 halvings of the range of ln g, times the steepest slope of F, 0.4/σ."""
    u, params = random_head(seed, components)
    mixture = mixture_of(u, params, TINY)
    gap = mixture_quantile(mixture, probability)
    width = (mixture.mu + 8 * mixture.sigma).max() - (mixture.mu - 8 * mixture.sigma).min()
    limit = 0.4 / mixture.sigma.min() * (width * 2.0**-50 + (np.abs(np.log(gap)) + 1) * 2 * EPS) + 4 * EPS
    assert share(mixture_cdf(mixture, gap), probability, limit) <= 1


@given(seed=seeds)
def test_distribution_rises_from_zero_to_one(seed):
    u, params = random_head(seed, 5)
    mixture = mixture_of(u, params, TINY)
    values = mixture_cdf(repeated(mixture, 400), np.geomspace(1e-60, 1e60, 400))
    assert np.all(np.diff(values) >= -4 * EPS)
    assert values[0] < 4 * EPS
    assert values[-1] > 1 - 4 * EPS


def test_one_component_by_hand():
    """g = e² under μ = 1, σ = ½ (from s = −ln 2): z = 2, −ln p = 2 + ln ½ + ½ ln 2π + 2."""
    params = MixtureParams(np.zeros((FEATURES, 3)), np.array([0.7, 1.0, -np.log(2)]))
    nats = nats_of(np.array([np.e**2]), np.ones((1, FEATURES)), params, 1e-300)
    assert share(nats, 2 - np.log(2) + HALF_LN_TURN + 2, 20 * EPS) <= 1


@given(seed=seeds, unit=st.sampled_from([60.0, 3600.0, 1e-3]))
def test_another_unit_of_time(seed, unit):
    """Gaps, medians and resolution measured in other units: the nats differ by the logarithm of the unit, no more."""
    u, params = random_head(seed, 4)
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(5.0, 20)
    shift = np.concatenate([np.zeros(4), np.full(4, np.log(unit)), np.zeros(4)])
    nats, mixture = nats_of(gaps, u, params, 0.01), mixture_of(u, params, 0.01)
    in_units = nats_of(gaps * unit, u, params._replace(b_mixture=params.b_mixture + shift), 0.01 * unit)
    z = (np.abs(np.log(gaps))[:, None] + np.abs(mixture.mu) + np.log(1e4)) / mixture.sigma  # eps of what z is made of, times z
    limit = (20 + (10 * (z + 1) ** 2).max(-1)) * EPS
    assert share(in_units, nats + np.log(unit), limit) <= 1


@settings(max_examples=50)
@given(seed=seeds, narrow=st.floats(-700, -5), resolution=st.sampled_from([1e-3, 1.0, 60.0]))
def test_nothing_is_narrower_than_the_recording(seed, narrow, resolution):
    """However small e^s, a density with a median of at least the resolution r stays below its value for σ = r e^−μ: e^½ / (√2π r)."""
    rng = np.random.default_rng(seed)
    mu = np.log(resolution) + rng.uniform(0, 10, 3)
    params = MixtureParams(np.zeros((FEATURES, 9)), np.concatenate([np.zeros(3), mu, np.full(3, narrow)]))
    u = np.zeros((1, FEATURES))
    sigma = mixture_of(u, params, resolution).sigma
    assert np.all(sigma >= resolution * np.exp(-mu))
    gaps = np.concatenate([np.exp(mu), np.exp(mu - sigma[0] ** 2), resolution * np.arange(1, 50)])
    assert np.all(nats_of(gaps, u, params, resolution) >= HALF_LN_TURN + np.log(resolution) - 0.5 - 1e-12)


@pytest.mark.parametrize("gap", [0.0, 0.2, 0.5, -3.0])
def test_gaps_below_half_the_resolution_count_as_half(gap):
    """Two events of one tick are a gap of 0, whose logarithm is never formed; nats and gradients are finite."""
    u, params = random_head(1, 4)
    nats, cache = time_head_forward(u, np.array([gap]), params, 1.0)
    assert nats.tolist() == nats_of(np.array([0.5]), u, params, 1.0).tolist()
    du, (dw, db) = time_head_backward(np.ones(1), cache)
    assert all(np.isfinite(g).all() and g.any() for g in (nats, du, dw, db))


def test_far_away_gaps_stay_finite():
    """1e300 σ away from every component: the exponentials all vanish, their logarithms do not."""
    u, params = random_head(2, 4)
    nats, cache = time_head_forward(np.repeat(u, 2, 0), np.array([1e300, 1e-6]), params, TINY)
    assert np.isfinite(nats).all()
    assert np.isfinite(time_head_backward(np.ones(2), cache)[0]).all()


def test_states_in_float32():
    """Nats are float64; gradients come back in the type of what they belong to."""
    u, params = random_head(3, 4)
    params32 = MixtureParams(*(a.astype(np.float32) for a in params))
    nats, cache = time_head_forward(u.astype(np.float32), np.array([2.0]), params32, 1.0)
    du, (dw, db) = time_head_backward(np.ones(1), cache)
    assert (nats.dtype, du.dtype, dw.dtype, db.dtype) == (np.float64, np.float32, np.float32, np.float32)


@pytest.mark.parametrize("components", [1, 2, 8])
def test_init(components):
    """Equal weights, medians evenly spread in ln g inside the range, and together nearly all of the probability over it."""
    params = mixture_init(FEATURES, components, TimeConfig(shortest=1.0, span=1e6), np.random.default_rng(0))
    mixture = mixture_of(np.zeros((1, FEATURES)), params, 1.0)
    assert share(np.exp(mixture.log_weight), 1 / components, 4 * EPS) <= 1
    assert share(np.diff(np.concatenate([[0], mixture.mu[0], [np.log(1e6)]])), np.log(1e6) / (components + 1), 60 * EPS) <= 1
    low, high = mixture_cdf(repeated(mixture, 2), np.array([1.0, 1e6]))
    assert high - low > 0.6
