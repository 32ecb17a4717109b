"""The oracle against PyTorch in float64: its own attention, norms, losses, optimiser and distributions, with gradients by autograd.

Two libraries sum in different orders: n terms differ by n·eps/2 of their size, 1e-13 for the thousand terms of the longest sum here. LIMIT leaves a
factor of ten for a few such sums in a row, relative to the largest entry. Attention has a limit of its own, entry by entry.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings, strategies as st
from numpy import ndarray

from tests.peers import torch_model as peer
from tests.ref.bounds import attention_limits, share, worst_share
from tests.ref.cases import NOW, ROPES, lively_model, model_configs, packed, problems, random_batch, rising_times, seeds
from ttr_ref.adamw import adamw_init, adamw_step, clip_by_global_norm
from ttr_ref.attention import attention_backward, attention_forward
from ttr_ref.blocked_attention import blocked_attention_backward, blocked_attention_forward
from ttr_ref.config import BlockConfig, TimeConfig, TrainConfig
from ttr_ref.cross_entropy import cross_entropy_backward, cross_entropy_forward
from ttr_ref.feed_forward_geglu import FeedForwardGegluParams, feed_forward_geglu_backward, feed_forward_geglu_forward, gelu_backward, gelu_forward
from ttr_ref.model import loss_backward, loss_forward
from ttr_ref.rms_norm import rms_norm_backward, rms_norm_forward
from ttr_ref.rope import rope_backward, rope_forward, rope_init
from ttr_ref.schedule import learning_rate
from ttr_ref.time2vec import Time2VecParams, time2vec_backward, time2vec_forward, time2vec_init
from ttr_ref.time_head import MixtureParams, time_head_backward, time_head_forward
from ttr_ref.timeline import timeline_from_lengths
from ttr_ref.tree import named_leaves

LIMIT = 1e-12


def assert_close(ours: ndarray, theirs: torch.Tensor | ndarray) -> None:
    """Within LIMIT of the largest entry."""
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
    assert np.shape(ours) == theirs.shape
    assert share(ours, theirs, LIMIT * np.abs(theirs).max(initial=0.0)) <= 1


@pytest.mark.parametrize("blocked", [False, True])
@settings(max_examples=150)
@given(p=problems(dropout=False), tile=st.integers(1, 9))
def test_attention(blocked, p, tile):
    """scaled_dot_product_attention with every mask, bias, window and sharing of heads; gradients of q, k, v and of the bias's parameters."""
    if blocked:
        o, lse, cache = blocked_attention_forward(*p.arguments, tile=tile)
        grads = blocked_attention_backward(p.do, p.dlse, cache)
    else:
        o, lse, cache = attention_forward(*p.arguments)
        grads = attention_backward(p.do, p.dlse, cache)
    limits = attention_limits(p, attention_forward(*p.arguments)[2])
    q, k, v, bias = peer.leaves((p.q, p.k, p.v, p.bias))
    their_o, their_lse = peer.attention(q, k, v, p.at_q, p.at_k, bias, p.time, p.causal, p.window)
    total = (their_o * torch.tensor(p.do)).sum()
    if p.dlse is not None:
        total = total + (their_lse * torch.tensor(p.dlse)).sum()
    total.backward()
    assert share(o, their_o.detach().numpy(), 2 * limits.o) <= 1
    assert share(np.where(np.isinf(lse), 0, lse), their_lse.detach().numpy(), 2 * limits.lse) <= 1
    theirs = peer.gradients((q, k, v, bias))
    assert worst_share(grads[:3], theirs[:3], limits[2:5]) <= 1
    assert worst_share(grads[3], theirs[3], limits.dbias) <= 1


