"""Token embedding on the GPU against the oracle."""

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from numpy import ndarray

from tests.cpu.storages import STORAGES, empty, eps_of, limit, stored, values
from tests.cuda.schedules import in_every_schedule
from tests.ref.bounds import share
from ttr_fast.cuda import embedding as gpu
from ttr_fast.cuda.rows import THREADS
from ttr_ref.embedding import embedding_backward, embedding_forward
from ttr_ref.float_dtype import FloatDType
from ttr_ref.timeline import Timeline


def run(tokens: ndarray, document: ndarray, table: ndarray, dx: ndarray, onto: ndarray, dtype: FloatDType) -> tuple[ndarray, ...]:
    """x, dtable, dtable on top of `onto`."""
    x, dtable, more = empty(dx.shape, dtype), np.full(table.shape, np.nan, dtype.compute), onto.copy()
    start, places = gpu.places_by_token(tokens, document, table.shape[0])
    gpu.embedding_forward(tokens, table, document, x)
    gpu.embedding_backward(dx, start, places, False, dtable)
    gpu.embedding_backward(dx, start, places, True, more)
    return x, dtable, more


@pytest.mark.parametrize("dtype", STORAGES)
@settings(max_examples=5)
@given(n=st.integers(0, 60), e=st.integers(1, 20), vocabulary=st.integers(1, 10), seed=st.integers(0, 2**32 - 1))
@example(n=9, e=THREADS + 1, vocabulary=3, seed=0)
def test_equals_the_oracle(dtype: FloatDType, n: int, e: int, vocabulary: int, seed: int) -> None:
    """One product with a rounded √E; a sum of as many terms as a token occurs, half an eps each. Padding holds NaN and no token."""
    rng, eps = np.random.default_rng(seed), eps_of(dtype)
    document, tokens = rng.integers(-1, 3, n), rng.integers(0, vocabulary, n) ** 2 // vocabulary
    padding = document == -1
    tokens[padding] = 2**40
    dx, table, onto = rng.standard_normal((n, e)), stored(rng.standard_normal((vocabulary, e)), dtype), rng.standard_normal((vocabulary, e))
    dx[padding] = np.nan
    dx, onto = stored(dx, dtype), onto.astype(dtype.compute)
    at = Timeline(document[None], np.zeros((1, n), int), np.zeros((1, n)))
    x, dtable, more = in_every_schedule(lambda: run(tokens, document, table, dx, onto, dtype))

    expected = embedding_forward(tokens[None], values(table), at)[0]
    assert share(values(x), expected, limit(expected, eps * np.abs(expected), dtype)) <= 1
    expected = embedding_backward(values(dx)[None], tokens[None], np.zeros((vocabulary, e)), at)
    size = embedding_backward(np.abs(values(dx))[None], tokens[None], np.zeros((vocabulary, e)), at)
    most = np.bincount(tokens[~padding], minlength=1).max(initial=0)
    assert share(dtable, expected, (most / 2 + 2) * eps * size) <= 1
    assert share(more, onto + expected, (most / 2 + 2) * eps * size + eps * np.abs(onto + expected)) <= 1


@pytest.mark.parametrize("token", [-1, 5])
def test_unknown_tokens(token: int) -> None:
    with pytest.raises(ValueError, match=f"token {token} at place 1 is outside the vocabulary of 5"):
        gpu.places_by_token(np.array([4, token, 0]), np.zeros(3, int), 5)
