"""The GPU as workers see it: its clock, its cache, what it multiplies and copies at most.

Peaks of float32 and float64 are those of multiply-adds in registers (ttr_fast/cuda/peak.py). 16-bit numbers have no such kernel: for them it is the
speed of one large product, by PyTorch's cuBLAS where that is there, else by our own, and the text says which.

In the simulator the clock is the host's and everything is tiny, so that every line can be run anywhere. Such times say nothing of a GPU.
"""

import functools
import importlib
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ttr_fast.bench import gemm, machine
from ttr_fast.bench.case import OURS, Prepared
from ttr_fast.cuda import found
from ttr_fast.cuda.jit import SIMULATED, cuda
from ttr_fast.cuda.peak import THREADS, multiply_adds, operations
from ttr_fast.cuda.workspace import new_array

BEYOND = 2
"""How many times larger than the cache all inputs together are that take turns."""
MOST_COPIES = 64
BLOCKS_PER_PROCESSOR = 8
PEAK_REPEATS, PRODUCT, COPIED_BYTES = (1, 32, 2**12) if SIMULATED else (4096, 8192, 2**31)
SIMULATED_CACHE = 2**10
COPIES = 10
"""Of the buffer, in one sample of bandwidth."""


def seconds_of(call: Callable[[], Any], calls: int) -> float:
    """Mean of consecutive calls between two events of the device."""
    if SIMULATED:
        return machine.seconds_of(call, calls)
    start, stop = cuda.event(), cuda.event()
    start.record()
    for _ in range(calls):
        call()
    stop.record()
    stop.synchronize()
    return float(cuda.event_elapsed_time(start, stop)) / 1e3 / calls


def cache_bytes() -> int:
    """Of the last cache before memory."""
    return SIMULATED_CACHE if SIMULATED else int(cuda.get_current_device().L2_CACHE_SIZE)


def rotated(make: Callable[[], Prepared], size: int, cache: int) -> Prepared:
    """A side whose calls take turns over as many copies of it, each of about `size` bytes, as exceed `cache`: none finds its inputs there."""
    copies = [make() for _ in range(min(MOST_COPIES, max(1, math.ceil(BEYOND * cache / size))))]
    turn = itertools.cycle(copies)
    return copies[0]._replace(call=lambda: next(turn).call())


class Peak(NamedTuple):
    """What is called to find the peak, its operations and its clock."""

    call: Callable[[], Any]
    flops: int
    text: str
    clock: Callable[[Callable[[], Any], int], float]

    def gflops(self) -> float:
        """One sample."""
        return self.flops / self.clock(self.call, 1) / 1e9


def matrix_peak(side: str, dtype: str) -> Peak:
    """The fastest multiply-adds of numbers of this type; 16-bit ones by the side that asks."""
    if dtype in ("f32", "f64"):
        kind = np.float64 if dtype == "f64" else np.float32
        blocks = 1 if SIMULATED else BLOCKS_PER_PROCESSOR * cuda.get_current_device().MULTIPROCESSOR_COUNT
        threads = 32 if SIMULATED else THREADS
        numbers = new_array((blocks * threads,), kind)
        call = functools.partial(multiply_adds[blocks, threads], numbers, kind(0.5), kind(1), PEAK_REPEATS)
        peak = Peak(call, operations(blocks * threads, PEAK_REPEATS), f"{dtype} multiply-adds in registers", seconds_of)
    else:
        case = gemm.Case(dtype=dtype, threads=1, backend="cuda", m=PRODUCT, k=PRODUCT, n=PRODUCT)
        product: Prepared = importlib.import_module("ttr_fast.bench.cuda_gemm").SIDES[side](case)
        assert product.seconds_of is not None
        who = "our own product" if side == OURS else "PyTorch's cuBLAS"
        peak = Peak(product.call, case.flops, f"{dtype} products of {PRODUCT} × {PRODUCT} matrices by {who}", product.seconds_of)
    peak.call()  # compiled
    return peak


def bandwidth(side: str) -> float:
    """GB/s of a large copy, what is read and what is written both counted."""
    if side != OURS:
        return float(importlib.import_module("ttr_fast.bench.cuda_torch").bandwidth(COPIED_BYTES, COPIES))
    source, target = new_array((COPIED_BYTES,), np.uint8), new_array((COPIED_BYTES,), np.uint8)
    copy = functools.partial(np.copyto, target, source) if SIMULATED else functools.partial(target.copy_to_device, source)
    return max(2 * COPIED_BYTES / seconds_of(copy, COPIES) / 1e9 for _ in range(machine.PEAK_SAMPLES))


def description(side: str, threads: int) -> str:
    """Which libraries a side runs on, and which device."""
    if side.startswith("torch"):
        return str(importlib.import_module("ttr_fast.bench.cuda_torch").description())
    if side == "numpy":
        return machine.description(side, threads)
    if SIMULATED:
        return "the simulator, no GPU"
    return f"numba-cuda {found.package_version('numba-cuda')} on {cuda.get_current_device().name}"
