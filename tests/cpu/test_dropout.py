"""Dropout on the CPU: the oracle's masks bit for bit, its sums and roundings too."""

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from numpy import ndarray

from tests.cpu.storages import STORAGES, assert_same_for_any_threads, empty, stored, values
from ttr_fast.cpu import dropout as cpu
from ttr_ref.dropout import Dropout, DropoutKey, dropout_backward, dropout_forward, head_dropout_forward
from ttr_ref.float_dtype import FloatDType, round_to_storage
from ttr_ref.philox import philox4x32
from ttr_ref.timeline import Timeline

WORD = st.integers(0, 2**32 - 1)
DROPS = st.builds(Dropout, st.floats(0.001, 0.99), st.builds(DropoutKey, WORD, WORD), st.integers(0, 1000))


def places(n: int, rng: np.random.Generator) -> Timeline:
    """Padding (document −1) and queries before the first key (negative positions) among them."""
    return Timeline(rng.integers(-1, 2**33, (1, n)), rng.integers(-5, 2**20, (1, n)), np.zeros((1, n)))


@given(counter=st.tuples(WORD, WORD, WORD, WORD), key=st.tuples(WORD, WORD))
def test_the_generator_one_word_at_a_time(counter: tuple[int, ...], key: tuple[int, int]) -> None:
    expected = philox4x32(tuple(np.array(c) for c in counter), key)
    assert cpu.philox4x32(*(np.uint64(c) for c in (*counter, *key))) == tuple(expected.tolist())


@pytest.mark.parametrize("dtype", STORAGES)
@settings(max_examples=30)
@example(n=9, half=40, drops=[Dropout(0.1, DropoutKey(1, 2), 1), Dropout(0.3, DropoutKey(1, 2), 3)], seed=0)
@given(n=st.integers(0, 20), half=st.integers(1, 90), drops=st.lists(st.none() | DROPS, max_size=2), seed=WORD)
def test_equals_the_oracle_bit_for_bit(dtype: FloatDType, n: int, half: int, drops: list[Dropout | None], seed: int) -> None:
    """The oracle in the type of arithmetic does the same operations in the same order."""
    rng = np.random.default_rng(seed)
    at = places(n, rng)
    x, residual = (stored(a, dtype) for a in rng.standard_normal((2, n, 2 * half)))
    y, dx = empty(x.shape, dtype), empty(x.shape, dtype)
    sites, where = cpu.sites_of(drops, dtype.compute), (at.position[0], at.document[0])
    cpu.dropout_forward(x, residual, sites, *where, y)
    cpu.dropout_backward(x, sites, *where, dx)

    expected = values(x)[None].astype(dtype.compute)
    dx_ref = expected
    for drop in drops:
        expected = dropout_forward(expected, drop, at)
    for drop in reversed(drops):
        dx_ref = dropout_backward(dx_ref, drop, at)
    np.testing.assert_array_equal(values(y), round_to_storage(values(residual).astype(dtype.compute) + expected[0], dtype))
    np.testing.assert_array_equal(values(dx), round_to_storage(dx_ref[0], dtype))


@settings(max_examples=30)
@given(n=st.integers(1, 9), heads=st.integers(1, 9), drop=st.none() | DROPS, seed=WORD)
def test_whole_heads(n: int, heads: int, drop: Dropout | None, seed: int) -> None:
    at = places(n, np.random.default_rng(seed))
    y = np.full((n, heads), np.nan, np.float32)
    cpu.head_dropout_factors(at.document[0], cpu.sites_of([drop], y.dtype), y)
    np.testing.assert_array_equal(y, head_dropout_forward(np.ones((1, heads, n, 1), np.float32), drop, at)[0, :, :, 0].T)


def test_bits_depend_on_the_row_alone() -> None:
    """One thread and two; a row alone; in place; an f32 branch on a bf16 residual."""
    rng = np.random.default_rng(0)
    at, dtype = places(90, rng), FloatDType.BF16
    x, residual = rng.standard_normal((90, 70)).astype(np.float32), stored(rng.standard_normal((90, 70)), dtype)
    key = DropoutKey(1, 2)
    sites = cpu.sites_of([Dropout(0.1, key, 1), Dropout(0.5, key, 3)], dtype.compute)

    def run(rows: slice = slice(None)) -> tuple[ndarray]:
        y = residual[rows].copy()
        cpu.dropout_forward(x[rows], y, sites, at.position[0, rows], at.document[0, rows], y)
        return (y,)

    (y,) = assert_same_for_any_threads(run)
    assert run(slice(33, 34))[0].tobytes() == y[33].tobytes()


def test_three_sites_are_one_too_many() -> None:
    sites = cpu.sites_of([Dropout(0.5, DropoutKey(0, 0), site) for site in range(3)], np.dtype(np.float32))
    with pytest.raises(ValueError, match="at most two sites follow each other, got 3"):
        cpu.dropout_forward(None, None, sites, None, None, None)


def test_a_probability_next_to_one_drops_everything() -> None:
    """Its threshold is 2³², which no word of 32 bits reaches."""
    x, y, at = np.ones((3, 10), np.float32), np.ones((3, 10), np.float32), np.arange(3)
    cpu.dropout_forward(x, None, cpu.sites_of([Dropout(1 - 2.0**-40, DropoutKey(1, 2), 0)], x.dtype), at, at, y)
    assert not y.any()
