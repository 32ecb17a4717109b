"""The density of the next gap on the GPU; the mathematics is in ttr_ref/time_head.py.

The projection u W is a matrix product of whoever calls: kernels take its rows (N, 3M) in the type of arithmetic and the bias, and do all that follows
in float64. The mixture is formed as often as it is needed, since a row's components have no place to wait in.

Ladder:
1. A thread owns a row. The bias's gradient is summed from gradients that are not rounded yet, chunk by chunk of rows. Measured: not yet, no device.
"""

import math

from ttr_fast.cuda.jit import blocks_for, cuda, inner, kernel
from ttr_fast.cuda.numbers import exp, log, number, store
from ttr_fast.cuda.rows import CHUNK, sum_chunks
from ttr_ref.time_head import HALF_LN_TURN

THREADS = 64


@inner
def parts(raw, bias, i, j, resolution):
    """Logit, μ, σ and r_t e^(−μ) of component j of row i."""
    components = raw.shape[1] // 3
    mu = float(raw[i, components + j]) + float(bias[components + j])
    floor = resolution * exp(-mu)
    s = float(raw[i, 2 * components + j]) + float(bias[2 * components + j])
    return float(raw[i, j]) + float(bias[j]), mu, exp(s) + floor, floor


@inner
def joint_density(raw, bias, i, j, resolution, log_gap, total):
    """ln w_j + ln LogNormal_j(gap)."""
    logit, mu, sigma, _ = parts(raw, bias, i, j, resolution)
    z = (log_gap - mu) / sigma
    return logit - total - log_gap - log(sigma) - HALF_LN_TURN - 0.5 * z * z


@inner
def row_logarithms(raw, bias, i, resolution, log_gap):
    """ln Σ exp of row i's logits and of its joint densities."""
    components, top, s = raw.shape[1] // 3, -math.inf, 0.0
    for j in range(components):
        top = max(top, float(raw[i, j]) + float(bias[j]))
    for j in range(components):
        s += exp(float(raw[i, j]) + float(bias[j]) - top)
    total = top + log(s)
    top, s = -math.inf, 0.0
    for j in range(components):
        top = max(top, joint_density(raw, bias, i, j, resolution, log_gap, total))
    for j in range(components):
        s += exp(joint_density(raw, bias, i, j, resolution, log_gap, total) - top)
    return total, top + log(s)


@kernel("C[:, ::1], C[::1], float64[::1], float64, float64[::1]", registers=72, threads=THREADS)
def mixture_nats(raw, bias, gap, resolution, nats):
    """One thread for each row."""
    i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if i < nats.size:
        nats[i] = -row_logarithms(raw, bias, i, resolution, log(max(gap[i], resolution / 2)))[1]


def time_head_forward(raw, bias, gap, resolution: float, nats) -> None:
    """nats (N,) float64 = −ln p(gap); raw (N, 3M) = u W without its bias (3M,), both in the type of arithmetic;
    gap (N,) float64."""
    mixture_nats[blocks_for(nats.size, THREADS), THREADS](raw, bias, gap, resolution, nats)


@kernel("float64[::1], C[:, ::1], C[::1], float64[::1], float64, S[:, ::1], float64[:, ::1]", registers=88, threads=THREADS)
def mixture_gradients(dnats, raw, bias, gap, resolution, draw, wide):
    """One thread for each row; `wide` is draw before it is rounded."""
    i, components = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, raw.shape[1] // 3
    if i < dnats.size:
        log_gap = log(max(gap[i], resolution / 2))
        total, log_p = row_logarithms(raw, bias, i, resolution, log_gap)
        for j in range(components):
            logit, mu, sigma, floor = parts(raw, bias, i, j, resolution)
            z, r = (log_gap - mu) / sigma, exp(joint_density(raw, bias, i, j, resolution, log_gap, total) - log_p)
            dsigma = r * (1 - z * z) / sigma
            wide[i, j] = (exp(logit - total) - r) * dnats[i]
            wide[i, components + j] = (-r * z / sigma - dsigma * floor) * dnats[i]
            wide[i, 2 * components + j] = dsigma * (sigma - floor) * dnats[i]
        for j in range(raw.shape[1]):
            store(number(raw, wide[i, j]), draw, (i, j))


@kernel("float64[:, ::1], float64[:, ::1]", registers=32, threads=THREADS)
def row_chunks(wide, partial):
    """partial[c] = the sum of the rows of chunk c, a thread a column."""
    c, k = cuda.blockIdx.y, cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if k < wide.shape[1]:
        s = 0.0
        for i in range(c * CHUNK, min(wide.shape[0], c * CHUNK + CHUNK)):
            s += wide[i, k]
        partial[c, k] = s


def time_head_backward(dnats, raw, bias, gap, resolution: float, draw, dbias, wide, partial) -> None:
    """draw (N, 3M) of any storage, which may be raw, and dbias (3M,) like the bias from dnats (N,) float64.

    wide (N, 3M) and partial (rows.chunks_of(N), 3M) float64 are scratch.
    """
    mixture_gradients[blocks_for(dnats.size, THREADS), THREADS](dnats, raw, bias, gap, resolution, draw, wide)
    row_chunks[(blocks_for(wide.shape[1], THREADS), partial.shape[0]), THREADS](wide, partial)
    sum_chunks(partial, dbias)
