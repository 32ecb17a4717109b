"""The bias in time: identities between its kinds, and the table's knots, ends and joints."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tests.ref.bounds import EPS, attention_limits, same_bits, share
from tests.ref.cases import BIASES, problems, random_bias, rising_times, seeds
from ttr_ref.attention import attention_backward, attention_forward
from ttr_ref.config import BlockConfig, TimeConfig
from ttr_ref.time_bias import (
    ExpBias,
    LinearBias,
    LogBias,
    NoBias,
    TableBias,
    TimeBias,
    inverse_softplus,
    sigmoid,
    softplus,
    time_bias_forward,
    time_bias_init,
)
from ttr_ref.timeline import key_set, time_differences, timeline_from_lengths
from ttr_ref.tree import named_leaves

SOFT_ZERO = -1000.0
"""softplus of it is e^−1000, which is 0 in float64."""


def biases_that_vanish(heads: int) -> list[TimeBias]:
    zero = np.full(heads, SOFT_ZERO)
    return [LinearBias(zero), LogBias(zero, np.ones(heads)), ExpBias(np.zeros((heads, 2)), np.ones((heads, 2))), TableBias(np.zeros((heads, 4)))]


def b_of(delta: np.ndarray, params: TimeBias, time: TimeConfig) -> np.ndarray:
    """b for a vector of Δ: (H, …) or, without bias, (1, …)."""
    return time_bias_forward(np.asarray(delta, float)[None, None], params, time)[0][0, :, 0]


@settings(max_examples=80)
@given(problems(kinds=("none",)))
def test_kinds_that_vanish_are_no_bias(p):
    """Every bit of outputs and of the gradients of q, k, v."""
    o, lse, cache = attention_forward(*p.arguments)
    gradients = attention_backward(p.do, p.dlse, cache)
    for bias in biases_that_vanish(p.q.shape[1]):
        other_o, other_lse, other_cache = attention_forward(*p._replace(bias=bias).arguments)
        assert same_bits((other_o, other_lse), (o, lse))
        assert same_bits(attention_backward(p.do, p.dlse, other_cache)[:3], gradients[:3])


@settings(max_examples=60)
@given(p=problems(kinds=("linear",)), slope=st.sampled_from([1e-3, 1e-6, 1e-9]))
def test_a_small_slope_is_nearly_no_bias(p, slope):
    """What is added to exponents by less than ε moves O by less than 2ε times the size of the values, to first order; 3ε for the second."""
    p = p._replace(bias=LinearBias(np.full(p.q.shape[1], np.log(np.expm1(slope)))))
    o, lse, cache = attention_forward(*p.arguments)
    plain_o, plain_lse, plain_cache = attention_forward(*p._replace(bias=NoBias()).arguments)
    delta = np.where(cache.read, cache.bias.delta[:, None], 0)
    moved = 1.001 * slope * (delta / p.time.unit).max(-1, keepdims=True)
    size = np.maximum((cache.p * cache.mask) @ np.abs(cache.v), (plain_cache.p * plain_cache.mask) @ np.abs(cache.v))
    rounding = attention_limits(p, cache)
    assert np.all(np.abs(o - plain_o) <= np.expm1(2 * np.minimum(moved, 300)) * size + 2 * rounding.o)
    some = np.isfinite(lse)
    assert np.all(np.abs(lse[some] - plain_lse[some]) <= (moved[..., 0] + 2 * rounding.lse)[some])


@given(seed=seeds, c0=st.sampled_from([1.0, 0.25, 64.0]), knots=st.integers(2, 32))
def test_table_passes_its_knots(seed, c0, knots):
    """Δ = c₀ (2^k − 1) is exact for a power of two, and so is its logarithm: the knot's own value. Behind the last knot nothing changes."""
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((3, knots))
    delta = c0 * (2.0 ** np.arange(knots) - 1)
    assert np.array_equal(b_of(delta, TableBias(table), TimeConfig(shortest=c0)), table)
    beyond = delta[-1] * np.array([1.0, 1 + EPS, 2.0, 1e6]) + c0 * np.array([0, 1e-9, 1, 1e15])
    assert np.array_equal(b_of(beyond, TableBias(table), TimeConfig(shortest=c0)), np.repeat(table[:, -1:], 4, 1))


@given(seed=seeds, c0=st.floats(1e-3, 1e4), knots=st.integers(2, 32))
def test_table_is_straight_and_joined_between_its_knots(seed, c0, knots):
    """Against np.interp over u = log₂(1 + Δ/c₀). u and Δ/c₀ are off by u·eps and 2·eps/ln 2; a slope is at most 2 max |T|; some knots are hit
    from one side, some from the other, so a jump at a joint would show."""
    rng = np.random.default_rng(seed)
    table, time = rng.standard_normal((2, knots)), TimeConfig(shortest=c0)
    at_knots = c0 * (2.0 ** np.arange(knots) - 1)
    delta = np.concatenate([at_knots, np.nextafter(at_knots, np.inf), np.nextafter(at_knots[1:], 0), at_knots[-1] * rng.uniform(0, 1.5, 30)])
    u = np.log2(1 + delta / c0)
    expected = np.stack([np.interp(u, np.arange(knots), row) for row in table])
    limit = 2 * np.abs(table).max(1, keepdims=True) * (2 * knots + 6) * EPS
    assert share(b_of(delta, TableBias(table), time), expected, limit) <= 1


