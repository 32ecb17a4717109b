"""Products over packed panels: within the bound of one chain of sums, and the same bits whatever stands beside a row."""

import math
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from numba import get_num_threads, set_num_threads
from numpy import ndarray

from tests.ref.bounds import share
from tests.ref.cases import seeds
from ttr_fast.cpu.half import as_bits
from ttr_fast.cpu.linear import (
    BLOCK_ROWS,
    BLOCK_STEPS,
    FEW_ROWS,
    linear_backward_input,
    linear_backward_weight,
    linear_forward,
    matmul,
)
from ttr_fast.cpu.panels import COLUMNS, PAIRS, ROWS
from ttr_ref.float_dtype import FloatDType

BF16 = FloatDType.BF16.storage
STORAGES = [dtype.storage for dtype in FloatDType]
WIDTH = 16 * COLUMNS
sizes = st.one_of(st.integers(1, 40), st.sampled_from([ROWS + 1, WIDTH - 1, WIDTH, WIDTH + 1, 65, 2 * WIDTH + 7]))
depths = st.one_of(st.integers(1, 70), st.sampled_from([BLOCK_STEPS - 1, BLOCK_STEPS + 1, 2 * BLOCK_STEPS, 2 * BLOCK_STEPS + 3]))


def random(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> ndarray:
    return rng.standard_normal(shape).astype(dtype)


def precision(dtype: np.dtype) -> tuple[float, float]:
    """eps and the smallest normal number."""
    info = ml_dtypes.finfo(dtype)
    return float(info.eps), float(info.smallest_normal)


def limit_of(a: ndarray, b: ndarray, addend: ndarray, stored: np.dtype) -> ndarray:
    """Of a chain of K multiply-adds, one addition and the rounding to storage.

    A chain of K fused steps and an addition round K + 1 times by half an eps; a dot product of pairs rounds as often, in a filled-up pair once
    more, and takes what is subnormal for 0. Halfway through the subnormal numbers of its storage a result is off by half of their distance.
    """
    eps, tiny = precision(np.dtype(np.float64) if a.dtype == np.float64 else np.dtype(np.float32))
    last, smallest = precision(stored)
    sums = np.abs(addend).astype(np.float64) + np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64)
    chain = (a.shape[1] + 2) / 2 * eps * sums + (3 * a.shape[1] + 2) * tiny
    exact = np.abs(addend.astype(np.float64) + a.astype(np.float64) @ b.astype(np.float64))
    # the expected value is itself a sum of float64, in another order
    reference = (a.shape[1] + 2) / 2 * np.finfo(np.float64).eps * sums
    rounding = last / 2 * (exact + chain) + last * smallest if stored not in (np.float32, np.float64) else 0
    return chain + reference + rounding


def check(a: ndarray, b: ndarray, got: ndarray, addend: ndarray | None = None) -> None:
    added = np.zeros(got.shape) if addend is None else addend
    expected = added.astype(np.float64) + a.astype(np.float64) @ b.astype(np.float64)
    assert share(got.astype(np.float64), expected, limit_of(a, b, added, got.dtype)) <= 1


def forward(x: ndarray, w: ndarray, stored: np.dtype | None = None, **options) -> ndarray:
    y = np.full((x.shape[0], w.shape[1]), np.nan, stored or x.dtype)
    linear_forward(as_bits(x), as_bits(w), as_bits(y), **options)
    return y


@settings(max_examples=60)
@given(n=sizes, k=depths, m=sizes, dtype=st.sampled_from(STORAGES), seed=seeds)
@example(n=1, k=1, m=1, dtype=BF16, seed=0)
@example(n=BLOCK_ROWS + 3, k=5, m=WIDTH, dtype=np.dtype(np.float32), seed=0)
def test_forward_and_gradients(n: int, k: int, m: int, dtype: np.dtype, seed: int) -> None:
    """y, y += and a residual; dx; dW in the type of sums, fresh and on top of what is there."""
    rng = np.random.default_rng(seed)
    x, w, dy, residual = (random(rng, s, dtype) for s in ((n, k), (k, m), (n, m), (n, m)))
    check(x, w, forward(x, w))
    check(x, w, forward(x, w, residual=as_bits(residual)), residual)
    y = residual.copy()
    linear_forward(as_bits(x), as_bits(w), as_bits(y), end="add")
    check(x, w, y, residual)
    dx = np.full(x.shape, np.nan, dtype)
    linear_backward_input(as_bits(dy), as_bits(w), as_bits(dx))
    check(dy, w.T, dx)
    dw = np.full(w.shape, np.nan, np.float64 if dtype == np.float64 else np.float32)
    linear_backward_weight(as_bits(x), as_bits(dy), dw)
    check(x.T, dy, dw)
    before = dw.copy()
    linear_backward_weight(as_bits(x), as_bits(dy), dw, accumulate=True)
    check(x.T, dy, dw, before)


def test_mixed_storage() -> None:
    """bf16 in, float32 out."""
    rng = np.random.default_rng(0)
    x, w = random(rng, (11, 37), BF16), random(rng, (37, 45), BF16)
    check(x, w, forward(x, w, np.dtype(np.float32)))


def same(a: ndarray, b: ndarray) -> bool:
    return a.tobytes() == b.tobytes()


