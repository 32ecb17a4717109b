"""Matrix products on the GPU: within the bound of one chain of sums, and the same bits whatever stands beside a row."""

from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from numpy import ndarray

from tests.cpu.storages import STORAGES, empty, eps_of, limit, stored, values
from tests.cuda.schedules import in_every_schedule
from tests.ref.bounds import EPS, share
from ttr_fast.cuda import linear as gpu, linear_mma
from ttr_ref.float_dtype import FloatDType

Arrays = tuple[ndarray, ...]
HALVES = [FloatDType.F16, FloatDType.BF16]


def check(a: ndarray, b: ndarray, addend: ndarray, got: ndarray, dtype: FloatDType, rounded: bool) -> None:
    """A chain of K multiply-adds and an addition round 2 K + 1 times by half an eps, the expected value likewise, then once to storage.

    Tensor cores multiply exactly, and cut each of K + 1 terms by a whole eps at most: see primitives.py.
    """
    expected = addend + a @ b
    error = (a.shape[1] + 1) * (eps_of(dtype) + EPS) * (np.abs(addend) + np.abs(a) @ np.abs(b))
    assert share(values(got), expected, limit(expected, error, dtype) if rounded else error) <= 1


@pytest.mark.parametrize("dtype", STORAGES)
@settings(max_examples=1)
@given(n=st.integers(1, 70), k=st.integers(1, 20), m=st.integers(1, 30), seed=st.integers(0, 2**32 - 1))
@example(n=65, k=17, m=3, seed=0)
def test_equals_the_oracle(dtype: FloatDType, n: int, k: int, m: int, seed: int) -> None:
    """In tiles of `linear.product`; most of these rows are of no length that tensor cores take."""
    compare(dtype, n, k, m, seed, in_every_schedule)


@pytest.mark.parametrize("dtype", HALVES)
@settings(max_examples=1)
@given(n=st.integers(1, 70), k=st.integers(1, 6), m=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
@example(n=130, k=1, m=1, seed=0)
@example(n=33, k=17, m=1, seed=0)
@example(n=33, k=1, m=17, seed=0)
@example(n=3, k=33, m=1, seed=0)
@example(n=3, k=1, m=33, seed=0)
def test_tensor_cores_equal_the_oracle(dtype: FloatDType, n: int, k: int, m: int, seed: int) -> None:
    """Rows of 8 k and 8 m items. Each axis goes beyond a tile and, where it is the inner one, once round the stages, of both kinds of tiles."""
    with patch.object(gpu, "product", None):
        compare(dtype, n, 8 * k, 8 * m, seed, lambda run: run())


@pytest.mark.parametrize("n, k, m", [(33, 136, 8), (3, 264, 8)])
def test_tensor_cores_in_every_schedule(n: int, k: int, m: int) -> None:
    """Both kinds of tiles, round the stages."""
    with patch.object(gpu, "product", None):
        compare(FloatDType.BF16, n, k, m, 0, in_every_schedule)


def compare(dtype: FloatDType, n: int, k: int, m: int, seed: int, run_it: Callable[[Callable[[], Arrays]], Arrays]) -> None:
    """y with and without a residual, in storage and in the type of sums; dx; dW, fresh and on top of what is there."""
    rng = np.random.default_rng(seed)
    x, w, dy, residual = (stored(rng.standard_normal(s), dtype) for s in ((n, k), (k, m), (n, m), (n, m)))
    onto = rng.standard_normal((k, m)).astype(dtype.compute)

    def run() -> Arrays:
        y, dx, wide = empty((n, m), dtype), empty((n, k), dtype), np.full((n, m), np.nan, dtype.compute)
        dw, more = np.full_like(onto, np.nan), onto.copy()
        gpu.linear_forward(x, w, y, residual)
        gpu.linear_forward(x, w, wide)
        gpu.linear_backward_input(dy, w, dx)
        gpu.linear_backward_weight(x, dy, dw)
        gpu.linear_backward_weight(x, dy, more, add=True)
        return y, wide, dx, dw, more

    y, wide, dx, dw, more = run_it(run)
    x, w, dy, residual = (values(a) for a in (x, w, dy, residual))
    check(x, w, residual, y, dtype, True)
    check(x, w, np.zeros((n, m)), wide, dtype, False)
    check(dy, w.T, np.zeros((n, k)), dx, dtype, True)
    check(x.T, dy, np.zeros((k, m)), dw, dtype, False)
    check(x.T, dy, onto.astype(np.float64), more, dtype, False)


@pytest.mark.parametrize("dtype, n, k, m", [(FloatDType.F32, 5, 20, 7), (FloatDType.BF16, 5, 20, 7), (FloatDType.BF16, 133, 40, 8)])
def test_a_row_alone_has_the_same_bits(dtype: FloatDType, n: int, k: int, m: int) -> None:
    """And not a number stays in its row."""
    rng = np.random.default_rng(0)
    x, w = (stored(rng.standard_normal(s), dtype) for s in ((n, k), (k, m)))
    x[2] = empty((1,), dtype)
    y, alone = empty((n, m), dtype), empty((1, m), dtype)
    gpu.linear_forward(x, w, y)
    for row in (3, n - 1):
        gpu.linear_forward(x[row : row + 1], w, alone)
        assert alone.tobytes() == y[row : row + 1].tobytes()
    assert np.isnan(values(y)).sum() == m


@pytest.mark.parametrize("down, wide", [(1, 1), (8, 3), (19, 5), (3, 20)])
def test_every_tile_has_one_block(down: int, wide: int) -> None:
    """And those of a group stand side by side."""
    tiles = [linear_mma.tile_of(block, down, wide) for block in range(down * wide)]
    assert sorted(tiles) == [(i, j) for i in range(down) for j in range(wide)]
    assert tiles[: min(down, linear_mma.GROUP)] == [(i, 0) for i in range(min(down, linear_mma.GROUP))]
