"""Each primitive against the layout of fragments as the PTX ISA states it, item by item, and within the accuracy that it promises.

A product on tensor cores is a sum of 17 terms, each cut by an eps of the largest at most: see primitives.py.
"""

import ml_dtypes
import numpy as np
import pytest
from numpy import ndarray

from tests.cpu.storages import stored, values
from tests.cuda.schedules import in_every_schedule
from tests.ref.bounds import share
from ttr_fast.cuda.jit import cuda, kernel
from ttr_fast.cuda.primitives import (
    commit_copies,
    copy_async,
    exp2,
    ldmatrix,
    ldmatrix_trans,
    mma,
    pair,
    shuffle_xor,
    store_pair,
    sync_warp,
    wait_copies,
)
from ttr_ref.float_dtype import FloatDType

HALVES = (FloatDType.F16, FloatDType.BF16)
TYPES = {FloatDType.F16: np.float16, FloatDType.BF16: ml_dtypes.bfloat16}
EPS = float(np.finfo(np.float32).eps)


def pairs_of(bits: ndarray) -> ndarray:
    """Neighbours in the last axis as uint32."""
    return np.ascontiguousarray(bits).view(np.uint32)


@kernel("H[::1], uint32[:, ::1], uint32[:, ::1], float32[:, ::1]", registers=40, threads=64)
def multiply(like, a, b, c):
    t = cuda.threadIdx.x
    c0, c1, c2, c3 = mma(like, c[t, 0], c[t, 1], c[t, 2], c[t, 3], a[t, 0], a[t, 1], a[t, 2], a[t, 3], b[t, 0], b[t, 1])
    c[t, 0], c[t, 1], c[t, 2], c[t, 3] = c0, c1, c2, c3


@pytest.mark.parametrize("dtype", HALVES)
def test_mma(dtype: FloatDType) -> None:
    """Two warps, each with a product of its own."""
    rng = np.random.default_rng(0)
    a, b = (stored(rng.standard_normal(shape), dtype) for shape in ((2, 16, 16), (2, 16, 8)))
    c = rng.standard_normal((2, 16, 8)).astype(np.float32)
    a_items, b_items, c_items = np.zeros((64, 8), a.dtype), np.zeros((64, 4), a.dtype), np.zeros((64, 4), np.float32)
    places = {}
    for thread in range(64):
        warp, group, member = thread // 32, thread % 32 >> 2, thread % 32 % 4
        for i in range(8):
            row = group if 0 <= i < 2 or 4 <= i < 6 else group + 8
            a_items[thread, i] = a[warp, row, member * 2 + (i & 1) + (0 if i < 4 else 8)]
        for i in range(4):
            b_items[thread, i] = b[warp, member * 2 + (i & 1) + (0 if i < 2 else 8), group]
            places[thread, i] = warp, group if i < 2 else group + 8, member * 2 + (i & 1)
            c_items[thread, i] = c[places[thread, i]]

    def run() -> tuple[ndarray]:
        sums = c_items.copy()
        multiply[1, 64](a_items[0], pairs_of(a_items), pairs_of(b_items), sums)
        return (sums,)

    (sums,) = in_every_schedule(run)
    got = np.empty_like(c)
    for (thread, i), place in places.items():
        got[place] = sums[thread, i]
    a, b = values(a), values(b)
    assert share(got, a @ b + c, 17 * EPS * (np.abs(a) @ np.abs(b) + np.abs(c))) <= 1


