"""What the machine can do at most: matrix products that never leave the first cache, and reading a buffer that fits in none.

The shares of peak that benchmarks report are shares of the first number; the slope of a roofline is the second.
"""

import functools

import numpy as np
from jaxtyping import Float64, Inexact
from numba import get_num_threads
from numpy import ndarray

from ttr_fast.cpu.simd import add, load, splat, total
from ttr_fast.cpu.team import share, team
from ttr_fast.cpu.tiles import multiply

SHAPES = ((12, 2), (8, 2), (6, 1))
"""Rows and vectors of the tiles that are tried: accumulators for 32, for 16 wide and for 16 narrow registers."""
TERMS = 128
"""Long enough that adding to C hardly counts, short enough that a tile of A and one of B fit into 32 KiB."""
APART = 1024
"""Items between the tiles of two threads, so that they share no line of a cache."""


@functools.cache
def products_kernel(rows: int, columns: int):
    """Each thread multiplies its own tiles `repeats` times."""

    @team((rows, columns), worth=1)
    def products(worker, workers, a, b, c, lanes, repeats):
        width = columns * lanes
        for _ in range(repeats):
            multiply(TERMS, a, worker * a.shape[1], TERMS, 1, b, worker * b.shape[1], width, c, worker * c.shape[1], width, rows, columns)

    return products


class TileProducts:
    """Work for every thread that reads and writes its first cache only."""

    def __init__(self, rows: int, columns: int, dtype: type) -> None:
        self.lanes, threads = 64 // np.dtype(dtype).itemsize, get_num_threads()
        width, rng = columns * self.lanes, np.random.default_rng(0)
        self.a = rng.random((threads, rows * TERMS + APART)).astype(dtype)
        self.b = rng.random((threads, TERMS * width + APART)).astype(dtype)
        self.c = np.zeros((threads, rows * width + APART), dtype)
        self.kernel = products_kernel(rows, columns)
        self.flops_per_repeat = 2 * threads * rows * width * TERMS

    def run(self, repeats: int) -> None:
        """self.flops_per_repeat · repeats operations."""
        self.kernel(self.a, self.b, self.c, self.lanes, repeats)


@team()
def sums(worker, workers, x, parts):
    """parts[t, 0] = Σ of the t-th part of x, whose size is a multiple of 64 times the number of parts; four vectors in flight."""
    start, end = share(worker, workers, x.size)
    s, u, v, w = splat(np.float32(0)), splat(np.float32(0)), splat(np.float32(0)), splat(np.float32(0))
    for i in range(start, end, 64):
        s, u = add(s, load(x, i)), add(u, load(x, i + 16))
        v, w = add(v, load(x, i + 32)), add(w, load(x, i + 48))
    parts[worker, 0] = total(add(add(s, u), add(v, w)))


def read_through(x: Inexact[ndarray, "n"]) -> Float64[ndarray, "threads"]:
    """The sum of each thread's part of a float32 array, each number read once. n must be a multiple of 64 times the number of threads."""
    parts = np.zeros((get_num_threads(), 16))
    sums(x, parts)
    return parts[:, 0]
