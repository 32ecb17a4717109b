"""Cross-entropy on the GPU against the oracle."""

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from numpy import ndarray

from tests.cpu.storages import STORAGES, empty, eps_of, limit, values
from tests.cuda.schedules import in_every_schedule
from tests.ref.bounds import share
from ttr_fast.cuda import cross_entropy as gpu
from ttr_fast.cuda.rows import THREADS
from ttr_ref.cross_entropy import cross_entropy_backward, cross_entropy_forward
from ttr_ref.float_dtype import FloatDType


@pytest.mark.parametrize("dtype", STORAGES)
@settings(max_examples=4)
@given(n=st.integers(1, 4), v=st.integers(1, 150), scale=st.sampled_from([0.1, 3.0, 30.0]), seed=st.integers(0, 2**32 - 1))
@example(n=2, v=2 * THREADS + 1, scale=3.0, seed=0)
def test_equals_the_oracle(dtype: FloatDType, n: int, v: int, scale: float, seed: int) -> None:
    """x − max is off by half an eps of itself and its exponential by one more; a sum of V terms rounds V/threads times, and log₂ threads times in
    the tree, by half an eps each; the logarithm by one of itself. LSE is top + ln Σ, rounded once, and nats are the sum of two positive terms.
    Backward's exponents take LSE's own error.
    """
    rng, eps = np.random.default_rng(seed), eps_of(dtype)
    logits, targets = (scale * rng.standard_normal((n, v))).astype(dtype.compute), rng.integers(0, v, n)
    dnats, dlse = rng.standard_normal((2, n)).astype(dtype.compute)

    def run() -> tuple[ndarray, ...]:
        nats, lse = np.full((2, n), np.nan, dtype.compute)
        dlogits, in_place = empty((n, v), dtype), logits.copy()
        gpu.cross_entropy_forward(logits, targets, nats, lse)
        gpu.cross_entropy_backward(dnats, dlse, targets, lse, logits, dlogits)
        gpu.cross_entropy_backward(dnats, dlse, targets, lse, in_place, in_place)
        return nats, lse, dlogits, in_place

    nats, lse, dlogits, in_place = in_every_schedule(run)
    x = logits.astype(np.float64)
    nats_ref, lse_ref, cache = cross_entropy_forward(x, np.eye(v), targets, 1024)
    p, top = np.exp(x - lse_ref[:, None]), x.max(-1)
    moved = ((p * (top[:, None] - x)).sum(-1) / 2 + 1 + (v / THREADS + 8) / 2 + (lse_ref - top)) * eps
    assert share(lse, lse_ref, moved + eps / 2 * np.abs(lse_ref)) <= 1
    below = top - x[np.arange(n), targets]
    assert share(nats, nats_ref, moved + eps / 2 * (below + nats_ref) + np.finfo(np.float64).eps * np.abs(lse_ref)) <= 1

    expected = cross_entropy_backward(dnats.astype(np.float64), dlse.astype(np.float64), cache)[0]
    relative = (moved + eps / 2 * np.abs(lse_ref))[:, None] + (np.abs(x - lse_ref[:, None]) / 2 + 3) * eps
    both, own = (np.abs(dnats) + np.abs(dlse)).astype(np.float64), np.zeros((n, v))
    own[np.arange(n), targets] = np.abs(dnats)
    error = p * both[:, None] * relative + eps * own + float(np.finfo(dtype.compute).tiny) * both[:, None]
    assert share(values(dlogits), expected, limit(expected, error, dtype)) <= 1
    assert share(in_place, expected, error) <= 1


@pytest.mark.parametrize("place", [0, THREADS // 4, THREADS // 2, THREADS - 1, THREADS, THREADS + 10])
def test_one_logit_far_above_all(place: int) -> None:
    """Whoever reads it: e^200 is no float32, so the largest has to be found."""
    logits = np.zeros((1, THREADS + 11), np.float32)
    logits[0, place] = 200
    nats, lse = np.empty((2, 1), np.float32)
    gpu.cross_entropy_forward(logits, np.zeros(1, np.int64), nats, lse)
    assert lse == 200
    assert nats == 200 - logits[0, 0]


def test_not_a_number_stays_in_its_row() -> None:
    logits = np.zeros((3, 5), np.float32)
    logits[1, 3] = np.nan
    nats, lse = np.empty((2, 3), np.float32)
    gpu.cross_entropy_forward(logits, np.zeros(3, np.int64), nats, lse)
    assert np.isnan(nats).tolist() == np.isnan(lse).tolist() == [False, True, False]
