"""Kernels as plain Python: what `cuda` is to them where NUMBA_ENABLE_CUDASIM=1 is set, on any machine and without numba.cuda.

Numba has a simulator of its own. This one takes its place because it is faster by an order of magnitude (a thread of the GPU is a greenlet, not a
thread of the operating system), always does the same, and finds what that one lets pass:

    shared memory   is full of NaN (the largest number, for integers) when a block starts: what was never written is seen
    barriers        all threads of a block have to meet in one and the same line; if they do not, that is an error
    warps           so do all 32 lanes of a warp where primitives.py needs them together; meanwhile other warps are at barriers, far ahead or behind
    copies          that are made meanwhile leave NaN where they go until they are waited for
    schedules       threads, warps and blocks run forward, in reverse or shuffled: where two threads race, the schedules disagree
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

from ttr_fast.cuda.found import LANES

SCHEDULES = ("forward", "reverse", "shuffle")


class SimulationError(Exception):
    """A kernel did what no device allows."""


class Dim3(NamedTuple):
    """As `cuda.threadIdx`."""

    x: int
    y: int
    z: int


class Meeting(NamedTuple):
    """What a lane waits for: the place in the kernel, what it brings, and what is made of the values of all lanes, one result for each."""

    place: tuple[str, int]
    value: Any
    act: Callable[[list[Any]], list[Any]]


class Thread:
    """One thread of the block that runs: where it is, the barrier or the meeting it waits at and what came of that, how many shared arrays it has
    asked for, its groups of copies that are under way, of which the last is open."""

    __slots__ = ("barrier", "copies", "index", "meeting", "place", "result", "shared")

    def __init__(self, index: Dim3, body: Callable[[], None]) -> None:
        self.index, self.place = index, greenlet.greenlet(body)
        self.barrier, self.shared = ("", 0), 0
        self.meeting: Meeting | None = None
        self.result: Any = None
        self.copies: list[list[Callable[[], None]]] = [[]]


class Block:
    """A block: its warps run one after the other from barrier to barrier, and so do their threads, from meeting to meeting."""

    def __init__(self, kernel: Callable[..., None], arguments: tuple[Any, ...], index: Dim3, block: Dim3, grid: Dim3, dynamic: ndarray) -> None:
        self.index, self.dim, self.grid, self.dynamic = index, block, grid, dynamic
        self.shared: list[ndarray] = []
        self.scheduler = greenlet.getcurrent()

        def body() -> None:
            """What each thread runs."""
            with np.errstate(all="ignore"):  # as on a device; a greenlet has a context of its own
                kernel(*arguments)

        places = product(range(block.z), range(block.y), range(block.x))
        self.threads = [Thread(Dim3(x, y, z), body) for z, y, x in places]
        self.warps = [self.threads[i : i + LANES] for i in range(0, len(self.threads), LANES)]
        self.current = self.threads[0]

    def run(self, order: Callable[[list[Any]], list[Any]]) -> None:
        """Until all threads have ended."""
        alive = self.threads
        while alive:
            for warp in order(self.warps):
                self.run_warp(warp, order)
            alive = [thread for thread in self.threads if not thread.place.dead]
            self.check_barrier(alive)

    def run_warp(self, warp: list[Thread], order: Callable[[list[Any]], list[Any]]) -> None:
        """Until its threads are at a barrier, or have ended."""
        ready = [thread for thread in warp if not thread.place.dead]
        while ready:
            for thread in order(ready):
                self.current = thread
                try:
                    thread.place.switch()
                except Exception as error:
                    error.add_note(f"in thread {tuple(thread.index)} of block {tuple(self.index)}")
                    raise
            ready = [thread for thread in warp if thread.meeting]
            self.hold_meeting(ready)

    def hold_meeting(self, lanes: list[Thread]) -> None:
        """What came of it is each lane's result. Raises SimulationError unless all lanes of the warp wait at one meeting, or none does."""
        meetings = [thread.meeting for thread in lanes if thread.meeting]
        places = {meeting.place for meeting in meetings}
        if len(places) > 1 or 0 < len(lanes) < LANES:
            said = ", ".join(f"{name}:{line}" for name, line in sorted(places))
            raise SimulationError(f"divergent warp in block {tuple(self.index)}: {len(lanes)} of {LANES} lanes meet at {said}")
        if meetings:
            for thread, result in zip(lanes, meetings[0].act([meeting.value for meeting in meetings]), strict=True):
                thread.meeting, thread.result = None, result

    def check_barrier(self, waiting: list[Thread]) -> None:
        """Raises SimulationError unless all threads wait at one barrier, or none does."""
        lines = {thread.barrier for thread in waiting}
        if len(lines) > 1 or 0 < len(waiting) < len(self.threads):
            ended = len(self.threads) - len(waiting)
            places = ", ".join(f"{name}:{line}" for name, line in sorted(lines))
            raise SimulationError(f"divergent barrier in block {tuple(self.index)}: {len(waiting)} threads wait at {places}, {ended} have ended")


