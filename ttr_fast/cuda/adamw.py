"""AdamW on the GPU; the mathematics is in ttr_ref/adamw.py.

One pass over a leaf does what the oracle does in four: the loss scale and clipping are one factor of the gradient, the moments and the master weights
move, and their copy in storage type is written. Operations run in the oracle's order, none fused, so master weights and moments have its bits.
The norm and the factor stay on the device; where the norm is not finite nothing moves.

Ladder:
1. A thread owns a number of the leaf. Norm: a block owns BLOCK numbers, each thread every THREADS-th, then a tree, in float64; one more block adds
   what the blocks found, in the same way. Measured: not yet, no device.
"""

import math

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from ttr_fast.cuda.jit import blocks_for, cuda, kernel
from ttr_fast.cuda.numbers import number, sqrt, store, times
from ttr_fast.cuda.rows import block_sum
from ttr_ref.config import TrainConfig

BLOCK, THREADS = 4096, 128
NORM, FACTOR = 0, 1


def blocks_of(size: int) -> int:
    """How many numbers of the buffer for the norm's partial sums a leaf of this size takes."""
    return -(-size // BLOCK)


def step_numbers(steps: int, learning_rate: float, share: float, decay: float, config: TrainConfig) -> Float64[ndarray, "9"]:
    """What `move` is told of one leaf; steps counts this one; share and decay are the oracle's ρ and 0 or 1."""
    b1, b2 = config.beta1, config.beta2
    rate, shrinking = learning_rate * share, learning_rate * config.weight_decay * decay
    return np.array([b1, 1 - b1, b2, 1 - b2, 1 - b1**steps, 1 - b2**steps, config.adam_eps, rate, shrinking])


@kernel("C[::1], C[::1], C[::1], C[::1], S[::1], float64[::1], float64[::1]", registers=40, threads=THREADS)
def move(theta, m, v, g, copy, numbers, clip):
    """One thread for each number."""
    i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if i < theta.size and math.isfinite(clip[NORM]):
        x = times(g[i], number(g, clip[FACTOR]))
        m_new = times(m[i], number(g, numbers[0])) + times(x, number(g, numbers[1]))
        v_new = times(v[i], number(g, numbers[2])) + times(times(x, number(g, numbers[3])), x)
        step = m_new / number(g, numbers[4]) / (sqrt(v_new / number(g, numbers[5])) + number(g, numbers[6]))
        new = theta[i] - times(step, number(g, numbers[7])) - times(theta[i], number(g, numbers[8]))
        m[i], v[i], theta[i] = m_new, v_new, new
        store(new, copy, i)


def adamw_step(theta, m, v, g, copy, numbers, clip) -> None:
    """One leaf, flat and in place; numbers: step_numbers; clip: global_norm's. copy is what the network computes with, theta itself if it is that."""
    if theta.size:
        move[blocks_for(theta.size, THREADS), THREADS](theta, m, v, g, copy, numbers, clip)


@kernel("C[::1], float64[::1], int64", registers=32, shared=8 * THREADS, threads=THREADS)
def square_blocks(g, partial, first):
    """partial[first + c] = Σ g² over block c."""
    scratch = cuda.shared.array(THREADS, np.float64)
    c, s = cuda.blockIdx.x, 0.0
    for i in range(c * BLOCK + cuda.threadIdx.x, min(g.size, c * BLOCK + BLOCK), THREADS):
        x = float(g[i])
        s += x * x
    s = block_sum(scratch, s)
    if cuda.threadIdx.x == 0:
        partial[first + c] = s


@kernel("float64[::1], float64, float64, float64[::1]", registers=32, shared=8 * THREADS, threads=THREADS)
def norm_and_factor(partial, scale, largest, clip):
    """One block."""
    scratch, s = cuda.shared.array(THREADS, np.float64), 0.0
    for i in range(cuda.threadIdx.x, partial.size, THREADS):
        s += partial[i]
    norm = sqrt(block_sum(scratch, s)) / scale
    if cuda.threadIdx.x == 0:
        clip[NORM] = norm
        clip[FACTOR] = (largest / norm if norm > largest else 1.0) / scale


def global_norm(grads: list[ndarray], scale: float, largest: float, partial, clip) -> None:
    """clip (2,) float64 = the norm of the gradients / scale, not a finite number where one of them is not; what each is to be multiplied by, so that
    the norm is at most `largest` and the scale is gone.

    grads: flat leaves; partial float64, as long as the sum of blocks_of their sizes.
    """
    first = 0
    for g in grads:
        if g.size:
            square_blocks[blocks_of(g.size), THREADS](g, partial, first)
            first += blocks_of(g.size)
    norm_and_factor[1, THREADS](partial, scale, largest, clip)
