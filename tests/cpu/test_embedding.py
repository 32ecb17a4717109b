"""Token embedding on the CPU against the oracle, and what holds bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy import ndarray

from tests.cpu.storages import STORAGES, assert_same_for_any_threads, empty, eps_of, limit, stored, values
from tests.ref.bounds import share
from ttr_fast.cpu import embedding as cpu
from ttr_ref.embedding import embedding_backward, embedding_forward
from ttr_ref.float_dtype import FloatDType
from ttr_ref.timeline import Timeline


def backward(dx: ndarray, tokens: ndarray, document: ndarray, onto: ndarray | None, vocabulary: int, dtype: FloatDType) -> ndarray:
    dtable = np.full((vocabulary, dx.shape[1]), np.nan, dtype.compute) if onto is None else onto.copy()
    start, order = np.full(vocabulary + 1, -7), np.full(tokens.size, -7)
    cpu.embedding_backward(dx, tokens, document, onto is not None, dtable, start, order)
    return dtable


@pytest.mark.parametrize("dtype", STORAGES)
@settings(max_examples=30)
@given(n=st.integers(0, 300), half=st.integers(1, 40), vocabulary=st.integers(1, 200), seed=st.integers(0, 2**32 - 1))
def test_equals_the_oracle(dtype: FloatDType, n: int, half: int, vocabulary: int, seed: int) -> None:
    """One product with a rounded √E; a sum of as many terms as a token occurs, half an eps each. Padding holds NaN and no token."""
    rng, e, eps = np.random.default_rng(seed), 2 * half, eps_of(dtype)
    document, tokens = rng.integers(-1, 3, n), rng.integers(0, vocabulary, n) ** 2 // vocabulary
    padding = document == -1
    tokens[padding] = 2**40
    dx, table, onto = rng.standard_normal((n, e)), stored(rng.standard_normal((vocabulary, e)), dtype), rng.standard_normal((vocabulary, e))
    dx[padding] = np.nan
    dx, onto = stored(dx, dtype), onto.astype(dtype.compute)
    at = Timeline(document[None], np.zeros((1, n), int), np.zeros((1, n)))

    x = empty((n, e), dtype)
    cpu.embedding_forward(tokens, table, document, x)
    expected = embedding_forward(tokens[None], values(table), at)[0]
    assert share(values(x), expected, limit(expected, eps * np.abs(expected), dtype)) <= 1

    expected = embedding_backward(values(dx)[None], tokens[None], np.zeros((vocabulary, e)), at)
    size = embedding_backward(np.abs(values(dx))[None], tokens[None], np.zeros((vocabulary, e)), at)
    most = np.bincount(tokens[~padding], minlength=1).max(initial=0)
    dtable = backward(dx, tokens, document, None, vocabulary, dtype)
    assert share(dtable, expected, (most / 2 + 2) * eps * size) <= 1
    more = backward(dx, tokens, document, onto, vocabulary, dtype)
    np.testing.assert_array_equal(more, onto + dtable)


def test_bits_for_any_threads() -> None:
    rng, dtype = np.random.default_rng(0), FloatDType.BF16
    tokens, document, dx = rng.integers(0, 5, 500), np.zeros(500, int), stored(rng.standard_normal((500, 18)), dtype)
    (dtable,) = assert_same_for_any_threads(lambda: (backward(dx, tokens, document, None, 7, dtype),))
    in_order = np.zeros(18, np.float32)
    for i in np.flatnonzero(tokens == 3):
        in_order += values(dx)[i].astype(np.float32)
    np.testing.assert_array_equal(dtable[3], in_order * np.float32(18**0.5))


@pytest.mark.parametrize("token", [0, 4, -1, 2**40])
def test_padding_is_zeros_whatever_its_tokens(token: int) -> None:
    x = np.full((3, 2), np.nan, np.float32)
    cpu.embedding_forward(np.array([1, token, 2]), np.ones((5, 2), np.float32), np.array([0, -1, 0]), x)
    np.testing.assert_array_equal(x, np.float32(2**0.5) * np.array([[1, 1], [0, 0], [1, 1]], np.float32))


@pytest.mark.parametrize("token", [-1, 5])
def test_unknown_tokens(token: int) -> None:
    x, table = np.zeros((3, 2), np.float32), np.zeros((5, 2), np.float32)
    with pytest.raises(ValueError, match=f"token {token} at place 1 is outside the vocabulary of 5"):
        cpu.embedding_forward(np.array([4, token, 0]), table, np.zeros(3, int), x)
