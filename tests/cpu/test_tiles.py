"""Matrix tiles against exactly rounded sums: every element is the chain of fused multiply-adds that its docstring says."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy import ndarray

from tests.cpu.cpus import ARM, Cpu
from tests.ref.bounds import share
from tests.ref.cases import seeds
from ttr_fast.cpu.jit import kernel
from ttr_fast.cpu.simd import LINE, registers
from ttr_fast.cpu.tiles import multiply, part_of

LANES = {np.float32: 16, np.float64: 8}


def product_kernel(rows: int, columns: int):
    @kernel((rows, columns))
    def product(a, a_row, a_step, b, c, c_row, count):
        multiply(count, a, 0, a_row, a_step, b, 0, c_row, c, 0, c_row, rows, columns)

    return product


KERNELS = {(rows, columns): product_kernel(rows, columns) for rows, columns in [(1, 1), (4, 4), (8, 2), (6, 1), (9, 4), (16, 2)]}
"""The last two are formed in parts on every CPU."""


@settings(max_examples=60)
@given(
    shape=st.sampled_from(sorted(KERNELS)), count=st.integers(0, 21), dtype=st.sampled_from([np.float32, np.float64]), turned=st.booleans(),
    seed=seeds,
)
def test_multiply(shape: tuple[int, int], count: int, dtype: type, turned: bool, seed: int) -> None:
    """A by rows or by columns; C is added to. n terms and the addition: n + 1 roundings of half an eps."""
    rows, width = shape[0], shape[1] * LANES[dtype]
    rng = np.random.default_rng(seed)
    a, b, c = (rng.standard_normal(s).astype(dtype) for s in ((rows, count), (count, width), (rows, width)))
    stored = np.ascontiguousarray(a.T if turned else a)
    before = c.copy()
    KERNELS[shape](stored.reshape(-1), 1 if turned else count, rows if turned else 1, b.reshape(-1), c.reshape(-1), width, count)
    expected = before + a.astype(np.longdouble) @ b
    limit = (count + 1) / 2 * np.finfo(dtype).eps * (np.abs(before) + np.abs(a) @ np.abs(b))
    assert share(c, expected, limit) <= 1


@pytest.mark.parametrize(
    "cpu, expected",
    [(ARM, [(4, 1), (6, 1), (4, 1), (5, 1)]), (Cpu("x86_64", "+avx512f,+avx2,+avx"), [(4, 4), (12, 2), (8, 2), (9, 3)]),
     (Cpu("x86_64", "+avx2,+avx"), [(4, 1), (6, 1), (4, 1), (5, 1)]), (Cpu("x86_64", ""), [(2, 1), (2, 1), (2, 1), (2, 1)])],
)  # fmt: skip
def test_parts_fit_into_registers(cpu: Cpu, expected: list[tuple[int, int]]) -> None:
    """Sums, a vector of each column and one number; rows are shared out evenly."""
    shapes = [(4, 4), (12, 2), (8, 2), (9, 4)]
    assert [part_of(cpu, *shape) for shape in shapes] == expected
    count, width = registers(cpu)
    assert all((rows + 1) * columns * (LINE // width) + 1 <= count for rows, columns in expected)


def rounded(exact: Fraction) -> np.float32:
    """To the nearest float32, ties to even."""
    if exact == 0:
        return np.float32(0)
    quantum = Fraction(2) ** (math.frexp(float(exact))[1] - 24)
    return np.float32(float(round(exact / quantum) * quantum))


@pytest.mark.parametrize("shape", sorted(KERNELS))
def test_each_element_is_the_same_chain_in_every_tile(shape: tuple[int, int]) -> None:
    """Bit for bit: x ← round(a b + x) for k = 0, 1, …, computed with exact fractions; 7 terms are one unrolled step and three single ones."""
    rng = np.random.default_rng(1)
    rows, width = shape[0], shape[1] * 16
    a, b = rng.standard_normal((rows, 7)).astype(np.float32), rng.standard_normal((7, width)).astype(np.float32)
    c = np.zeros((rows, width), np.float32)
    KERNELS[shape](a.reshape(-1), 7, 1, b.reshape(-1), c.reshape(-1), width, 7)
    for i, j in [(0, 0), (rows - 1, width - 1), (rows // 2, width // 2)]:
        x = np.float32(0)
        for k in range(7):
            x = rounded(Fraction(float(a[i, k])) * Fraction(float(b[k, j])) + Fraction(float(x)))
        assert c[i, j] == x


def test_nothing_outside_is_touched() -> None:
    """Guards around C keep their bits, and A and B are read no further than they go (NaN lies behind them)."""
    count, width = 5, 64
    a, b, c = np.full(4 * count + 8, np.nan, np.float32), np.full(count * width + 64, np.nan, np.float32), np.full(6 * width, 7, np.float32)
    a[: 4 * count], b[: count * width] = 1, 2
    KERNELS[4, 4](a, count, 1, b, c, width, count)
    expected: ndarray = np.where(np.arange(c.size) < 4 * width, 7 + 2 * count, 7)
    np.testing.assert_array_equal(c, expected)
