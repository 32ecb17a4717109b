"""Dropout on the GPU: the oracle's masks bit for bit, its sums and roundings too."""

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from numpy import ndarray

from tests.cpu.storages import STORAGES, empty, stored, values
from tests.cuda.schedules import in_every_schedule
from ttr_fast.cuda import dropout as gpu
from ttr_fast.cuda.jit import cuda, kernel
from ttr_fast.cuda.philox import philox4x32 as device_philox4x32
from ttr_ref.dropout import Dropout, DropoutKey, dropout_backward, dropout_forward, head_dropout_forward
from ttr_ref.float_dtype import FloatDType, round_to_storage
from ttr_ref.philox import philox4x32
from ttr_ref.timeline import Timeline

WORD = st.integers(0, 2**32 - 1)
DROPS = st.builds(Dropout, st.floats(0.001, 0.99), st.builds(DropoutKey, WORD, WORD), st.integers(0, 1000))


def places(n: int, rng: np.random.Generator) -> Timeline:
    """Padding (document −1) and queries before the first key (negative positions) among them."""
    return Timeline(rng.integers(-1, 2**33, (1, n)), rng.integers(-5, 2**20, (1, n)), np.zeros((1, n)))


@kernel("uint64[:, ::1], uint64[:, ::1]", registers=48, threads=32)
def words(counters, found):
    i = cuda.threadIdx.x
    c = counters[i]
    found[i, 0], found[i, 1], found[i, 2], found[i, 3] = device_philox4x32(c[0], c[1], c[2], c[3], c[4], c[5])


def test_the_generator() -> None:
    """The known answers of Salmon et al. and the oracle's words, counters and keys at the ends of their range among them."""
    rng = np.random.default_rng(0)
    counters = rng.integers(0, 2**32, (32, 6)).astype(np.uint64)
    counters[0], counters[1] = 0, 2**32 - 1
    found = np.zeros((32, 4), np.uint64)
    words[1, 32](counters, found)
    assert [hex(x) for x in found[0]] == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]
    assert [hex(x) for x in found[1]] == ["0x408f276d", "0x41c83b0e", "0xa20bc7c6", "0x6d5451fd"]
    for c, drawn in zip(counters, found, strict=True):
        np.testing.assert_array_equal(drawn, philox4x32(tuple(np.array(x) for x in c[:4]), (int(c[4]), int(c[5]))))


@pytest.mark.parametrize("dtype", STORAGES)
@settings(max_examples=6)
@example(n=9, half=40, drops=[Dropout(0.1, DropoutKey(1, 2), 1), Dropout(0.3, DropoutKey(1, 2), 3)], seed=0)
@given(n=st.integers(0, 6), half=st.integers(1, 30), drops=st.lists(st.none() | DROPS, max_size=2), seed=WORD)
def test_equals_the_oracle_bit_for_bit(dtype: FloatDType, n: int, half: int, drops: list[Dropout | None], seed: int) -> None:
    """The oracle in the type of arithmetic does the same operations in the same order."""
    rng = np.random.default_rng(seed)
    at = places(n, rng)
    x, residual = (stored(a, dtype) for a in rng.standard_normal((2, n, 2 * half)))
    y, dx = empty(x.shape, dtype), empty(x.shape, dtype)
    sites, where = gpu.sites_of(drops, dtype.compute), (at.position[0], at.document[0])

    def run() -> tuple[ndarray, ndarray]:
        gpu.dropout_forward(x, residual, sites, *where, y)
        gpu.dropout_backward(x, gpu.backward_order(sites), *where, dx)
        return y.copy(), dx.copy()

    in_every_schedule(run)

    expected = values(x)[None].astype(dtype.compute)
    dx_ref = expected
    for drop in drops:
        expected = dropout_forward(expected, drop, at)
    for drop in reversed(drops):
        dx_ref = dropout_backward(dx_ref, drop, at)
    np.testing.assert_array_equal(values(y), round_to_storage(values(residual).astype(dtype.compute) + expected[0], dtype))
    np.testing.assert_array_equal(values(dx), round_to_storage(dx_ref[0], dtype))


@settings(max_examples=10)
@given(n=st.integers(1, 9), heads=st.integers(1, 9), drop=st.none() | DROPS, seed=WORD)
def test_whole_heads(n: int, heads: int, drop: Dropout | None, seed: int) -> None:
    at = places(n, np.random.default_rng(seed))
    y = np.full((n, heads), np.nan, np.float32)
    gpu.head_dropout_factors(at.document[0], gpu.sites_of([drop], y.dtype), y)
    np.testing.assert_array_equal(y, head_dropout_forward(np.ones((1, heads, n, 1), np.float32), drop, at)[0, :, :, 0].T)


def test_a_float32_branch_on_a_residual_in_storage() -> None:
    """In place; a row alone has the bits it has among others."""
    rng = np.random.default_rng(0)
    at, dtype = places(9, rng), FloatDType.BF16
    x, residual = rng.standard_normal((9, 70)).astype(np.float32), stored(rng.standard_normal((9, 70)), dtype)
    sites = gpu.sites_of([Dropout(0.1, DropoutKey(1, 2), 1), Dropout(0.5, DropoutKey(1, 2), 3)], dtype.compute)

    def run(rows: slice = slice(None)) -> tuple[ndarray]:
        y = residual[rows].copy()
        gpu.dropout_forward(x[rows], y, sites, at.position[0, rows], at.document[0, rows], y)
        return (y,)

    (y,) = in_every_schedule(run)
    assert run(slice(3, 4))[0].tobytes() == y[3].tobytes()


def test_three_sites_are_one_too_many() -> None:
    sites = gpu.sites_of([Dropout(0.5, DropoutKey(0, 0), site) for site in range(3)], np.dtype(np.float32))
    with pytest.raises(ValueError, match="at most two sites follow each other, got 3"):
        gpu.dropout_forward(None, None, sites, None, None, None)


def test_a_probability_next_to_one_drops_everything() -> None:
    """Its threshold is 2³², which no word of 32 bits reaches."""
    x, y, at = np.ones((3, 10), np.float32), np.ones((3, 10), np.float32), np.arange(3)
    gpu.dropout_forward(x, None, gpu.sites_of([Dropout(1 - 2.0**-40, DropoutKey(1, 2), 0)], x.dtype), at, at, y)
    assert not y.any()
