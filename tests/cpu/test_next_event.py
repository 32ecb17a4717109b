"""Nats of tokens on the CPU, chunk by chunk, against the oracle."""

import numpy as np
import pytest

from tests.ref.bounds import EPS, share
from ttr_fast.cpu.next_event import Weights, token_nats
from ttr_fast.cpu.workspace import Workspace
from ttr_ref.cross_entropy import cross_entropy_backward, cross_entropy_forward


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [3, 100])
def test_token_nats_and_gradients(tied: bool, chunk: int) -> None:
    """Logits are sums of E products, LSE a sum of V; a gradient's terms are off by as much, twice, and summed over N. Added to what is there."""
    rng, (n, e, v) = np.random.default_rng(0), (17, 10, 37)
    states, w, tokens = rng.standard_normal((n, e)), rng.standard_normal((e, v)), rng.integers(0, v, n)
    vocabulary = np.ascontiguousarray(w.T) if tied else w
    dstates, dvocabulary, weights = np.full((n, e), np.nan), rng.standard_normal(vocabulary.shape), Weights(0.3, 0.0, 0.05)
    before = dvocabulary.copy()
    nats, lse = token_nats(states, vocabulary, tied, tokens, chunk, weights, dstates, dvocabulary, Workspace())
    nats_ref, lse_ref, cache = cross_entropy_forward(states, w, tokens, chunk)
    dstates_ref, dw = cross_entropy_backward(np.full(n, 0.3), 2 * 0.05 * lse_ref, cache)
    error = (2 * e + v) * EPS * (np.abs(states) @ np.abs(w)).max()
    assert share(nats, nats_ref, error) <= 1
    assert share(lse, lse_ref, error) <= 1
    assert share(dstates, dstates_ref, 2 * error * np.abs(w).sum(1).max()) <= 1
    assert share(dvocabulary - before, dw.T if tied else dw, 2 * (error + n * EPS) * np.abs(states).sum(0).max()) <= 1
