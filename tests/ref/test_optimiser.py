"""What happens between gradients and the next weights: AdamW, clipping, the schedule, loss scaling."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, strategies as st
from numpy import ndarray

from tests.ref.bounds import EPS, same_bits, share
from tests.ref.cases import seeds
from ttr_ref.adamw import adamw_init, adamw_step, clip_by_global_norm, global_norm
from ttr_ref.config import BlockConfig, ModelConfig, TimeConfig, TimeHeadConfig, TrainConfig
from ttr_ref.float_dtype import FloatDType
from ttr_ref.loss_scaling import GROWTH_INTERVAL, LossScale, loss_scale_init, loss_scale_update, unscale
from ttr_ref.model import decays, learning_rate_shares, model_init
from ttr_ref.schedule import learning_rate
from ttr_ref.tree import named_leaves, tree_map


class Params(NamedTuple):
    w: ndarray
    omega: ndarray


def test_adamw_by_hand():
    """β₁ = ½, β₂ = ¾, ε = ½, η = ½, λ = ¼; gradients 2, then −2, so that all roots are whole.

    Step 1: m̂ = 2, v̂ = 4, step 2/(2 + ½) = 4/5. θ = 1 − ½ · 4/5 − ½ · ¼ · 1 = 0.475, and without decay, at a tenth of the rate, 1 − 0.04 = 0.96.
    Step 2: m = ½ − 1 = −½, m̂ = −½ / ¾ = −2/3; v̂ = 4, step −4/15. θ = 0.475 + 2/15 − 0.475/8, and 0.96 + 0.2/15.
    """
    config = TrainConfig(beta1=0.5, beta2=0.75, adam_eps=0.5, weight_decay=0.25)
    params, state = Params(np.ones(1), np.ones(1)), adamw_init(Params(np.ones(1), np.ones(1)))
    for g, w, omega in ((2.0, 0.475, 0.96), (-2.0, 0.475 + 2 / 15 - 0.475 / 8, 0.96 + 0.2 / 15)):
        grads = Params(np.array([g]), np.array([g]))
        params, state = adamw_step(params, grads, state, 0.5, Params(1.0, 0.0), Params(1.0, 0.1), config)
        assert share(params.w, w, 8 * EPS) <= 1
        assert share(params.omega, omega, 8 * EPS) <= 1
    assert [state.m.w.tolist(), state.v.w.tolist(), state[2]] == [[-0.5], [1.75], 2]


@given(seed=seeds, scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_adam_does_not_see_the_size_of_gradients(seed, scale):
    """A constant gradient, ε aside, moves every weight by η a step: m̂ / √v̂ is its sign."""
    g = scale * np.random.default_rng(seed).standard_normal(5)
    config = TrainConfig(adam_eps=1e-300, weight_decay=0.0)
    params, state = Params(np.zeros(5), np.zeros(5)), adamw_init(Params(np.zeros(5), np.zeros(5)))
    for step in range(1, 4):
        params, state = adamw_step(params, Params(g, g), state, 0.125, Params(1.0, 0.0), Params(1.0, 1.0), config)
        # 1 − β₂ⁿ cancels to n (1 − β₂) = 0.02 n, so it is known to 50 eps at worst, and there are a dozen roundings a step
        assert share(params.w, -0.125 * step * np.sign(g), 100 * step * EPS) <= 1


def values(tree: object) -> dict[str, float]:
    return {name: float(a) for name, a in named_leaves(tree_map(np.asarray, tree)).items()}


def test_what_decays_and_what_moves_slowly():
    """Matrices decay; norms, biases, phases, frequencies and the mixture's offsets do not. Frequencies get unit / span of the rate."""
    block = BlockConfig(8, 6, 2, rope="split", time_bias="table", time=TimeConfig(unit=10.0, span=1000.0))
    params = model_init(ModelConfig(5, 1, block, tied=False, time_head=TimeHeadConfig(2, "both")), 0)
    matrices = {f"blocks.0.{name}" for name in ("attention.w_qkv", "attention.w_out", "feed_forward.w_in", "feed_forward.w_out")}
    matrices |= {f"time_head.{name}" for name in ("mixture.w_mixture", "next_time.feed_forward.w_in", "next_time.feed_forward.w_out")}
    assert values(decays(params)) == {name: float(name in matrices | {"embedding", "w_vocab"}) for name in named_leaves(params)}
    slow = {"blocks.0.time2vec.omega", "blocks.0.attention.rope_omega", "time_head.next_time.time2vec.omega"}
    assert values(learning_rate_shares(params, block)) == {name: 0.01 if name in slow else 1.0 for name in named_leaves(params)}
    short = replace(block, time=TimeConfig(unit=10.0, span=5.0))
    assert set(values(learning_rate_shares(params, short)).values()) == {1.0}


def test_types_stay():
    """float32 weights stay float32, float64 frequencies float64, moments like their weights."""
    params = Params(np.ones(2, np.float32), np.ones(2))
    state = adamw_init(params)
    moved, state = adamw_step(params, Params(np.ones(2, np.float32), np.ones(2)), state, 0.1, Params(1.0, 0.0), Params(1.0, 0.5), TrainConfig())
    for tree in (moved, state.m, state.v):
        assert [a.dtype for a in tree] == [np.float32, np.float64]


