"""The simulator finds what devices do not forgive."""

import numpy as np
import pytest
from numpy import ndarray

from ttr_fast.cuda.jit import cuda, inner, kernel
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
