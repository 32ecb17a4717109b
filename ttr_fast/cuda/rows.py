"""What kernels over rows share: sums over a block's threads, sums over rows, sine and cosine.

Floats are never added atomically, since that would be a sum in an order of its own each time. A sum over the threads of a block is a tree. A sum over
rows, as a weight's gradient, is formed in CHUNK rows each, one thread a column, and then added chunk by chunk: the order depends on the sizes alone.

Ladder of `sum_chunks`:
1. One thread a column, neighbours read neighbours. Measured: not yet, no device.

    sin x, cos x    x − n π/2 = r, |r| ≤ π/4, with π/2 in two parts; Taylor's series in r², in float64 always. libdevice's own would take a stack,
                    for arguments that are not reduced.
"""

import math

import numpy as np

from ttr_fast.cuda.jit import blocks_for, cuda, inner, kernel
from ttr_fast.cuda.numbers import number, rint, store, times
from ttr_ref.time2vec import TURN

THREADS = 128
"""Threads of a block that works on a row."""
CHUNK = 64
"""Rows whose sums are formed together."""
HALF_PI_HIGH, HALF_PI_LOW = math.pi / 2, 6.123233995736766e-17
S1, S2, S3, S4, S5, S6, S7, S8 = ((-1) ** k / math.factorial(2 * k + 1) for k in range(1, 9))
C1, C2, C3, C4, C5, C6, C7, C8, C9 = ((-1) ** k / math.factorial(2 * k) for k in range(1, 10))


def chunks_of(rows: int) -> int:
    """How many chunks: the first axis of the buffers for partial sums."""
    return -(-rows // CHUNK)


@inner
def block_sum(scratch, value):
    """The sum of every thread's value, to all of them; scratch holds one number for each thread of the block, a power of two."""
    t, half = cuda.threadIdx.x, cuda.blockDim.x // 2
    scratch[t] = value
    cuda.syncthreads()
    while half > 0:
        if t < half:
            scratch[t] += scratch[t + half]
        cuda.syncthreads()
        half //= 2
    total = scratch[0]
    cuda.syncthreads()
    return total


@inner
def block_max(scratch, value):
    """The largest of every thread's value, to all of them; NaN where it is the first thread's."""
    t, half = cuda.threadIdx.x, cuda.blockDim.x // 2
    scratch[t] = value
    cuda.syncthreads()
    while half > 0:
        if t < half and scratch[t + half] > scratch[t]:
            scratch[t] = scratch[t + half]
        cuda.syncthreads()
        half //= 2
    largest = scratch[0]
    cuda.syncthreads()
    return largest


@kernel(("C[:, ::1], C[::1]", "float64[:, ::1], C[::1]"), registers=32, threads=THREADS)
def add_chunks(partial, total):
    """total[k] = Σ_c partial[c, k], in order."""
    k = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if k < total.size:
        s = number(partial, 0)
        for c in range(partial.shape[0]):
            s += partial[c, k]
        total[k] = s


def sum_chunks(partial, total) -> None:
    """total (K,) from partial (chunks, K), which is of the same type or float64."""
    add_chunks[blocks_for(total.size, THREADS), THREADS](partial, total)


@kernel("S[::1], C", registers=16, threads=THREADS)
def fill_items(a, value):
    """One thread for each item."""
    i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if i < a.size:
        store(value, a, i)


def fill(a, value: float) -> None:
    """Every item of an array of any storage and shape."""
    compute = np.float64 if a.dtype == np.float64 else np.float32
    fill_items[blocks_for(a.size, THREADS), THREADS](a.reshape(-1), compute(value))


@kernel("C[::1], S[::1]", registers=16, threads=THREADS)
def store_items(x, y):
    """One thread for each item."""
    i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if i < y.size:
        store(x[i], y, i)


def to_storage(x, y) -> None:
    """y, of any storage, = x in its type of arithmetic, rounded once; of one shape."""
    store_items[blocks_for(y.size, THREADS), THREADS](x.reshape(-1), y.reshape(-1))


@kernel("C[::1], boolean, C[::1]", registers=16, threads=THREADS)
def add_items(x, add, y):
    """One thread for each item."""
    i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if i < y.size:
        y[i] = y[i] + x[i] if add else x[i]


def accumulate(x, add: bool, y) -> None:
    """y = x, or y + x, of one shape, in the type of arithmetic."""
    add_items[blocks_for(y.size, THREADS), THREADS](x.reshape(-1), add, y.reshape(-1))


@inner
def reduced(x):
    """x less the nearest whole number of turns, with the oracle's roundings."""
    return x - times(TURN, rint(x / TURN))


@inner
def sine_and_cosine(x):
    """Of a float64 within a turn or two of 0."""
    n = rint(x / HALF_PI_HIGH)
    r = (x - times(n, HALF_PI_HIGH)) - times(n, HALF_PI_LOW)
    q, s = int(n) & 3, r * r
    sine = r + r * s * (S1 + s * (S2 + s * (S3 + s * (S4 + s * (S5 + s * (S6 + s * (S7 + s * S8)))))))
    cosine = 1 + s * (C1 + s * (C2 + s * (C3 + s * (C4 + s * (C5 + s * (C6 + s * (C7 + s * (C8 + s * C9))))))))
    a, b = (cosine, sine) if q & 1 else (sine, cosine)
    return -a if q & 2 else a, -b if (q + 1) & 2 else b
