"""What a GPU multiplies and adds at most without tensor cores: chains of numbers that never leave registers.

The shares of peak that benchmarks report in float32 and float64 are shares of this.

Ladder:
1. A thread has CHAINS numbers, enough to hide how long a multiply-add takes behind those of the others. Measured: not yet, no device.
"""

from ttr_fast.cuda.jit import cuda, kernel
from ttr_fast.cuda.numbers import compute_type

CHAINS, STEPS, THREADS = 8, 16, 256


@kernel("C[::1], C, C, int64", registers=32, threads=THREADS)
def multiply_adds(out, a, b, repeats):
    """out[i] = Σ of CHAINS numbers x, at first out[i] … out[i] + CHAINS − 1, each made x a + b STEPS · repeats times; a thread for each i."""
    i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    x = cuda.local.array(CHAINS, compute_type(out))
    for c in range(CHAINS):
        x[c] = out[i] + c
    for _ in range(repeats):
        for _ in range(STEPS):
            for c in range(CHAINS):
                x[c] = x[c] * a + b
    total = x[0]
    for c in range(1, CHAINS):
        total += x[c]
    out[i] = total


def operations(threads: int, repeats: int) -> int:
    """Multiplications and additions of one launch."""
    return 2 * CHAINS * STEPS * threads * repeats
