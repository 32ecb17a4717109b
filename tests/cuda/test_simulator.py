"""The simulator finds what devices do not forgive."""

import numpy as np
import pytest
from ml_dtypes import bfloat16
from numpy import ndarray

from ttr_fast.cuda.jit import cuda, inner, kernel
from ttr_fast.cuda.primitives import commit_copies, copy_async, shuffle_xor, store_pair, sync_warp, wait_copies
from ttr_fast.cuda.simulator import SCHEDULES, SimulationError, schedule


@inner
def meet():
    cuda.syncthreads()


@kernel("float32[::1], float32[::1], boolean", registers=32, threads=8)
def reversed_blocks(x, y, with_barrier):
    s = cuda.shared.array(8, np.float32)
    t, first = cuda.threadIdx.x, cuda.blockIdx.x * 8
    s[t] = x[first + t]
    if with_barrier:
        meet()
    y[first + t] = s[7 - t]


def run(with_barrier: bool) -> ndarray:
    y = np.zeros(16, np.float32)
    reversed_blocks[2, 8](np.arange(16, dtype=np.float32), y, with_barrier)
    return y


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_missing_barrier_is_seen_in_every_schedule(name: str) -> None:
    """Shared memory is fresh in every block, so that the first block's numbers hide nothing."""
    with schedule(name):
        np.testing.assert_array_equal(run(True), [*range(7, -1, -1), *range(15, 7, -1)])
        missing = run(False)
    assert np.isnan(missing[:8]).any()
    assert np.isnan(missing[8:]).any()


@kernel("int64[::1], int64", registers=32, threads=4)
def diverging(seen, how):
    t = cuda.threadIdx.x
    if how == 0 and t == 3:
        return
    if how == 1 and t == 3:
        cuda.syncthreads()
    else:
        cuda.syncthreads()
    seen[t] = cuda.blockDim.x * cuda.gridDim.y


@pytest.mark.parametrize(
    "how, said", [(0, "3 threads wait at diverging:{last}, 1 have ended"), (1, "4 threads wait at diverging:{first}, diverging:{last}, 0")]
)
@pytest.mark.parametrize("name", SCHEDULES)
def test_divergent_barriers(name: str, how: int, said: str) -> None:
    start = diverging.function.__code__.co_firstlineno
    said = said.format(first=start + 6, last=start + 8)
    with schedule(name), pytest.raises(SimulationError, match=said):
        diverging[1, 4](np.zeros(4, np.int64), how)


def test_an_error_tells_its_thread() -> None:
    with pytest.raises(IndexError) as caught:
        diverging[(1, 2), 4](np.zeros(2, np.int64), 2)
    assert caught.value.__notes__ == ["in thread (2, 0, 0) of block (0, 0, 0)"]


def test_launches_that_no_compiled_kernel_serves() -> None:
    with pytest.raises(SimulationError, match=r"diverging is not compiled for \(int32\[::1\], int64\)"):
        diverging[1, 4](np.zeros(4, np.int32), 2)
    with pytest.raises(SimulationError, match=r"not compiled for \(int64\[:\], int64\)"):
        diverging[1, 4](np.zeros(8, np.int64)[::2], 2)
    with pytest.raises(SimulationError, match=r"compiled for 4 threads, not \(5,\)"):
        diverging[1, 5](np.zeros(5, np.int64), 2)
    with pytest.raises(SimulationError, match=r"a grid of \(0,\) blocks of \(4,\) threads cannot be launched"):
        diverging[0, 4](np.zeros(4, np.int64), 2)
    with pytest.raises(SimulationError, match="no kernel is running"):
        cuda.syncthreads()


@kernel("float32[::1], int16[::1], boolean", registers=32, threads=8, dynamic=64)
def pooled(x, y, with_barrier):
    """The second half of the pool, as other threads see it, and in another type."""
    numbers, bits = cuda.shared.array(0, np.float32), cuda.shared.array(0, np.int16)
    t = cuda.threadIdx.x
    numbers[8 + t] = x[8 * cuda.blockIdx.x + t]
    if with_barrier:
        cuda.syncthreads()
    y[8 * cuda.blockIdx.x + t] = bits[numbers.size + 2 * (7 - t) + 1]


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_pool_is_the_same_bytes_in_every_type(name: str) -> None:
    """And fresh in every block."""
    x, y, missing = np.arange(1, 17, dtype=np.float32), np.zeros(16, np.int16), np.zeros(16, np.int16)
    with schedule(name):
        pooled[2, 8](x, y, True)
        pooled[2, 8](x, missing, False)
    np.testing.assert_array_equal(y.reshape(2, 8), x.view(np.int16)[1::2].reshape(2, 8)[:, ::-1])
    assert (missing.reshape(2, 8) == -1).any(1).all()


