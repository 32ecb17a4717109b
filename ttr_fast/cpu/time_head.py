"""The density of the next gap on the CPU; the mathematics is in ttr_ref/time_head.py.

The projection u W is a matrix product of whoever calls: kernels take its rows (N, 3M) in the type of arithmetic and the bias, and do all that follows
in float64, one row at a time. Backward forms the mixture again; the bias's gradient is summed chunk by chunk of rows (rows.py).
"""

import numpy as np

from ttr_fast.cpu import rows
from ttr_fast.cpu.jit import inner
from ttr_fast.cpu.rows import CHUNK
from ttr_fast.cpu.team import share, team
from ttr_ref.time_head import HALF_LN_TURN


@inner()
def log_sum(a):
    """ln Σ exp a."""
    top = a[0]
    for x in a:
        top = max(top, x)
    s = 0.0
    for x in a:
        s += np.exp(x - top)
    return top + np.log(s)


@inner()
def mixture_row(raw, bias, gap, resolution, mixture):
    """mixture (5, M): logits, joint log densities, σ, z and r_t e^(−μ) of one row; returns ln Σ exp of the first and of the second."""
    components = raw.size // 3
    log_gap = np.log(max(gap, resolution / 2))
    for j in range(components):
        mixture[0, j] = raw[j] + bias[j]
    total = log_sum(mixture[0])
    for j in range(components):
        mu = raw[components + j] + bias[components + j]
        floor = resolution * np.exp(-mu)
        sigma = np.exp(raw[2 * components + j] + bias[2 * components + j]) + floor
        z = (log_gap - mu) / sigma
        mixture[1, j] = mixture[0, j] - total - log_gap - np.log(sigma) - HALF_LN_TURN - 0.5 * z * z
        mixture[2, j], mixture[3, j], mixture[4, j] = sigma, z, floor
    return total, log_sum(mixture[1])


@team()
def mixture_nats(worker, workers, raw, bias, gap, resolution, nats):
    """Chunks of rows, each with a scratch of its own."""
    n, width = raw.shape
    begin, end = share(worker, workers, (n + CHUNK - 1) // CHUNK)
    for c in range(begin, end):
        mixture = np.empty((5, width // 3))
        for i in range(c * CHUNK, min(n, c * CHUNK + CHUNK)):
            nats[i] = -mixture_row(raw[i], bias, gap[i], resolution, mixture)[1]


def time_head_forward(raw, bias, gap, resolution: float, nats) -> None:
    """nats (N,) float64 = −ln p(gap); raw (N, 3M) = u W without its bias; bias (3M,), gap (N,) float64."""
    mixture_nats(raw, bias, gap, resolution, nats)


@team()
def mixture_gradients(worker, workers, dnats, raw, bias, gap, resolution, draw, partial):
    """Chunks of rows; partial[c] is the sum of their gradients before these are rounded."""
    n, width = raw.shape
    components = width // 3
    begin, end = share(worker, workers, partial.shape[0])
    for c in range(begin, end):
        mixture, d = np.empty((5, components)), np.empty(width)
        partial[c] = 0
        for i in range(c * CHUNK, min(n, c * CHUNK + CHUNK)):
            total, log_p = mixture_row(raw[i], bias, gap[i], resolution, mixture)
            for j in range(components):
                logit, joint, sigma, z, floor = mixture[0, j], mixture[1, j], mixture[2, j], mixture[3, j], mixture[4, j]
                r = np.exp(joint - log_p)
                dsigma = r * (1 - z * z) / sigma
                d[j] = np.exp(logit - total) - r
                d[components + j] = -r * z / sigma - dsigma * floor
                d[2 * components + j] = dsigma * (sigma - floor)
            for j in range(width):
                d[j] *= dnats[i]
                draw[i, j] = d[j]
                partial[c, j] += d[j]


def time_head_backward(dnats, raw, bias, gap, resolution: float, draw, dbias, partial) -> None:
    """draw (N, 3M) in the type of arithmetic, which may be raw, and dbias (3M,) float64 from dnats (N,) float64.

    partial (rows.chunks_of(N), 3M) float64 is scratch.
    """
    mixture_gradients(dnats, raw, bias, gap, resolution, draw, partial)
    rows.sum_chunks(partial, dbias)
