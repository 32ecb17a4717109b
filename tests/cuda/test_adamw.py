"""AdamW on the GPU: the oracle's bits, and its norm."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy import ndarray

from tests.cpu.storages import STORAGES, empty, values
from tests.cuda.schedules import in_every_schedule
from tests.ref.bounds import EPS, share
from ttr_fast.cuda import adamw as gpu
from ttr_ref.adamw import AdamWState, adamw_step, global_norm
from ttr_ref.config import TrainConfig
from ttr_ref.float_dtype import FloatDType, round_to_storage

CONFIG = TrainConfig()


@pytest.mark.parametrize("dtype", STORAGES)
@settings(max_examples=6)
@given(
    size=st.integers(0, 300), steps=st.integers(0, 10**5), clip=st.floats(1e-3, 1), scale=st.sampled_from([1.0, 2.0**16]),
    leaf=st.sampled_from([(1.0, 1.0), (0.0, 0.01)]), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_equals_the_oracle_bit_for_bit(
    dtype: FloatDType, size: int, steps: int, clip: float, scale: float, leaf: tuple[float, float], seed: int
) -> None:
    """In the type of the master weights, clipping and a power of two being exactly one factor; the copy is the new weights, rounded once."""
    rng, (decay, rho) = np.random.default_rng(seed), leaf
    theta, m, g = rng.standard_normal((3, size)).astype(dtype.compute)
    v = rng.random(size).astype(dtype.compute)

    def run() -> tuple[ndarray, ...]:
        new, copy = [a.copy() for a in (theta, m, v)], empty((size,), dtype)
        gpu.adamw_step(*new, g, copy, gpu.step_numbers(steps + 1, 3e-3, rho, decay, CONFIG), np.array([1.0, clip / scale]))
        return *new, copy

    *new, copy = in_every_schedule(run)
    scaled = g / g.dtype.type(scale) * g.dtype.type(clip)
    expected, state = adamw_step(theta, scaled, AdamWState(m, v, steps), 3e-3, decay, rho, CONFIG)
    for actual, reference in zip(new, (expected, state.m, state.v), strict=True):
        np.testing.assert_array_equal(actual, reference)
    np.testing.assert_array_equal(values(copy), round_to_storage(expected, dtype))


@pytest.mark.parametrize("norm", [np.inf, np.nan])
def test_nothing_moves_where_a_gradient_overflowed(norm: float) -> None:
    theta, m, v = np.ones((3, 9), np.float32)
    gpu.adamw_step(theta, m, v, np.ones(9, np.float32), theta, gpu.step_numbers(1, 3e-3, 1.0, 1.0, CONFIG), np.array([norm, 1.0]))
    assert (theta == 1).all()
    assert (m == 1).all()
    assert (v == 1).all()


@given(
    sizes=st.lists(st.sampled_from([0, 1, 100, gpu.BLOCK + 3]), max_size=3), scale=st.sampled_from([1.0, 2.0**16]),
    largest=st.sampled_from([1e-3, 1e9]), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=6)
def test_global_norm(sizes: list[int], scale: float, largest: float, seed: int) -> None:
    """A sum of positive terms, half an eps each on either side, half of that in its root."""
    rng = np.random.default_rng(seed)
    grads = [rng.standard_normal(size).astype(kind) for size, kind in zip(sizes, [np.float32, np.float64, np.float32], strict=False)]
    partial = np.full(sum(map(gpu.blocks_of, sizes)), np.nan)

    def run() -> tuple[ndarray]:
        clip = np.full(2, np.nan)
        gpu.global_norm(grads, scale, largest, partial, clip)
        return (clip,)

    ((norm, factor),) = in_every_schedule(run)
    expected = global_norm(tuple(grads)) / scale
    assert share(norm, expected, (sum(sizes) / 2 + 2) * EPS * expected) <= 1
    assert factor == (largest / norm if norm > largest else 1.0) / scale
    for bad in (np.nan, np.inf):
        for g in grads[:1]:
            g[-1:] = bad
            ((norm, _),) = (run()[0],)
            assert not np.isfinite(norm) or g.size == 0
