"""Only differences of times and positions matter, even when the times are those of today."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings, strategies as st

from tests.ref.bounds import EPS, same_bits, share
from tests.ref.cases import ALL_DROPOUTS, BIASES, NOW, ROPES, lively_model, model_configs, packed, problems, random_batch, rising_times, seeds
from ttr_ref.attention import attention_backward, attention_forward
from ttr_ref.config import BlockConfig, ModelConfig, TimeConfig
from ttr_ref.dropout import DropoutKey
from ttr_ref.model import loss_backward, loss_forward
from ttr_ref.rope import rope_backward, rope_forward, rope_init
from ttr_ref.timeline import Timeline, timeline_from_lengths

shifts = st.sampled_from([1, 86_400, NOW, -NOW, 2**60]) | st.integers(-(2**61), 2**61)


def shifted(at: Timeline, by: int) -> Timeline:
    return at._replace(time=at.time + np.asarray(by, at.time.dtype))


@settings(max_examples=150)
@given(p=problems(), shift=shifts)
def test_attention_with_any_bias(p, shift):
    """Bit for bit: a difference of integers is exact. Float times are rounded to quarters and shifted less, so that theirs is exact too."""
    if p.at_q.time.dtype == np.float64:
        shift %= 2**40
        p = p._replace(at_q=p.at_q._replace(time=np.round(4 * p.at_q.time) / 4), at_k=p.at_k._replace(time=np.round(4 * p.at_k.time) / 4))
    moved = p._replace(at_q=shifted(p.at_q, shift), at_k=shifted(p.at_k, shift))
    o, lse, cache = attention_forward(*p.arguments)
    moved_o, moved_lse, moved_cache = attention_forward(*moved.arguments)
    assert same_bits((moved_o, moved_lse), (o, lse))
    assert same_bits(attention_backward(p.do, p.dlse, moved_cache), attention_backward(p.do, p.dlse, cache))


def angle_errors(at: Timeline, omega: np.ndarray, config: BlockConfig) -> np.ndarray:
    """How far each angle may be off: τ is rounded, its product with ω, the whole turns and their difference; each by eps/2 of the angle.

    π eps for the rounding of the reduced angle and eps for its sine and cosine remain when the angle is small.
    """
    pairs = config.head_dim // 2
    theta = config.rope_base ** (-2.0 * np.arange(pairs - omega.size) / config.head_dim)
    tau = (at.time - config.time.origin) / config.time.unit
    angle = np.concatenate([at.position[..., None] * theta, tau[..., None] * omega], axis=-1)
    return (2 * np.abs(angle) + 6) * EPS


@settings(max_examples=150)
@given(
    kind=st.sampled_from(ROPES), by_position=st.integers(0, 100_000), by_time=st.sampled_from([0, 3600, NOW, -NOW]),
    width=st.sampled_from([2, 4, 10]), origin=st.sampled_from([0, NOW]), seed=seeds,
)
def test_rotary_scores_depend_on_differences(kind, by_position, by_time, width, origin, seed):
    """q_i · k_j keeps its value when all positions and times move, up to what the rounding of four angles may turn each pair."""
    rng = np.random.default_rng(seed)
    config = BlockConfig(width, 4, 1, rope=kind, time=TimeConfig(origin=origin, unit=60.0, shortest=1.0, span=1e7))
    omega = rope_init(config)
    at = timeline_from_lengths(rising_times(rng, 1, 8, "unix"), np.array([8]))
    moved = shifted(at, by_time)._replace(position=at.position + by_position)
    x = rng.standard_normal((1, 2, 8, width))  # head 0 holds the queries, head 1 the keys

    def scores(at: Timeline) -> np.ndarray:
        y, _ = rope_forward(x, at, omega, config)
        return y[0, 0] @ y[0, 1].T

    length = np.hypot(x[..., 0::2], x[..., 1::2])[0]
    turned = (angle_errors(at, omega, config) + angle_errors(moved, omega, config))[0]
    products = length[0, :, None] * length[1, None]
    limit = (products * (turned[:, None] + turned[None] + (width + 8) * EPS)).sum(-1)
    assert share(scores(moved), scores(at), limit) <= 1
    assert limit.max() < 1e-5 * products.sum(-1).max()  # at a distance of 1.7e9 s from the origin six digits are left, beside it all


@settings(max_examples=40)
@given(kind=st.sampled_from(ROPES), seed=seeds)
def test_rotation_keeps_lengths_and_is_undone_by_backward(kind, seed):
    """R(−α) R(α) = 1: each pair is turned twice, with three roundings each time and cos² + sin² off by 4 eps."""
    rng = np.random.default_rng(seed)
    config = BlockConfig(8, 4, 1, rope=kind, time=TimeConfig(origin=NOW))
    at = timeline_from_lengths(rising_times(rng, 2, 5, "unix"), np.array([5, 3]))
    x = rng.standard_normal((2, 3, 5, 8))
    y, cache = rope_forward(x, at, rope_init(config), config)
    length = np.hypot(x[..., 0::2], x[..., 1::2])
    assert share(np.hypot(y[..., 0::2], y[..., 1::2]), length, 8 * EPS * length) <= 1
    assert share(rope_backward(y, cache)[0], x, 12 * EPS * np.repeat(length, 2, -1)) <= 1


@settings(max_examples=40)
@given(data=st.data(), seed=seeds, shift=shifts)
def test_a_model_whose_origin_moves_along(data, seed, shift):
    """Loss and every gradient keep their bits, with all options and dropouts."""
    shift %= 2**60
    config = data.draw(model_configs(dropout=ALL_DROPOUTS))
    assert_same_training(config, moved_origin(config, shift), shift, seed)


@settings(max_examples=40)
@given(bias=st.sampled_from(BIASES), seed=seeds, shift=shifts, data=st.data())
def test_a_model_that_sees_differences_alone(bias, seed, shift, data):
    """Without Time2Vec and with positions for the rotary angles the origin does not matter at all."""
    config = data.draw(model_configs(dropout=ALL_DROPOUTS, time_bias=bias, time2vec=False, rope="position", time_head=None))
    assert_same_training(config, config, shift, seed)


def moved_origin(config: ModelConfig, shift: int) -> ModelConfig:
    time = replace(config.block.time, origin=config.block.time.origin + shift)
    return replace(config, block=replace(config.block, time=time))


def assert_same_training(config: ModelConfig, moved_config: ModelConfig, shift: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    batch = random_batch(rng, config, packed(rng, 2, 7, "unix"))
    if not batch.is_target.any():
        return
    moved = batch._replace(at=shifted(batch.at, shift), next_times=batch.next_times + shift)
    params, key = lively_model(config, seed), DropoutKey(seed, 1)
    loss, _, cache = loss_forward(params, batch, config, key, z_loss=1e-3)
    moved_loss, _, moved_cache = loss_forward(params, moved, moved_config, key, z_loss=1e-3)
    assert moved_loss == loss
    assert same_bits(loss_backward(1.0, moved_cache), loss_backward(1.0, cache))