@kernel("H[::1], int64[::1], boolean, uint32[:, ::1]", registers=40, shared=1024, threads=32)
def load_matrices(x, starts, turned, out):
    tile = cuda.shared.array(512, x.dtype, alignment=16)
    lane = cuda.threadIdx.x
    for i in range(16):
        tile[lane + 32 * i] = x[lane + 32 * i]
    cuda.syncthreads()
    out[lane, 0], out[lane, 1], out[lane, 2], out[lane, 3] = ldmatrix_trans(tile, starts[lane]) if turned else ldmatrix(tile, starts[lane])


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", HALVES)
def test_ldmatrix(dtype: FloatDType, turned: bool) -> None:
    """Rows that lie anywhere, as in a swizzled tile."""
    x = np.arange(512).astype(stored(np.zeros(1), dtype).dtype)
    starts = 8 * np.random.default_rng(1).permutation(64)[:32]
    out = np.zeros((32, 4), np.uint32)
    load_matrices[1, 32](x, starts, turned, out)
    for lane in range(32):
        for m in range(4):
            matrix = np.array([x[starts[8 * m + r] :][:8] for r in range(8)])
            row = (matrix.T if turned else matrix)[lane // 4]
            assert out[lane, m] == int(row[lane % 4 * 2]) + (int(row[lane % 4 * 2 + 1]) << 16)


@kernel("H[:, ::1], H[:, :, ::1]", registers=40, shared=3 * 256, threads=16)
def copy_groups(x, out):
    """Group g copies row g; those of rows that x does not have are zeros. What has come is stored after each wait."""
    tile = cuda.shared.array((3, 128), x.dtype, alignment=16)
    t = cuda.threadIdx.x
    for g in range(3):
        copy_async(tile, 128 * g + 8 * t, x, x.shape[1] * g + 8 * t, g < x.shape[0])
        commit_copies()
    for wait in range(3):
        if wait == 0:
            wait_copies(2)
        elif wait == 1:
            wait_copies(1)
        else:
            wait_copies(0)
        cuda.syncthreads()
        for g in range(wait + 1):
            for i in range(8):
                out[wait, g, 16 * i + t] = tile[g, 16 * i + t]
        cuda.syncthreads()


@pytest.mark.parametrize("dtype", HALVES)
def test_copies_in_groups(dtype: FloatDType) -> None:
    """After each wait the groups that it waits for are there."""
    x = stored(np.random.default_rng(2).standard_normal((2, 128)), dtype)

    def run() -> tuple[ndarray]:
        out = np.full((3, 3, 128), 7).astype(x.dtype)
        copy_groups[1, 16](x, out)
        return (out,)

    (out,) = in_every_schedule(run)
    there = [*x, np.zeros(128, x.dtype)]
    for wait in range(3):
        for g in range(wait + 1):
            np.testing.assert_array_equal(out[wait, g], there[g])


@kernel("float32[::1], H[::1], uint32[::1], H[::1], float32[::1]", registers=40, threads=32)
def make_pairs(x, like, packed, out, wide):
    t = cuda.threadIdx.x
    packed[t] = pair(like, x[2 * t], x[2 * t + 1])
    store_pair(x[2 * t], x[2 * t + 1], out, 2 * t)
    store_pair(x[2 * t], x[2 * t + 1], wide, 2 * t)


@pytest.mark.parametrize("dtype", HALVES)
def test_pairs(dtype: FloatDType) -> None:
    """Rounded as NumPy does, ties and numbers that are too large among them."""
    x = np.random.default_rng(3).standard_normal(64).astype(np.float32)
    half = 2.0 ** -(11 if dtype is FloatDType.F16 else 8)
    x[:8] = 1 + half, 1 + 3 * half, -1 - half, 0.0, -0.0, np.inf, 3.4e38, 2.0**-25
    with np.errstate(over="ignore"):
        expected = stored(x.astype(TYPES[dtype]), dtype)
    packed, out, wide = np.zeros(32, np.uint32), np.zeros(64, expected.dtype), np.zeros(64, np.float32)
    make_pairs[1, 32](x, out, packed, out, wide)
    assert out.tobytes() == packed.tobytes() == expected.tobytes()
    assert wide.tobytes() == x.tobytes()


@kernel("float32[::1], float32[::1], float32[::1]", registers=40, threads=32)
def powers_and_neighbours(x, power, other):
    t = cuda.threadIdx.x
    power[t] = exp2(x[t])
    y = shuffle_xor(x[t], 1)
    other[t] = shuffle_xor(y, 18)


def test_powers_and_neighbours() -> None:
    x = np.random.default_rng(4).uniform(-30, 30, 32).astype(np.float32)
    x[:4] = 0, -np.inf, -130, -127
    power, other = np.zeros(32, np.float32), np.zeros(32, np.float32)
    powers_and_neighbours[1, 32](x, power, other)
    assert share(power[4:], np.exp2(x[4:].astype(np.float64)), 2.0**-22 * np.exp2(x[4:].astype(np.float64))) <= 1
    np.testing.assert_array_equal(power[:4], [1, 0, 0, 0])
    np.testing.assert_array_equal(other, [x[lane ^ 19] for lane in range(32)])


@kernel("float32[::1], float32[::1]", registers=32, shared=256, threads=64)
def turned_in_warps(x, y):
    tile, t = cuda.shared.array(64, np.float32), cuda.threadIdx.x
    tile[t] = x[t]
    sync_warp(t // 32)
    y[t] = tile[t ^ 31]


def test_a_warp_sees_what_its_lanes_have_written() -> None:
    x = np.arange(64, dtype=np.float32)

    def turned() -> tuple[ndarray]:
        y = np.zeros(64, np.float32)
        turned_in_warps[1, 64](x, y)
        return (y,)

    (y,) = in_every_schedule(turned)
    np.testing.assert_array_equal(y, x.reshape(2, 32)[:, ::-1].ravel())