@settings(max_examples=50)
@given(seed=seeds, rows=st.integers(1, 9), features=st.integers(1, 40), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_rms_norm(seed, rows, features, scale):
    rng = np.random.default_rng(seed)
    x, dy, w = scale * rng.standard_normal((rows, features)), rng.standard_normal((rows, features)), rng.standard_normal(features)
    y, cache = rms_norm_forward(x, w, 1e-6)
    dx, dw = rms_norm_backward(dy, cache)
    their_x, their_w = peer.leaves((x, w))
    theirs = F.rms_norm(their_x, (features,), their_w, 1e-6)
    (theirs * torch.tensor(dy)).sum().backward()
    assert_close(y, theirs)
    size = np.abs(dy * w).max() / cache.r.min()  # dx is a difference of terms of this size; for one feature they nearly cancel
    assert share(dx, their_x.grad.numpy(), LIMIT * size) <= 1
    assert_close(dw, their_w.grad)


@settings(max_examples=50)
@given(seed=seeds, width=st.integers(1, 9), hidden=st.integers(1, 9), scale=st.sampled_from([0.1, 1.0, 20.0]))
def test_gelu_and_geglu(seed, width, hidden, scale):
    """For large negative x both 1 + tanh and 1 − tanh² cancel: the rounding is that of 1, times x in gelu and x³ in its derivative.

    Each x comes with its negative, so that every gate is open at one of them and the largest entries are not such remains.
    """
    rng = np.random.default_rng(seed)
    x, dy = scale * rng.standard_normal((2, 3, width)), rng.standard_normal((2, 6, width))
    x = np.concatenate([x, -x], 1)
    gate = torch.tensor(x, requires_grad=True)
    gelu = F.gelu(gate, approximate="tanh")
    (gelu * torch.tensor(dy)).sum().backward()
    assert share(gelu_forward(x), gelu.detach().numpy(), LIMIT * np.abs(x)) <= 1
    assert share(gelu_backward(dy, x), gate.grad.numpy(), LIMIT * np.abs(dy) * (1 + np.abs(x) ** 3)) <= 1
    params = FeedForwardGegluParams(rng.standard_normal((width, 2 * hidden)), rng.standard_normal((hidden, width)))
    y, cache = feed_forward_geglu_forward(x, params, BlockConfig(2, hidden, 1))
    dx, dparams = feed_forward_geglu_backward(dy, cache)
    their_x, their_params = peer.leaves((x, params))
    theirs = peer.geglu(their_x, their_params)
    (theirs * torch.tensor(dy)).sum().backward()
    for ours, other in ((y, theirs), (dx, their_x.grad), (dparams.w_in, their_params.w_in.grad), (dparams.w_out, their_params.w_out.grad)):
        assert_close(ours, other)


@settings(max_examples=50)
@given(seed=seeds, n=st.integers(1, 12), vocab=st.integers(2, 30), chunk=st.integers(1, 15), scale=st.sampled_from([0.1, 1.0, 10.0]))
def test_cross_entropy_with_z_loss(seed, n, vocab, chunk, scale):
    rng = np.random.default_rng(seed)
    x, w, targets = scale * rng.standard_normal((n, 6)), rng.standard_normal((6, vocab)), rng.integers(0, vocab, n)
    nats, lse, cache = cross_entropy_forward(x, w, targets, chunk)
    dx, dw = cross_entropy_backward(np.full(n, 1 / n), 0.02 * lse / n, cache)
    their_x, their_w = peer.leaves((x, w))
    logits = their_x @ their_w
    their_nats = F.cross_entropy(logits, torch.tensor(targets), reduction="none")
    their_lse = torch.logsumexp(logits, -1)
    (their_nats.mean() + 0.01 * their_lse.square().mean()).backward()
    assert share(nats, their_nats.detach().numpy(), LIMIT * np.abs(logits.detach().numpy()).max()) <= 1  # LSE less a logit: both of this size
    assert_close(lse, their_lse)
    assert_close(dx, their_x.grad)
    assert_close(dw, their_w.grad)


@settings(max_examples=50)
@given(seed=seeds, kind=st.sampled_from(ROPES), width=st.sampled_from([2, 4, 10]), places=st.integers(1, 9))
def test_rope(seed, kind, width, places):
    """Complex multiplication, also for the gradient of the frequencies."""
    rng = np.random.default_rng(seed)
    config = BlockConfig(width, 4, 1, rope=kind, time=TimeConfig(origin=NOW, unit=3600.0, shortest=60.0, span=1e6))
    at = timeline_from_lengths(rising_times(rng, 2, places, "unix"), rng.integers(0, places + 1, 2))
    x, dy = rng.standard_normal((2, 2, 3, places, width))
    omega = rope_init(config)
    y, cache = rope_forward(x, at, omega, config)
    dx, domega = rope_backward(dy, cache)
    their_x, their_omega = peer.leaves((x, omega))
    theirs = peer.rope(their_x, at, their_omega, config)
    (theirs * torch.tensor(dy)).sum().backward()
    assert_close(y, theirs)
    assert_close(dx, their_x.grad)
    if omega.size:  # a sum over all places and heads, each term of the size of τ
        assert share(domega, their_omega.grad.numpy(), LIMIT * (np.abs(cache.tau).max() * np.abs(dy * x).sum())) <= 1


@settings(max_examples=50)
@given(seed=seeds, features=st.integers(2, 12), tick=st.sampled_from([None, 1.0]))
def test_time2vec(seed, features, tick):
    rng = np.random.default_rng(seed)
    time = TimeConfig(origin=NOW, unit=3600.0, shortest=1800.0, span=1e6, tick_seconds=tick)
    at = timeline_from_lengths(rising_times(rng, 2, 5, "unix"), np.array([5, 3]))
    start = time2vec_init(features, time)
    params = Time2VecParams(start.omega, start.phi + rng.standard_normal(features))
    dy = rng.standard_normal((2, 5, features))
    y, cache = time2vec_forward(at, params, time)
    dparams = time2vec_backward(dy, cache)
    their_params = peer.leaves(params)
    theirs = peer.time2vec(at, their_params, time)
    (theirs * torch.tensor(dy)).sum().backward()
    assert_close(y, theirs)
    for ours, other in zip(dparams, their_params, strict=True):
        assert_close(ours, other.grad)


@settings(max_examples=50)
@given(seed=seeds, components=st.integers(1, 6), resolution=st.sampled_from([1e-3, 0.5]))
def test_time_head(seed, components, resolution):
    """MixtureSameFamily of LogNormal. The logarithm of the density is a sum of z²/2 and others; its rounding is relative to those."""
    rng = np.random.default_rng(seed)
    u, gap, dnats = rng.standard_normal((7, 4)), np.concatenate([[0.0, 1e-4], rng.exponential(3.0, 5)]), rng.standard_normal(7)
    params = MixtureParams(0.5 * rng.standard_normal((4, 3 * components)), rng.standard_normal(3 * components))
    nats, cache = time_head_forward(u, gap, params, resolution)
    du, dparams = time_head_backward(dnats, cache)
    their_u, their_params = peer.leaves((u, params))
    theirs = -peer.log_normal_mixture(their_u, torch.tensor(gap), their_params, resolution)
    (theirs * torch.tensor(dnats)).sum().backward()
    assert_close(nats, theirs)
    size = (np.abs(dnats)[:, None] * (1 + np.abs(cache.z) + cache.z**2) * (1 + 1 / cache.mixture.sigma)).sum()
    for ours, other in ((du, their_u), (dparams.w_mixture, their_params.w_mixture), (dparams.b_mixture, their_params.b_mixture)):
        assert share(ours, other.grad.numpy(), LIMIT * size) <= 1


@settings(max_examples=30)
@given(seed=seeds, schedule=st.sampled_from(["constant", "cosine", "wsd"]), data=st.data())
def test_adamw(seed, schedule, data):
    """Twenty steps of torch.optim.AdamW: two groups, one that decays, one with a tenth of the rate, both under the schedule."""
    rng = np.random.default_rng(seed)
    config = TrainConfig(
        steps=20, warmup=3, schedule=schedule, decay_steps=5, learning_rate=0.05, weight_decay=data.draw(st.sampled_from([0.0, 0.3])),
        beta1=data.draw(st.sampled_from([0.0, 0.9])), beta2=data.draw(st.sampled_from([0.5, 0.98])),
    )
    params = (rng.standard_normal((3, 4)), rng.standard_normal(5))
    state, theirs = adamw_init(params), [torch.tensor(a, requires_grad=True) for a in params]
    options = {"betas": (config.beta1, config.beta2), "eps": config.adam_eps}
    optimiser = torch.optim.AdamW(
        [{"params": [theirs[0]], "weight_decay": config.weight_decay}, {"params": [theirs[1]], "weight_decay": 0.0}], lr=1.0, **options
    )
    for step in range(config.steps):
        grads = tuple(rng.standard_normal(a.shape) for a in params)
        rate = learning_rate(step, config)
        params, state = adamw_step(params, grads, state, rate, (1.0, 0.0), (1.0, 0.1), config)
        for share_of_rate, group, tensor, g in zip((1.0, 0.1), optimiser.param_groups, theirs, grads, strict=True):
            group["lr"], tensor.grad = rate * share_of_rate, torch.tensor(g)
        optimiser.step()
        for ours, other in zip(params, theirs, strict=True):
            assert_close(ours, other)


@settings(max_examples=30)
@given(seed=seeds, largest=st.sampled_from([1.0, 1e20]))
def test_clipping(seed, largest):
    """PyTorch adds 1e-6 to the norm that it divides by, which does not show in gradients of 1e10."""
    rng = np.random.default_rng(seed)
    grads = (1e10 * rng.standard_normal((3, 4)), 1e10 * rng.standard_normal(5))
    clipped, norm = clip_by_global_norm(grads, largest)
    tensors = [torch.zeros(g.shape, dtype=torch.float64, requires_grad=True) for g in grads]
    for tensor, g in zip(tensors, grads, strict=True):
        tensor.grad = torch.tensor(g)
    assert share(norm, torch.nn.utils.clip_grad_norm_(tensors, largest).numpy(), LIMIT * norm) <= 1
    for ours, tensor in zip(clipped, tensors, strict=True):
        assert_close(ours, tensor.grad)


@settings(max_examples=120)
@given(data=st.data(), causal=st.booleans(), z_loss=st.sampled_from([0.0, 0.01]), weight=st.sampled_from([0.1, 1.0]), seed=seeds)
def test_the_whole_model(data, causal, z_loss, weight, seed):
    """The loss and every gradient, with all options but dropout: packed rows with padding, windows, shared heads, every bias, rope and order.

    Phases stay below 100, so that their own rounding, eps times as much, does not show. What is zero but for rounding is measured against the
    largest of all gradients.
    """
    config = data.draw(model_configs(causal=causal))
    config = replace(config, block=replace(config.block, time=replace(config.block.time, unit=600.0, shortest=3600.0)))
    rng = np.random.default_rng(seed)
    batch = random_batch(rng, config, packed(rng, 2, 8, "unix"))
    assume(batch.is_target.any())
    params = lively_model(config, seed)
    loss, _, cache = loss_forward(params, batch, config, z_loss=z_loss, time_weight=weight)
    grads = named_leaves(loss_backward(1.0, cache))
    tensors = peer.leaves(params)
    theirs = peer.loss(tensors, batch, config, z_loss, weight)
    theirs.backward()
    assert share(loss, theirs.detach().numpy(), LIMIT * abs(loss)) <= 1
    for name, other in named_leaves(peer.gradients(tensors)).items():
        assert share(grads[name], other, LIMIT * max(np.abs(a).max(initial=0.0) for a in grads.values())) <= 1, name