@given(seed=seeds, scale=st.sampled_from([1e-30, 1.0, 1e30]), largest=st.sampled_from([0.5, 1.0, 10.0]))
def test_clipping(seed, scale, largest):
    """Never longer than allowed, never turned; short gradients keep their bits. In float32 squares of 1e30 would overflow."""
    rng = np.random.default_rng(seed)
    grads = Params((scale * rng.standard_normal(7)).astype(np.float32), scale * rng.standard_normal(3))
    clipped, norm = clip_by_global_norm(grads, largest)
    assert share(norm, np.hypot(np.linalg.norm(grads.w.astype(float)), np.linalg.norm(grads.omega)), 20 * EPS * norm) <= 1
    eps32 = float(np.finfo(np.float32).eps)
    if norm <= largest:
        assert same_bits(clipped, grads)
    else:
        assert share(global_norm(clipped), largest, 2 * eps32 * largest) <= 1
        for part, whole in zip(clipped, grads, strict=True):
            assert share(part, whole * (largest / norm), 2 * eps32 * np.abs(whole) * (largest / norm)) <= 1
    assert clipped.w.dtype == np.float32


def test_clipping_nothing():
    zeros = Params(np.zeros(3), np.zeros(2))
    clipped, norm = clip_by_global_norm(zeros, 1.0)
    assert norm == 0
    assert same_bits(clipped, zeros)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "wsd"])
def test_schedule(schedule):
    """A straight line up over the warm-up, the highest rate after it, the final share in the last step."""
    config = TrainConfig(steps=100, warmup=10, learning_rate=0.5, schedule=schedule, final_fraction=0.1, decay_steps=20)
    rates = [learning_rate(step, config) for step in range(100)]
    assert np.allclose(rates[:10], 0.05 * np.arange(1, 11), rtol=4 * EPS, atol=0)
    assert share(rates[10], 0.5, 4 * EPS) <= 1
    assert np.all(np.diff(rates[10:]) <= 0)
    if schedule == "constant":
        assert rates[10:] == [0.5] * 90
        return
    assert share(rates[99], 0.05, 4 * EPS) <= 1
    if schedule == "wsd":  # the last 20 of 99 intervals go down
        assert rates[10:80] == [0.5] * 70
        assert rates[80] < 0.5
        assert share(rates[79 + 10], 0.5 * (0.1 + 0.9 * 0.5), 4 * EPS) <= 1
    else:
        middle = learning_rate(10 + 44, config) + learning_rate(99 - 44, config)
        assert share(middle, 0.55, 8 * EPS) <= 1  # a cosine is symmetric about its middle


@given(
    schedule=st.sampled_from(["constant", "cosine", "wsd"]), steps=st.integers(1, 60), warmup=st.integers(0, 60), decay_steps=st.integers(1, 90),
)
def test_schedule_stays_in_its_range(schedule, steps, warmup, decay_steps):
    """Whatever the lengths, also when the warm-up or the decay is longer than the run."""
    config = TrainConfig(steps=steps, warmup=warmup, learning_rate=2.0, schedule=schedule, final_fraction=0.25, decay_steps=decay_steps)
    rates = np.array([learning_rate(step, config) for step in range(steps)])
    assert np.all(rates > 0)
    assert np.all(rates <= 2.0)
    assert np.all(rates[warmup:] >= 0.5)
    if schedule != "constant" and steps > warmup + 1:
        assert share(rates[-1], 0.5, 4 * EPS) <= 1


def test_loss_scale_halves_and_doubles():
    """Halved at once, doubled after 2 000 good steps in a row; between 1 and its largest."""
    block = BlockConfig(4, 4, 1, float_dtype=FloatDType.F16)
    state = loss_scale_init(block)
    assert state.scale == 2.0**16
    state = loss_scale_update(state, finite=False)
    assert (state.scale, state.good_steps) == (2.0**15, 0)
    assert GROWTH_INTERVAL == 2000
    for step in range(1999):
        state = loss_scale_update(state, finite=True)
        assert (state.scale, state.good_steps) == (2.0**15, step + 1)
    again = loss_scale_update(state, finite=False)
    assert (again.scale, again.good_steps) == (2.0**14, 0)
    state = loss_scale_update(state, finite=True)
    assert (state.scale, state.good_steps) == (2.0**16, 0)
    assert loss_scale_update(LossScale(1.0, 2.0**24), finite=False).scale == 1.0
    assert loss_scale_update(LossScale(2.0**24, 2.0**24, 1999), finite=True).scale == 2.0**24


@pytest.mark.parametrize("dtype", [FloatDType.F64, FloatDType.F32, FloatDType.BF16])
def test_types_that_need_no_scale(dtype):
    state = loss_scale_init(BlockConfig(4, 4, 1, float_dtype=dtype))
    assert state.scale == 1
    assert loss_scale_update(state._replace(good_steps=1999), finite=True).scale == 1
    assert loss_scale_update(state, finite=False).scale == 1


@given(seed=seeds, exponent=st.integers(0, 24))
def test_a_power_of_two_changes_no_bit(seed, exponent):
    grads = Params(np.random.default_rng(seed).standard_normal(9).astype(np.float32), np.random.default_rng(seed).standard_normal(4))
    back, finite = unscale(tree_map(lambda g: g * g.dtype.type(2.0**exponent), grads), LossScale(2.0**exponent, 2.0**24))
    assert finite
    assert same_bits(back, grads)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_one_overflow_is_seen(bad):
    grads = Params(np.array([1.0, 2.0]), np.array([bad]))
    assert not unscale(grads, LossScale(2.0, 4.0))[1]
    assert unscale(grads._replace(omega=np.ones(1)), LossScale(2.0, 4.0))[1]
