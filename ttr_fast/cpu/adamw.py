"""AdamW on the CPU; the mathematics is in ttr_ref/adamw.py.

One pass over a leaf does what the oracle does in four: the loss scale and clipping are one factor of the gradient, the moments and the master weights
move, and their copy in storage type is written. Operations run in the oracle's order, none fused, so master weights and moments have its bits.
"""

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from ttr_fast.cpu import rows, simd
from ttr_fast.cpu.jit import kernel
from ttr_fast.cpu.team import share, team
from ttr_ref.config import TrainConfig

BLOCK = 4096
"""Numbers of a leaf that one thread takes at a time; also the terms of one partial sum of the norm."""


def blocks_of(size: int) -> int:
    """How many blocks: the length of the buffer for the norm's partial sums."""
    return -(-size // BLOCK)


def step_numbers(steps: int, learning_rate: float, share: float, decay: float, factor: float, config: TrainConfig) -> Float64[ndarray, "10"]:
    """What `move` is told of one leaf.

    steps counts this one; share and decay are the oracle's ρ and 0 or 1; factor multiplies the gradient: clipping's share / the loss scale.
    """
    b1, b2 = config.beta1, config.beta2
    rate, shrinking = learning_rate * share, learning_rate * config.weight_decay * decay
    return np.array([factor, b1, 1 - b1, b2, 1 - b2, 1 - b1**steps, 1 - b2**steps, config.adam_eps, rate, shrinking])


@team()
def move(worker, workers, theta, m, v, g, copy, numbers):
    """theta, m, v, g flat, of one type of arithmetic; copy of any storage, or None."""
    size = theta.size
    lanes = rows.lanes_of(theta)
    begin, end = share(worker, workers, (size + BLOCK - 1) // BLOCK)
    for block in range(begin, end):
        first = block * BLOCK
        for i in range(first, min(first + BLOCK, size), lanes):
            n = size - i
            x = simd.mul(rows.load_part(g, i, n), rows.full(theta, numbers[0]))
            m_new = simd.add(simd.mul(rows.load_part(m, i, n), rows.full(theta, numbers[1])), simd.mul(x, rows.full(theta, numbers[2])))
            squares = simd.mul(simd.mul(x, rows.full(theta, numbers[4])), x)
            v_new = simd.add(simd.mul(rows.load_part(v, i, n), rows.full(theta, numbers[3])), squares)
            rows.store_part(m_new, m, i, n)
            rows.store_part(v_new, v, i, n)
            root = simd.add(simd.sqrt(simd.div(v_new, rows.full(theta, numbers[6]))), rows.full(theta, numbers[7]))
            step = simd.div(simd.div(m_new, rows.full(theta, numbers[5])), root)
            old = rows.load_part(theta, i, n)
            new = simd.sub(old, simd.mul(step, rows.full(theta, numbers[8])))
            new = simd.sub(new, simd.mul(old, rows.full(theta, numbers[9])))
            rows.store_part(new, theta, i, n)
            if copy is not None:
                rows.store_part(new, copy, i, n)


def adamw_step(theta, m, v, g, copy, numbers) -> None:
    """One leaf, in place; numbers: step_numbers. copy (None: none is wanted) is what the network computes with."""
    move(theta.reshape(-1), m.reshape(-1), v.reshape(-1), g.reshape(-1), None if copy is None else copy.reshape(-1), numbers)


@team()
def square_blocks(worker, workers, g, partial):
    """partial[c] = Σ g² over block c, in float64."""
    size = g.size
    begin, end = share(worker, workers, partial.size)
    for c in range(begin, end):
        s = simd.splat(0.0)
        for i in range(c * BLOCK, min(size, c * BLOCK + BLOCK), 8):
            x = rows.load_wide(g, i, size - i)
            s = simd.fma(x, x, s)
        partial[c] = simd.total(s)


@kernel()
def ordered_sum(partial):
    """Σ partial, one by one."""
    s = 0.0
    for x in partial:
        s += x
    return s


def sum_of_squares(g, partial) -> float:
    """Σ g² of one leaf, not a finite number where one of g is not; partial (blocks_of(g.size),) float64 is scratch."""
    square_blocks(g.reshape(-1), partial)
    return float(ordered_sum(partial))


def global_norm(grads: list[ndarray], partial) -> float:
    """√ Σ g² over all leaves in the order given; partial float64, long enough for the largest leaf. Divided by the loss scale it is the oracle's."""
    return float(np.sqrt(sum(sum_of_squares(g, partial[: blocks_of(g.size)]) for g in grads)))
