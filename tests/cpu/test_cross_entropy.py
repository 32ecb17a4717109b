"""Cross-entropy on the CPU against the oracle, and what holds bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy import ndarray

from tests.cpu.storages import STORAGES, assert_same_for_any_threads, empty, eps_of, limit, values
from tests.ref.bounds import share
from ttr_fast.cpu import cross_entropy as cpu
from ttr_ref.cross_entropy import cross_entropy_backward, cross_entropy_forward
from ttr_ref.float_dtype import FloatDType


def forward(logits: ndarray, targets: ndarray) -> tuple[ndarray, ndarray]:
    nats, lse = np.full((2, targets.size), np.nan, logits.dtype)
    cpu.cross_entropy_forward(logits, targets, nats, lse)
    return nats, lse


@pytest.mark.parametrize("dtype", STORAGES)
@settings(max_examples=30)
@given(n=st.integers(1, 9), v=st.integers(1, 150), scale=st.sampled_from([0.1, 3.0, 30.0]), seed=st.integers(0, 2**32 - 1))
def test_equals_the_oracle(dtype: FloatDType, n: int, v: int, scale: float, seed: int) -> None:
    """x − max is off by half an eps of itself, times log₂ e by another and by its own rounding, so each exponential by a share of 1.5 |x − max| eps
    and 2 eps; the sum by V/lanes + 4 roundings. What that does to LSE is its mean under the softmax. Backward's exponents take LSE's own error.
    """
    rng, eps = np.random.default_rng(seed), eps_of(dtype)
    logits, targets = (scale * rng.standard_normal((n, v))).astype(dtype.compute), rng.integers(0, v, n)
    dnats, dlse = rng.standard_normal((2, n)).astype(dtype.compute)
    nats, lse = forward(logits, targets)
    x = logits.astype(np.float64)
    nats_ref, lse_ref, cache = cross_entropy_forward(x, np.eye(v), targets, 1024)
    p = np.exp(x - lse_ref[:, None])
    below = x.max(-1, keepdims=True) - x
    moved = (p * 1.5 * below).sum(-1) * eps + (v / 16 + 6) * eps
    assert share(lse, lse_ref, moved + eps * np.abs(lse_ref)) <= 1
    assert share(nats, nats_ref, moved + eps * (np.abs(nats_ref) + np.abs(lse_ref) * np.finfo(np.float64).eps / eps)) <= 1

    expected = cross_entropy_backward(dnats.astype(np.float64), dlse.astype(np.float64), cache)[0]
    relative = (moved + eps * np.abs(lse_ref))[:, None] + (1.5 * np.abs(x - lse_ref[:, None]) + 3) * eps
    both, own = (np.abs(dnats) + np.abs(dlse)).astype(np.float64), np.zeros((n, v))
    own[np.arange(n), targets] = np.abs(dnats)
    error = p * both[:, None] * relative + eps * own + float(np.finfo(dtype.compute).tiny) * both[:, None]
    dlogits = empty((n, v), dtype)
    cpu.cross_entropy_backward(dnats, dlse, targets, lse, logits, dlogits)
    assert share(values(dlogits), expected, limit(expected, error, dtype)) <= 1


def test_bits_depend_on_the_row_alone() -> None:
    """One thread and two; a row alone; in place."""
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((40, 77)).astype(np.float32), rng.integers(0, 77, 40)
    dnats, dlse = rng.standard_normal((2, 40)).astype(np.float32)

    def run(rows: slice = slice(None)) -> tuple[ndarray, ndarray, ndarray]:
        x = logits[rows].copy()
        nats, lse = forward(x, targets[rows])
        cpu.cross_entropy_backward(dnats[rows], dlse[rows], targets[rows], lse, x, x)
        return nats, lse, x

    whole = assert_same_for_any_threads(run)
    for a, b in zip(run(slice(17, 18)), whole, strict=True):
        assert a.tobytes() == b[17:18].tobytes()
