"""AdamW on the CPU: the oracle's bits, and its norm."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy import ndarray

from tests.cpu.storages import STORAGES, assert_same_for_any_threads, empty, values
from tests.ref.bounds import EPS, share
from ttr_fast.cpu import adamw as cpu
from ttr_ref.adamw import AdamWState, adamw_step, global_norm
from ttr_ref.config import TrainConfig
from ttr_ref.float_dtype import FloatDType, round_to_storage

CONFIG = TrainConfig()


@pytest.mark.parametrize("dtype", STORAGES)
@settings(max_examples=20)
@given(
    size=st.integers(0, 9000), steps=st.integers(0, 10**5), clip=st.floats(1e-3, 1), scale=st.sampled_from([1.0, 2.0**16]),
    leaf=st.sampled_from([(1.0, 1.0), (0.0, 0.01)]), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_equals_the_oracle_bit_for_bit(
    dtype: FloatDType, size: int, steps: int, clip: float, scale: float, leaf: tuple[float, float], seed: int
) -> None:
    """In the type of the master weights, clipping and a power of two being exactly one factor; the copy is the new weights, rounded once."""
    rng, (decay, rho) = np.random.default_rng(seed), leaf
    theta, m, g = rng.standard_normal((3, size)).astype(dtype.compute)
    v = rng.random(size).astype(dtype.compute)
    new = [a.copy() for a in (theta, m, v)]
    copy = empty((size,), dtype)
    cpu.adamw_step(*new, g, copy, cpu.step_numbers(steps + 1, 3e-3, rho, decay, clip / scale, CONFIG))
    scaled = g / g.dtype.type(scale) * g.dtype.type(clip)
    expected, state = adamw_step(theta, scaled, AdamWState(m, v, steps), 3e-3, decay, rho, CONFIG)
    for actual, reference in zip(new, (expected, state.m, state.v), strict=True):
        np.testing.assert_array_equal(actual, reference)
    np.testing.assert_array_equal(values(copy), round_to_storage(expected, dtype))


def test_no_copy_and_any_shape() -> None:
    rng = np.random.default_rng(0)
    theta, m, g = rng.standard_normal((3, 90, 111)).astype(np.float32)
    numbers = cpu.step_numbers(3, 1e-3, 1.0, 1.0, 1.0, CONFIG)

    def run() -> tuple[ndarray, ...]:
        new = theta.copy(), m.copy(), np.abs(m)
        cpu.adamw_step(*new, g, None, numbers)
        return new

    whole = assert_same_for_any_threads(run)
    copied = theta.copy(), m.copy(), np.abs(m)
    cpu.adamw_step(*copied, g, np.empty_like(g), numbers)
    for a, b in zip(whole, copied, strict=True):
        assert a.tobytes() == b.tobytes()


@given(sizes=st.lists(st.integers(0, 10**4), max_size=3), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_global_norm(sizes: list[int], seed: int) -> None:
    """A sum of positive terms, half an eps each on either side, half of that in its root."""
    rng = np.random.default_rng(seed)
    grads = [rng.standard_normal(size).astype(kind) for size, kind in zip(sizes, [np.float32, np.float64, np.float32], strict=False)]
    partial = np.full(cpu.blocks_of(max(sizes, default=0)), np.nan)
    ((norm,),) = assert_same_for_any_threads(lambda: (np.array([cpu.global_norm(grads, partial)]),))
    expected = global_norm(tuple(grads))
    assert share(norm, expected, (sum(sizes) / 2 + 2) * EPS * expected) <= 1
    for bad in (np.nan, np.inf):
        for g in grads[:1]:
            g[-1:] = bad
            assert not np.isfinite(cpu.global_norm(grads, partial)) or g.size == 0