@kernel("float32[::1]", registers=32, threads=2)
def two_shapes(y):
    s = cuda.shared.array(4 + cuda.threadIdx.x, np.float32)
    y[cuda.threadIdx.x] = s[0]


def test_threads_have_to_agree_on_shared_arrays() -> None:
    with pytest.raises(SimulationError, match=r"shared array 1 is \(4,\) float32 to one thread and 5"):
        two_shapes[1, 2](np.zeros(2, np.float32))


def test_the_shuffled_schedule_is_the_same_every_time() -> None:
    orders: list[list[int]] = []

    @kernel("float32[::1]", registers=32, threads=16)
    def recorded(y):
        orders[-1].append(cuda.threadIdx.x)

    for name in ("forward", "reverse", "shuffle", "shuffle"):
        orders.append([])
        with schedule(name):
            recorded[1, 16](np.zeros(1, np.float32))
    forward, reverse, shuffled, again = orders
    assert forward == reverse[::-1] == list(range(16))
    assert shuffled == again
    assert sorted(shuffled) == forward != shuffled


@kernel("float32[::1], int64", registers=32, threads=64)
def warps(x, how):
    t = cuda.threadIdx.x
    if how == 0 and t == 40:
        return
    if how == 1 and t == 40:
        y = shuffle_xor(x[t], 1)
    elif how == 2 and t == 40:
        cuda.syncthreads()
        y = x[t]
    else:
        y = shuffle_xor(x[t], 1)
    cuda.syncthreads()
    x[t] = y


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("how, lines", [(0, [11]), (1, [6, 11]), (2, [11])])
def test_divergent_warps(name: str, how: int, lines: list[int]) -> None:
    """A lane has ended, is elsewhere, or waits at a barrier."""
    start = warps.function.__code__.co_firstlineno
    places = ", ".join(f"warps:{start + line}" for line in lines)
    with schedule(name), pytest.raises(SimulationError, match=f"{31 + (how == 1)} of 32 lanes meet at {places}$"):
        warps[1, 64](np.zeros(64, np.float32), how)


def test_a_warp_has_32_lanes() -> None:
    with pytest.raises(SimulationError, match="16 of 32 lanes"):
        warps[1, 48](np.zeros(48, np.float32), 3)


@kernel("int64", registers=32, threads=512)
def barriers_of_warps(first):
    sync_warp(first + cuda.threadIdx.x // 32)


def test_a_warp_has_one_barrier() -> None:
    """Its own, and the last of 16 has none."""
    barriers_of_warps[1, 480](0)
    for threads, first in ((32, 1), (512, 0)):
        with pytest.raises(SimulationError, match="has no barrier, or it is not this thread's"):
            barriers_of_warps[1, threads](first)


@kernel("H[::1], H[::1], int64", registers=32, shared=1024, threads=32)
def copied(x, y, how):
    tile = cuda.shared.array(256, x.dtype, alignment=16)
    t = cuda.threadIdx.x
    if how == 3:
        for i in range(8):
            tile[8 * t + i] = x[8 * t + i]
    copy_async(tile, 8 * t, x, 8 * t, True)
    commit_copies()
    if how != 1 and how != 3:
        wait_copies(0)
    if how != 2:
        cuda.syncthreads()
    for i in range(8):
        y[8 * t + i] = tile[(8 * t + i + 8) % 256]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
@pytest.mark.parametrize("how", range(4))
def test_copies_have_to_be_waited_for(name: str, dtype: type, how: int) -> None:
    """Without a wait, or without a barrier after it, NaN is read, even where something else was before."""
    x, y = np.arange(256).astype(dtype), np.zeros(256, dtype)
    with schedule(name):
        copied[1, 32](x, y, how)
    got = y.view({np.int16: np.float16, np.uint16: bfloat16}[dtype]).astype(np.float32)
    assert np.isnan(got).any() == (how > 0)
    if how == 0:
        np.testing.assert_array_equal(y, np.roll(x, -8))


@kernel("int16[::1], int64", registers=32, shared=1024, threads=32)
def misplaced(x, how):
    tile = cuda.shared.array(256, x.dtype) if how == 0 else cuda.shared.array(256, x.dtype, alignment=16)
    if how == 3:
        store_pair(np.float32(0), np.float32(0), x, 1)
    copy_async(tile, 4 if how == 1 else 0, x, 252 if how == 2 else 0, True)


@pytest.mark.parametrize("how, said", [(0, "alignment=16"), (1, "item 4 of 256"), (2, "item 252 of 256"), (3, "no pair starts at item 1")])
def test_what_is_moved_at_once_has_to_be_aligned(how: int, said: str) -> None:
    with pytest.raises(SimulationError, match=said):
        misplaced[1, 32](np.zeros(256, np.int16), how)
