"""Kernels as plain Python: what `cuda` is to them where NUMBA_ENABLE_CUDASIM=1 is set, on any machine and without numba.cuda.

Numba has a simulator of its own. This one takes its place because it is faster by an order of magnitude (a thread of the GPU is a greenlet, not a
thread of the operating system), always does the same, and finds what that one lets pass:

    shared memory   is full of NaN (the largest number, for integers) when a block starts: what was never written is seen
    barriers        all threads of a block have to meet in one and the same line; if they do not, that is an error
    schedules       threads and blocks run forward, in reverse or shuffled: where two threads race, the schedules disagree
    arguments       have to be of the types for which the kernel is compiled

Blocks run one after the other. Local memory is full of NaN too. A negative index counts from the end, here as on a device.
"""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any, NamedTuple

import greenlet
import numpy as np
from numpy import ndarray

SCHEDULES = ("forward", "reverse", "shuffle")


class SimulationError(Exception):
    """A kernel did what no device allows."""


class Dim3(NamedTuple):
    """As `cuda.threadIdx`."""

    x: int
    y: int
    z: int


class Thread:
    """One thread of the block that runs: where it is, the barrier it waits at, how many shared arrays it has asked for."""

    __slots__ = ("barrier", "index", "place", "shared")

    def __init__(self, index: Dim3, body: Callable[[], None]) -> None:
        self.index, self.place = index, greenlet.greenlet(body)
        self.barrier, self.shared = ("", 0), 0


class Block:
    """A block: its threads run one after the other from barrier to barrier."""

    def __init__(self, kernel: Callable[..., None], arguments: tuple[Any, ...], index: Dim3, block: Dim3, grid: Dim3) -> None:
        self.index, self.dim, self.grid = index, block, grid
        self.shared: list[ndarray] = []
        self.scheduler = greenlet.getcurrent()

        def body() -> None:
            with np.errstate(all="ignore"):  # as on a device; a greenlet has a context of its own
                kernel(*arguments)

        places = product(range(block.z), range(block.y), range(block.x))
        self.threads = [Thread(Dim3(x, y, z), body) for z, y, x in places]
        self.current = self.threads[0]

    def run(self, order: Callable[[list[Any]], list[Any]]) -> None:
        """Until all threads have ended."""
        alive = self.threads
        while alive:
            for thread in order(alive):
                self.current = thread
                try:
                    thread.place.switch()
                except Exception as error:
                    error.add_note(f"in thread {tuple(thread.index)} of block {tuple(self.index)}")
                    raise
            alive = [thread for thread in self.threads if not thread.place.dead]
            self.check_barrier(alive)

    def check_barrier(self, waiting: list[Thread]) -> None:
        """Raises SimulationError unless all threads wait at one barrier, or none does."""
        lines = {thread.barrier for thread in waiting}
        if len(lines) > 1 or 0 < len(waiting) < len(self.threads):
            ended = len(self.threads) - len(waiting)
            places = ", ".join(f"{name}:{line}" for name, line in sorted(lines))
            raise SimulationError(f"divergent barrier in block {tuple(self.index)}: {len(waiting)} threads wait at {places}, {ended} have ended")


class Shared:
    """`cuda.shared`."""

    def array(self, shape: int | tuple[int, ...], dtype: Any) -> ndarray:
        """The n-th call of every thread gives one and the same array."""
        block = running()
        thread = block.current
        if thread.shared == len(block.shared):
            block.shared.append(poisoned(shape, dtype))
        found = block.shared[thread.shared]
        thread.shared += 1
        if found.shape != np.empty(shape).shape or found.dtype != np.dtype(dtype):
            raise SimulationError(f"shared array {thread.shared} is {found.shape} {found.dtype} to one thread and {shape} {dtype} to another")
        return found


class Local:
    """`cuda.local`."""

    def array(self, shape: int | tuple[int, ...], dtype: Any) -> ndarray:
        """Memory of one thread."""
        return poisoned(shape, dtype)


class Cuda:
    """What kernels use of `numba.cuda`."""

    shared, local = Shared(), Local()

    @property
    def threadIdx(self) -> Dim3:
        return running().current.index

    @property
    def blockIdx(self) -> Dim3:
        return running().index

    @property
    def blockDim(self) -> Dim3:
        return running().dim

    @property
    def gridDim(self) -> Dim3:
        return running().grid

    def syncthreads(self) -> None:
        """Wait for the other threads of the block."""
        caller, block = sys._getframe(1), running()
        block.current.barrier = caller.f_code.co_qualname, caller.f_lineno
        block.scheduler.switch()


cuda = Cuda()
_state: dict[str, Any] = {"block": None, "schedule": "forward"}


def running() -> Block:
    """The block that runs. Raises SimulationError outside of kernels."""
    block = _state["block"]
    if block is None:
        raise SimulationError("no kernel is running")
    return block


def poisoned(shape: int | tuple[int, ...], dtype: Any) -> ndarray:
    """An array that nobody has written to yet."""
    kind = np.dtype(dtype)
    return np.full(shape, np.nan if kind.kind == "f" else np.iinfo(kind).max, kind)


@contextmanager
def schedule(name: str) -> Iterator[None]:
    """Run kernels in one of SCHEDULES."""
    before, _state["schedule"] = _state["schedule"], name
    try:
        yield
    finally:
        _state["schedule"] = before


def order_of(name: str) -> Callable[[list[Any]], list[Any]]:
    """How a schedule orders threads and blocks. "shuffle" draws the same orders every time."""
    draw = random.Random(0)
    orders: dict[str, Callable[[list[Any]], list[Any]]] = {
        "forward": lambda items: items,
        "reverse": lambda items: items[::-1],
        "shuffle": lambda items: draw.sample(items, len(items)),
    }
    return orders[name]


def launch(kernel: Callable[..., None], grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
    """Run a kernel over a grid of blocks."""
    order = order_of(_state["schedule"])
    blocks, dim = dim3(grid), dim3(block)
    if min(blocks) < 1 or min(dim) < 1:
        raise SimulationError(f"a grid of {grid} blocks of {block} threads cannot be launched")
    try:
        for z, y, x in order(list(product(range(blocks.z), range(blocks.y), range(blocks.x)))):
            _state["block"] = Block(kernel, arguments, Dim3(x, y, z), dim, blocks)
            _state["block"].run(order)
    finally:
        _state["block"] = None


def dim3(size: tuple[int, ...]) -> Dim3:
    """One, two or three sizes."""
    x, y, z = (*size, 1, 1)[:3]
    return Dim3(x, y, z)
