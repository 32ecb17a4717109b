"""Cross-entropy in chunks: against the definition, for any chunk, and for logits of any size."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tests.ref.bounds import EPS, share
from tests.ref.cases import seeds
from ttr_ref.cross_entropy import cross_entropy_backward, cross_entropy_forward, standings


@settings(max_examples=100)
@given(
    n=st.integers(0, 12), vocab=st.integers(1, 9), features=st.integers(1, 6), chunk=st.integers(1, 20),
    scale=st.sampled_from([0.0, 1.0, 1e3]), seed=seeds,
)
def test_any_chunk(n, vocab, features, chunk, scale, seed):
    """Against all logits at once: an error ε of the logits, E products each, is one of 2ε in the probabilities."""
    rng = np.random.default_rng(seed)
    x, w = scale * rng.standard_normal((n, features)), rng.standard_normal((features, vocab))
    targets, dnats, dlse = rng.integers(0, vocab, n), rng.standard_normal(n), rng.standard_normal(n)
    nats, lse, cache = cross_entropy_forward(x, w, targets, chunk)
    dx, dw = cross_entropy_backward(dnats, dlse, cache)
    logits, size = x @ w, np.abs(x) @ np.abs(w)
    top = logits.max(-1, keepdims=True)
    total = np.exp(logits - top).sum(-1)
    error = (features + 3) * EPS * size.max(-1, initial=0) + (vocab + 4) * EPS
    assert share(lse, top[:, 0] + np.log(total), error) <= 1
    assert share(nats, top[:, 0] + np.log(total) - logits[np.arange(n), targets], 2 * error) <= 1
    p = np.exp(logits - top) / total[:, None]
    onehot = np.eye(vocab)[targets]
    dlogits = (dnats + dlse)[:, None] * p - dnats[:, None] * onehot
    dlogits_size = np.abs(dnats + dlse)[:, None] * p + np.abs(dnats)[:, None] * onehot
    relative = 2 * error[:, None] + (vocab + n + 4) * EPS
    assert share(dx, dlogits @ w.T, (relative * dlogits_size) @ np.abs(w).T) <= 1
    assert share(dw, x.T @ dlogits, np.abs(x).T @ (relative * dlogits_size)) <= 1


@pytest.mark.parametrize("common", [0.0, 1e5, -1e5, 1e300])
def test_huge_logits(common):
    """One-hot logits ±1e5 on a common offset: right answers cost nothing, wrong ones 2e5, and every gradient is finite."""
    x = np.array([[1.0, 1.0], [-1.0, 1.0]])
    w = np.array([[1e5, -1e5, -1e5], [common] * 3])
    nats, lse, cache = cross_entropy_forward(x, w, np.array([0, 0]), 1)
    if abs(common) < 1e300:
        size = 2 * EPS * (3e5 + abs(common))  # two roundings of numbers of this size
        assert share(nats, [0.0, 2e5 + np.log(2)], size) <= 1
        assert share(lse, [1e5 + common, 1e5 + common + np.log(2)], size) <= 1
    dx, dw = cross_entropy_backward(np.ones(2), np.ones(2), cache)
    assert all(np.isfinite(a).all() for a in (nats, lse, dx, dw))


def test_states_without_targets():
    """No states: nothing to add, and gradients of zero."""
    nats, lse, cache = cross_entropy_forward(np.zeros((0, 3)), np.ones((3, 4)), np.zeros(0, int), 5)
    dx, dw = cross_entropy_backward(nats, lse, cache)
    assert (nats.shape, dx.shape, dw.any()) == ((0,), (0, 3), False)


@given(logits=st.lists(st.lists(st.integers(-2, 2), min_size=4, max_size=4), min_size=1, max_size=7), chunk=st.integers(1, 8), seed=seeds)
def test_standing_by_sorting(logits, chunk, seed):
    """The likeliest first, equal ones in the order of their ids, for any chunk; whole numbers are exact."""
    targets = np.random.default_rng(seed).integers(0, 4, len(logits))
    _, lse, cache = cross_entropy_forward(np.array(logits, float), np.eye(4), targets, chunk)
    standing = standings(cache)
    expected = [1 + sorted(range(4), key=lambda v, row=row: (-row[v], v)).index(target) for row, target in zip(logits, targets, strict=True)]
    assert standing.rank.tolist() == expected
    assert standing.top_nats.tolist() == (lse - [max(row) for row in logits]).tolist()