@settings(max_examples=40)
@given(n=st.integers(2, 3 * ROWS + 1), k=depths, m=sizes, dtype=st.sampled_from(STORAGES), data=st.data(), seed=seeds)
def test_bits_of_a_row_are_its_own(n: int, k: int, m: int, dtype: np.dtype, data: st.DataObject, seed: int) -> None:
    """Alone, among a few (where W is read in place), among many, and where everything else is NaN; for y and for dx."""
    rng = np.random.default_rng(seed)
    x, w = random(rng, (n, k), dtype), random(rng, (k, m), dtype)
    y, dx = forward(x, w), np.empty((n, k), dtype)
    linear_backward_input(as_bits(y), as_bits(w), as_bits(dx))
    first = data.draw(st.integers(0, n - 1))
    rows = slice(first, data.draw(st.integers(first + 1, min(first + FEW_ROWS, n))))
    assert same(forward(x[rows].copy(), w), y[rows])
    part = np.empty((rows.stop - rows.start, k), dtype)
    linear_backward_input(as_bits(y[rows].copy()), as_bits(w), as_bits(part))
    assert same(part, dx[rows])
    spoiled = np.full((n, k), np.nan, dtype)
    spoiled[rows] = x[rows]
    assert same(forward(spoiled, w)[rows], y[rows])


@pytest.mark.parametrize("dtype", STORAGES, ids=str)
def test_bits_do_not_depend_on_threads(dtype: np.dtype) -> None:
    """Nor do those of dW, whose sums run over rows."""
    rng, threads = np.random.default_rng(3), get_num_threads()
    x, w, row = random(rng, (200, 301), dtype), random(rng, (301, 131), dtype), random(rng, (1, 301), dtype)
    results = []
    try:
        for count in sorted({1, threads}):
            set_num_threads(count)
            y = forward(x, w)
            dw = np.empty(w.shape, np.float64 if dtype == np.float64 else np.float32)
            linear_backward_weight(as_bits(x), as_bits(y), dw)
            results.append((y, dw, forward(row, w)))
    finally:
        set_num_threads(threads)
    assert all(same(a, b) for a, b in zip(results[0], results[-1], strict=True))


def test_float_sums_are_one_chain() -> None:
    """Bit for bit over more than one block of k. float64 holds products of float32 exactly, and these sums too, so only the last rounding is left."""
    rng, k = np.random.default_rng(4), 2 * BLOCK_STEPS + 5
    x, w = (rng.integers(-(2**11), 2**11, s).astype(np.float32) for s in ((9, k), (k, 40)))
    chain = np.zeros((9, 40), np.float32)
    for i in range(k):
        chain = (x[:, i, None].astype(np.float64) * w[i].astype(np.float64) + chain).astype(np.float32)
    for rows in (9, 4, 1):
        assert same(forward(x[:rows].copy(), w), chain[:rows])


def test_nothing_outside_is_touched() -> None:
    """Guards around the result; NaN around what is read stays out."""
    rng = np.random.default_rng(5)
    for n, k, m in [(3, 33, 45), (13, 33, 45)]:
        big = [np.full(n * k + 64, np.nan, np.float32), np.full(k * m + 64, np.nan, np.float32), np.full(n * m + 64, 7, np.float32)]
        x, w, y = (array[32 : 32 + math.prod(s)].reshape(s) for array, s in zip(big, ((n, k), (k, m), (n, m)), strict=True))
        x[:], w[:] = random(rng, (n, k), x.dtype), random(rng, (k, m), x.dtype)
        linear_forward(x, w, y)
        check(x, w, y)
        assert (big[2][:32] == 7).all()
        assert (big[2][32 + n * m :] == 7).all()


def test_nothing_to_sum() -> None:
    """K = 0 gives zeros, or the residual; no rows or columns give nothing."""
    x, w, y = np.empty((2, 0), np.float32), np.empty((0, 3), np.float32), np.full((2, 3), 5, np.float32)
    linear_forward(x, w, y, end="add")
    assert (y == 5).all()
    linear_forward(x, w, y)
    assert (y == 0).all()
    linear_forward(np.empty((0, 4), np.float32), np.empty((4, 3), np.float32), np.empty((0, 3), np.float32))


def test_what_does_not_go_together_is_said() -> None:
    a, b, c = np.zeros((2, 3), np.float32), np.zeros((3, 4), np.float32), np.zeros((2, 4), np.float32)
    with pytest.raises(ValueError, match="shapes"):
        matmul(a, False, b, True, c)
    with pytest.raises(ValueError, match="C-contiguous"):
        matmul(a, False, np.asfortranarray(b), False, c)
    with pytest.raises(TypeError, match="no product of float32 and float64 is stored as float32"):
        matmul(a, False, b.astype(np.float64), False, c)
    with pytest.raises(TypeError, match="stored as float32 \\+ int16"):
        matmul(a, False, b, False, c, c.astype(np.int16))
    with pytest.raises(ValueError, match="not both"):
        linear_forward(a, b, c, end="add", residual=c)


def check_without(cpu: str, dtype: np.dtype) -> None:
    """What the process of `test_other_cpus` does: bounds, and a row's bits, where no instruction for pairs may be used."""
    assert not PAIRS
    rng = np.random.default_rng(6)
    x, w = random(rng, (2 * ROWS + 5, 300), dtype), random(rng, (300, WIDTH + 5), dtype)
    y, dx = forward(x, w), np.empty_like(x)
    check(x, w, y)
    assert same(forward(x[-1:].copy(), w), y[-1:])
    linear_backward_input(as_bits(y), as_bits(w), as_bits(dx))
    check(y, w.T, dx)
    print(f"{cpu} agrees")


@pytest.mark.parametrize("cpu, storage", [("x86-64-v2", "F16"), ("haswell", "BF16")])
def test_other_cpus(cpu: str, storage: str) -> None:
    """In a process of its own, since an instruction that is not there would end it."""
    if not sys.platform.startswith("linux") or os.uname().machine != "x86_64":
        cpu = "generic"
    environment = os.environ | {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": ""}
    code = f"from tests.cpu.test_linear import *; check_without('{cpu}', FloatDType.{storage}.storage)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == f"{cpu} agrees\n", done.stderr
