"""The model's parts and parameters: shapes, types, precision, what it refuses, and that it learns."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st

from tests.ref.bounds import EPS, same_bits, share
from tests.ref.cases import NOW, lively_model, model_configs, packed, random_batch, seeds
from ttr_ref.adamw import adamw_init, adamw_step, clip_by_global_norm
from ttr_ref.config import BlockConfig, DropoutConfig, ModelConfig, TimeConfig, TimeHeadConfig, TrainConfig
from ttr_ref.dropout import DropoutKey
from ttr_ref.embedding import embedding_backward, embedding_forward
from ttr_ref.float_dtype import FloatDType
from ttr_ref.loss_scaling import LossScale, loss_scale_init, loss_scale_update, unscale
from ttr_ref.model import compute_copy, decays, learning_rate_shares, loss_backward, loss_forward, model_init
from ttr_ref.next_event import Batch
from ttr_ref.parameters import is_frequency, is_matrix
from ttr_ref.rms_norm import rms_norm_forward
from ttr_ref.schedule import learning_rate
from ttr_ref.timeline import timeline_from_lengths
from ttr_ref.tree import leaves_of, named_leaves, tree_map

E, F, H, G, V, M, K = 12, 5, 3, 1, 7, 2, 6
FULL = ModelConfig(
    V, 2, BlockConfig(E, F, H, G, window=4, rope="split", time_bias="table", table_knots=K, time=TimeConfig(origin=NOW, unit=60.0, span=1e5)),
    tied=False, time_head=TimeHeadConfig(M, "both"),
)


def test_shapes():
    """D = 4 gives two pairs, of which the second turns by time; the input projection holds H + 2 G heads."""
    block = {
        "time2vec.omega": (E,), "time2vec.phi": (E,), "norm_attention": (E,), "attention.w_qkv": (E, E + 2 * G * 4), "attention.w_out": (E, E),
        "attention.time_bias.table": (H, K), "attention.rope_omega": (1,), "norm_feed_forward": (E,), "feed_forward.w_in": (E, 2 * F),
        "feed_forward.w_out": (F, E),
    }
    head = {
        "mixture.w_mixture": (E, 3 * M), "mixture.b_mixture": (3 * M,), "next_time.time2vec.omega": (E,), "next_time.time2vec.phi": (E,),
        "next_time.norm": (E,), "next_time.feed_forward.w_in": (E, 2 * F), "next_time.feed_forward.w_out": (F, E),
    }
    expected = {"embedding": (V, E), "norm_final": (E,), "w_vocab": (E, V)}
    expected |= {f"blocks.{layer}.{name}": shape for layer in (0, 1) for name, shape in block.items()}
    expected |= {f"time_head.{name}": shape for name, shape in head.items()}
    assert {name: a.shape for name, a in named_leaves(model_init(FULL, 0)).items()} == expected


@pytest.mark.parametrize("dtype", list(FloatDType))
def test_types(dtype):
    """Master weights are float32 (float64 for f64), frequencies float64 always; the compute copy holds what storage can, matrices only."""
    config = replace(FULL, block=replace(FULL.block, float_dtype=dtype))
    params = model_init(config, 0)
    copy = named_leaves(compute_copy(params, config))
    for name, a in named_leaves(params).items():
        assert a.dtype == (np.float64 if is_frequency(name) else dtype.compute)
        stored = a.astype(dtype.storage).astype(a.dtype) if is_matrix(name) else a
        assert np.array_equal(copy[name], stored)


def test_init_is_a_function_of_the_seed():
    assert same_bits(model_init(FULL, 3), model_init(FULL, 3))
    assert not same_bits(model_init(FULL, 3), model_init(FULL, 4))


def test_sizes_at_the_start():
    """Variance 1/fan-in, those that write into the residual 2L times less; within 5 standard errors, sqrt(2/n) each, of the sample variance."""
    config = ModelConfig(300, 4, BlockConfig(64, 128, 4))
    leaves = named_leaves(model_init(config, 0))
    for name, variance in {
        "embedding": 1 / 64, "blocks.2.attention.w_qkv": 1 / 64, "blocks.3.attention.w_out": 1 / 64 / 8,
        "blocks.0.feed_forward.w_in": 1 / 64, "blocks.1.feed_forward.w_out": 1 / 128 / 8,
    }.items():
        a = leaves[name]
        assert abs(a.var() / variance - 1) < 5 * np.sqrt(2 / a.size)
    assert np.all(leaves["norm_final"] == 1)


@settings(max_examples=40)
@given(data=st.data(), seed=seeds)
def test_gradients_look_like_parameters(data, seed):
    config = data.draw(model_configs())
    rng = np.random.default_rng(seed)
    batch = random_batch(rng, config, packed(rng, 2, 6, "unix"))
    assume(batch.is_target.any())
    params = lively_model(config, seed)
    _, nats, cache = loss_forward(params, batch, config)
    grads = loss_backward(1.0, cache)
    assert {n: (a.shape, a.dtype) for n, a in named_leaves(grads).items()} == {n: (a.shape, a.dtype) for n, a in named_leaves(params).items()}
    assert [n.order for n in nats] == list(config.time_head.orders if config.time_head else ["token_then_time"])
    assert all(n.token.shape == (batch.is_target.sum(),) for n in nats)


@settings(max_examples=30)
@given(data=st.data(), seed=seeds, weight=st.sampled_from([0.0, 0.25, 2.0]), z_loss=st.sampled_from([0.0, 0.01]))
def test_the_loss_is_made_of_its_parts(data, seed, weight, z_loss):
    """Linear in the weights of its terms, the mean over targets and orders."""
    config = data.draw(model_configs(time_head=TimeHeadConfig(2, data.draw(st.sampled_from(["token_then_time", "both"])))))
    rng = np.random.default_rng(seed)
    at = timeline_from_lengths(np.cumsum(rng.integers(0, 9, (2, 4)), 1), np.array([4, 3]))
    batch = random_batch(rng, config, at)
    assume(batch.is_target.any())
    params = lively_model(config, seed)
    loss, nats, cache = loss_forward(params, batch, config, z_loss=z_loss, time_weight=weight)
    parts = [np.concatenate([n.token, weight * n.time, z_loss * lse**2]) for n, lse in zip(nats, cache.lse, strict=True)]
    count = batch.is_target.sum() * len(nats)
    assert share(loss, np.sum(parts) / count, 40 * EPS * np.abs(parts).sum() / count) <= 1


@pytest.mark.parametrize("dtype", [FloatDType.F32, FloatDType.BF16, FloatDType.F16])
@settings(max_examples=25)
@given(data=st.data(), seed=seeds)
def test_precision(dtype, data, seed):
    """The loss in each storage type against float64 on the same weights.

    Rounding a matrix moves the loss by Σ ε w ∂L/∂w, to first order, with |ε| ≤ eps/2. Roundings are as good as independent, so the sum stays below
    √(2 ln(2/δ)) · eps/2 · √Σ (w ∂L/∂w)² but with probability δ (Hoeffding), here 10⁻⁹. Each of the 11 values that a block stores on the way, and
    of the 3 outside, acts like rounding the matrix that it meets; float32's own sums, of 100 terms at most, act the same. Curvature may double it.
    """
    config = data.draw(model_configs(layers=2, time=TimeConfig(origin=NOW, unit=600.0, shortest=60.0, span=1e6)))
    rng = np.random.default_rng(seed)
    batch = random_batch(rng, config, packed(rng, 2, 8, "unix"))
    assume(batch.is_target.any())
    rounded = replace(config, block=replace(config.block, float_dtype=dtype))
    params = model_init(rounded, seed)
    exact, _, cache = loss_forward(tree_map(lambda a: a.astype(np.float64), params), batch, config)
    loss, _, _ = loss_forward(params, batch, rounded)
    reach = np.sqrt(sum(np.square(w.astype(float) * g).sum() for w, g in zip(leaves_of(params), leaves_of(loss_backward(1.0, cache)), strict=True)))
    eps32 = float(np.finfo(np.float32).eps)
    eps = {FloatDType.F32: eps32, FloatDType.BF16: 2.0**-7, FloatDType.F16: 2.0**-10}[dtype]
    stored, hoeffding = 11 * config.layers + 3, np.sqrt(2 * np.log(2e9))
    limit = 2 * hoeffding * (np.sqrt(stored) * eps / 2 + 10 * eps32) * reach + 4 * eps32 * abs(exact)
    assert share(loss, exact, limit) <= 1


@pytest.mark.parametrize("dtype", list(FloatDType))
def test_training_learns(dtype):
    """Tokens that follow each other in a circle, a gap of their own each: both losses fall below what not knowing costs, in every storage type.

    The clocks start anywhere, so gaps cannot be read off the time; dropout, clipping, schedule and loss scaling are on.
    """
    vocab, rows, places = 4, 4, 10
    block = BlockConfig(
        16, 24, 2, window=6, rope="split", time_bias="log", float_dtype=dtype, dropout=DropoutConfig(0.05, 0.05, 0.05),
        time=TimeConfig(origin=NOW, unit=60.0, shortest=60.0, span=3600.0, resolution=1.0),
    )
    config, train = ModelConfig(vocab, 2, block, time_head=TimeHeadConfig(2)), TrainConfig(steps=60, warmup=5, learning_rate=2e-2, seed=7)
    params, scale = model_init(config, train.seed), loss_scale_init(block)
    state, rng, nats = adamw_init(params), np.random.default_rng(7), []
    for step in range(train.steps):
        tokens = (rng.integers(0, vocab, (rows, 1)) + np.arange(places + 1)) % vocab
        gaps = 60 * 2.0 ** tokens[:, :-1].astype(float)
        times = NOW + np.concatenate([np.zeros((rows, 1)), np.cumsum(gaps, 1)], 1).astype(np.int64)
        at = timeline_from_lengths(times[:, :-1], np.full(rows, places))
        batch = Batch(tokens[:, :-1], at, tokens[:, 1:], times[:, 1:], at.is_token)
        _, each, cache = loss_forward(params, batch, config, DropoutKey(train.seed, step), time_weight=train.time_weight)
        grads, finite = unscale(loss_backward(scale.scale, cache), scale)
        scale = loss_scale_update(scale, finite)
        nats.append([each[0].token.mean(), each[0].time.mean()])
        if finite:
            grads, _ = clip_by_global_norm(grads, train.clip_norm)
            shares = learning_rate_shares(params, block)
            params, state = adamw_step(params, grads, state, learning_rate(step, train), decays(params), shares, train)
    token, time = np.mean(nats[-5:], 0)
    assert np.isfinite(nats).all()
    assert token < 0.5 * np.log(vocab)
    assert time < np.mean(nats[:5], 0)[1] - 0.5
    for name, a in named_leaves(params).items():
        assert a.dtype == (np.float64 if is_frequency(name) else dtype.compute)


def test_overflow_in_f16_is_seen_not_hidden():
    """Weights of 1e4 overflow f16 somewhere on the way: the gradients are not finite, the step is skipped, the scale is halved."""
    config = ModelConfig(5, 1, BlockConfig(8, 4, 2, float_dtype=FloatDType.F16))
    params = model_init(config, 0)
    params = params._replace(embedding=1e4 * params.embedding, norm_final=1e4 * params.norm_final)
    at = timeline_from_lengths(np.arange(8).reshape(2, 4), np.array([4, 4]))
    with np.errstate(all="ignore"):
        _, _, cache = loss_forward(params, random_batch(np.random.default_rng(0), config, at), config)
        grads, finite = unscale(loss_backward(2.0**16, cache), LossScale(2.0**16, 2.0**24))
    assert not finite
    assert loss_scale_update(LossScale(2.0**16, 2.0**24, 5), finite) == LossScale(2.0**15, 2.0**24, 0)
    assert grads.embedding.dtype == np.float32


def test_nothing_to_predict():
    config = ModelConfig(3, 1, BlockConfig(4, 4, 1))
    at = timeline_from_lengths(np.zeros((1, 2), np.int64), np.array([2]))
    batch = random_batch(np.random.default_rng(0), config, at)._replace(is_target=np.zeros((1, 2), bool))
    with pytest.raises(ValueError, match="loss: the batch has nothing to predict"):
        loss_forward(model_init(config, 0), batch, config)


@pytest.mark.parametrize("token", [-1, 3, 99])
def test_target_outside_the_vocabulary(token):
    config = ModelConfig(3, 1, BlockConfig(4, 4, 1))
    at = timeline_from_lengths(np.zeros((2, 3), np.int64), np.array([3, 2]))
    batch = random_batch(np.random.default_rng(0), config, at)
    batch.next_tokens[1, 0], batch.is_target[1, 0] = token, True
    with pytest.raises(ValueError, match=f"next_event: target {token} at row 1, place 0 is outside the vocabulary of 3"):
        loss_forward(model_init(config, 0), batch, config)


@pytest.mark.parametrize("token", [-1, 3, 99])
def test_token_outside_the_vocabulary(token):
    at = timeline_from_lengths(np.zeros((2, 3)), np.array([3, 2]))
    tokens = np.zeros((2, 3), int)
    tokens[1, 1] = token
    with pytest.raises(ValueError, match=f"embedding: token {token} at row 1, place 1 is outside the vocabulary of 3"):
        embedding_forward(tokens, np.ones((3, 4)), at)
    tokens[1, 1:] = 0, token
    assert not embedding_forward(tokens, np.ones((3, 4)), at)[1, 2].any()


def test_embedding_sums_over_places():
    """Row `token` times √E; backward sums what comes back from its places."""
    at = timeline_from_lengths(np.zeros((1, 4)), np.array([3]))
    tokens, table = np.array([[2, 0, 2, 1]]), np.arange(12.0).reshape(3, 4)
    assert embedding_forward(tokens, table, at)[0].tolist() == [*(2 * table[[2, 0, 2]]).tolist(), [0.0] * 4]
    dx = np.arange(16.0).reshape(1, 4, 4)
    assert embedding_backward(dx, tokens, table, at).tolist() == (2 * np.stack([dx[0, 1], 0 * dx[0, 0], dx[0, 0] + dx[0, 2]])).tolist()


def test_rms_norm_of_the_wrong_width():
    with pytest.raises(ValueError, match="rms_norm: x has 3 features, weight has 4"):
        rms_norm_forward.__wrapped__(np.ones((2, 3)), np.ones(4))