class Shared:
    """`cuda.shared`."""

    def array(self, shape: int | tuple[int, ...], dtype: Any, alignment: int = 1) -> ndarray:
        """The n-th call of every thread gives one and the same array; its address is no multiple of more than it has to be. No items: all that the
        launch asked for besides, always the same bytes.
        """
        block = running()
        if shape == 0:
            return block.dynamic.view(dtype)
        thread = block.current
        if thread.shared == len(block.shared):
            block.shared.append(just_aligned(poisoned(shape, dtype), alignment))
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
        """The thread's place in its block."""
        return running().current.index

    @property
    def blockIdx(self) -> Dim3:
        """The block's place in the grid."""
        return running().index

    @property
    def blockDim(self) -> Dim3:
        """Threads of a block."""
        return running().dim

    @property
    def gridDim(self) -> Dim3:
        """Blocks of the grid."""
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


def meet(value: Any, act: Callable[[list[Any]], list[Any]]) -> Any:
    """This lane's part of `act` on the values of all lanes of the warp, for a primitive that a kernel calls: the kernel's line is the place."""
    caller, block = sys._getframe(2), running()
    thread = block.current
    thread.meeting = Meeting((caller.f_code.co_qualname, caller.f_lineno), value, act)
    block.scheduler.switch()
    return thread.result


def poisoned(shape: int | tuple[int, ...], dtype: Any) -> ndarray:
    """An array that nobody has written to yet."""
    kind = np.dtype(dtype)
    return np.full(shape, np.nan if kind.kind == "f" else np.iinfo(kind).max, kind)


def just_aligned(array: ndarray, alignment: int) -> ndarray:
    """A copy whose address is an odd multiple of the item size or of the alignment, whichever is more."""
    step = max(array.itemsize, alignment)
    room = np.empty(array.nbytes + 3 * step, np.uint8)
    first = -room.ctypes.data % (2 * step) + step
    copy = room[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


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


def launch(kernel: Callable[..., None], grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...], dynamic: int = 0) -> None:
    """Run a kernel over a grid of blocks, each with so many bytes of shared memory besides its own arrays."""
    order = order_of(_state["schedule"])
    blocks, dim = dim3(grid), dim3(block)
    if min(blocks) < 1 or min(dim) < 1:
        raise SimulationError(f"a grid of {grid} blocks of {block} threads cannot be launched")
    try:
        for z, y, x in order(list(product(range(blocks.z), range(blocks.y), range(blocks.x)))):
            pool = just_aligned(np.full(dynamic, 0xFF, np.uint8), 16)  # NaN in every storage, −1 in integers
            _state["block"] = Block(kernel, arguments, Dim3(x, y, z), dim, blocks, pool)
            _state["block"].run(order)
    finally:
        _state["block"] = None


def dim3(size: tuple[int, ...]) -> Dim3:
    """One, two or three sizes."""
    x, y, z = (*size, 1, 1)[:3]
    return Dim3(x, y, z)