@given(st.floats(-700, 700))
def test_softplus(a):
    """Against the textbook's form where that neither overflows nor cancels, and by its symmetry softplus(a) − softplus(−a) = a."""
    a = np.array([a])
    size = np.abs(a)
    assert share(softplus(a) - softplus(-a), a, 4 * EPS * np.maximum(size, 1)) <= 1
    assert share(sigmoid(a) + sigmoid(-a), 1.0, 8 * EPS) <= 1
    if size < 30:
        assert share(softplus(a), np.log1p(np.exp(a)), 4 * EPS * softplus(a)) <= 1
        assert share(sigmoid(a), 1 / (1 + np.exp(-a)), (8 + 2 * size) * EPS * sigmoid(a)) <= 1


def test_softplus_far_out():
    assert softplus(np.array([-1e300, -750.0, 750.0, 1e300])).tolist() == [0.0, 0.0, 750.0, 1e300]
    assert sigmoid(np.array([-1e300, 1e300])).tolist() == [0.0, 1.0]


@given(st.floats(1e-6, 30))
def test_inverse_of_softplus(s):
    """a = ln(e^s − 1) is rounded to eps |a|, and softplus passes that on with a slope of 1 − e^−s, besides a few roundings of s itself."""
    a = inverse_softplus(np.array([s]))
    assert share(softplus(a), s, (-np.expm1(-s) * (np.abs(a) + 4) + 4 * s) * EPS) <= 1


@settings(max_examples=60)
@given(seed=seeds, kind=st.sampled_from(BIASES), times=st.sampled_from(["ties", "unix", "centuries"]))
def test_without_causality_the_bias_sees_the_distance(seed, kind, times):
    """Turning time around changes no bit of non-causal attention when the places are turned around too."""
    rng = np.random.default_rng(seed)
    places = 7
    at = timeline_from_lengths(rising_times(rng, 2, places, times), np.full(2, places))
    turned = at._replace(time=-at.time)
    q, k, v = rng.standard_normal((3, 2, 2, places, 4))
    bias, time = random_bias(kind, 2, rng), TimeConfig(unit=100.0)
    o, lse, _ = attention_forward(q, k, v, at, at, bias, time, causal=False)
    turned_o, turned_lse, _ = attention_forward(q, k, v, turned, turned, bias, time, causal=False)
    assert same_bits((turned_o, turned_lse), (o, lse))
    delta = time_differences(at, at, key_set(at, at, False, None), False)
    assert np.array_equal(delta, np.abs(at.time[:, :, None] - at.time[:, None, :]))


@pytest.mark.parametrize("seconds", [1, 59, 86_400])
def test_differences_of_large_times_are_exact(seconds):
    """Nanoseconds since 1970 need 61 bits, more than float64 has; they are subtracted as integers before they become floats."""
    base = 2**62
    at = timeline_from_lengths(np.array([[base, base + seconds]]), np.array([2]))
    delta = time_differences(at, at, key_set(at, at, True, None), True)
    assert delta[0, 1, 0] == seconds


@pytest.mark.parametrize("kind", BIASES)
def test_init(kind):
    """Slopes 4 · 2^(−8h/H); scales between the shortest gap and the span; exp and table start without bias."""
    config = BlockConfig(16, 4, 4, time_bias=kind, exp_terms=3, table_knots=9, time=TimeConfig(unit=10.0, shortest=2.0, span=2000.0))
    bias = time_bias_init(config)
    shapes = {name: a.shape for name, a in named_leaves(bias).items()}
    assert shapes == {
        "none": {}, "linear": {"a": (4,)}, "log": {"a": (4,), "rho": (4,)}, "exp": {"alpha": (4, 3), "log_rate": (4, 3)}, "table": {"table": (4, 9)},
    }[kind]
    delta = np.array([0.0, 1.0, 50.0])
    if kind in ("none", "exp", "table"):
        assert not b_of(delta, bias, config.time).any()
    if kind == "linear":
        slopes = -b_of(np.array([config.time.unit]), bias, config.time)[:, 0]
        assert share(slopes, [4, 1, 1 / 4, 1 / 16], 8 * EPS) <= 1
    if kind == "log":
        assert share(softplus(bias.a), [4, 1, 1 / 4, 1 / 16], 8 * EPS) <= 1
        assert np.all((np.exp(bias.rho) > 2.0) & (np.exp(bias.rho) < 2000.0))
        assert np.all(np.diff(bias.rho) > 0)
    if kind == "exp":
        assert np.all((np.exp(bias.log_rate) > 1 / 2000) & (np.exp(bias.log_rate) < 1 / 2))
