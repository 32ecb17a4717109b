"""Rotary embedding on the GPU; the mathematics is in ttr_ref/rope.py.

One pass takes the rows of the projection, features of one head after the other, and writes what attention reads: an axis of heads before that of
places. Angles are formed in float64, with the oracle's own roundings; their cosine and sine (N, D/2) are kept in the type of arithmetic, one for all
blocks of the network. Backward does the same in the other direction.

Ladder:
1. A thread owns one pair of features of one head of one token. ω's gradient: a thread owns a pair, a block CHUNK tokens, then rows.sum_chunks.
   Measured: not yet, no device.
"""

from jaxtyping import Float64
from numpy import arange, ndarray

from ttr_fast.cuda.jit import blocks_for, cuda, kernel
from ttr_fast.cuda.numbers import load, store, times
from ttr_fast.cuda.rows import CHUNK, THREADS, reduced, sine_and_cosine, sum_chunks
from ttr_ref.config import BlockConfig


@kernel("int64[::1], float64[::1], float64[::1], float64[::1], C[:, ::1], C[:, ::1]", registers=40, threads=THREADS)
def angles(position, tau, theta, omega, cos, sin):
    """cos, sin (N, len(theta) + len(omega)): of position · θ, then of τ · ω; a thread an angle."""
    at, pairs = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cos.shape[1]
    if at < cos.size:
        i, k = at // pairs, at % pairs
        phase = times(float(position[i]), theta[k]) if k < theta.size else times(tau[i], omega[k - theta.size])
        s, c = sine_and_cosine(reduced(phase))
        cos[i, k], sin[i, k] = c, s


def theta_of(config: BlockConfig, by_time: int) -> Float64[ndarray, "P"]:
    """θ of the pairs turned by position: all but the last `by_time`."""
    return config.rope_base ** (-2.0 * arange(config.head_dim // 2 - by_time) / config.head_dim)


def rope_angles(position, tau, theta, omega, cos, sin) -> None:
    """position (N,) int64, tau (N,), theta (theta_of) and omega float64, ω being that of the last pairs. cos, sin (N, D/2)."""
    angles[blocks_for(cos.size, THREADS), THREADS](position, tau, theta, omega, cos, sin)


@kernel("C[:, ::1], C[:, ::1], C[:, ::1], S[:, :, :, ::1], S[:, :, :, ::1], S[:, :, :, ::1]", registers=40, threads=THREADS)
def turn(qkv, cos, sin, q, k, v):
    """One thread for each pair of qkv."""
    at, pairs = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cos.shape[1]
    i, c = at // (qkv.shape[1] // 2), at % (qkv.shape[1] // 2)
    head, p, heads, groups = c // pairs, c % pairs, q.shape[1], k.shape[1]
    if i < qkv.shape[0]:
        b, t = i // q.shape[2], i % q.shape[2]
        x0, x1 = qkv[i, 2 * c], qkv[i, 2 * c + 1]
        y0, y1 = x0 * cos[i, p] - x1 * sin[i, p], x0 * sin[i, p] + x1 * cos[i, p]
        if head < heads:
            store(y0, q, (b, head, t, 2 * p))
            store(y1, q, (b, head, t, 2 * p + 1))
        elif head < heads + groups:
            store(y0, k, (b, head - heads, t, 2 * p))
            store(y1, k, (b, head - heads, t, 2 * p + 1))
        else:
            store(x0, v, (b, head - heads - groups, t, 2 * p))
            store(x1, v, (b, head - heads - groups, t, 2 * p + 1))


def rope_forward(qkv, cos, sin, q, k, v) -> None:
    """qkv (N, (H + 2G) D) in the type of arithmetic; cos, sin (N, D/2); q (B, H, T, D), k and v (B, G, T, D): queries and keys turned."""
    turn[blocks_for(qkv.shape[0] * qkv.shape[1] // 2, THREADS), THREADS](qkv, cos, sin, q, k, v)


@kernel("C[:, :, :, ::1], C[:, :, :, ::1], C[:, :, :, ::1], C[:, ::1], C[:, ::1], S[:, ::1]", registers=40, threads=THREADS)
def turn_back(dq, dk, dv, cos, sin, dqkv):
    """One thread for each pair of dqkv."""
    at, pairs = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cos.shape[1]
    i, c = at // (dqkv.shape[1] // 2), at % (dqkv.shape[1] // 2)
    head, p, heads, groups = c // pairs, c % pairs, dq.shape[1], dk.shape[1]
    if i < dqkv.shape[0]:
        b, t = i // dq.shape[2], i % dq.shape[2]
        if head < heads + groups:
            y0 = dq[b, head, t, 2 * p] if head < heads else dk[b, head - heads, t, 2 * p]
            y1 = dq[b, head, t, 2 * p + 1] if head < heads else dk[b, head - heads, t, 2 * p + 1]
            store(y0 * cos[i, p] + y1 * sin[i, p], dqkv, (i, 2 * c))
            store(y1 * cos[i, p] - y0 * sin[i, p], dqkv, (i, 2 * c + 1))
        else:
            store(dv[b, head - heads - groups, t, 2 * p], dqkv, (i, 2 * c))
            store(dv[b, head - heads - groups, t, 2 * p + 1], dqkv, (i, 2 * c + 1))


@kernel(
    "C[:, :, :, ::1], C[:, :, :, ::1], S[:, :, :, ::1], S[:, :, :, ::1], float64[::1], int64, float64[:, ::1]", registers=88, threads=THREADS
)
def omega_chunks(dq, dk, q, k, tau, first, partial):
    """partial[c, p] = Σ τ (dy · J y) of pair first + p over the tokens of chunk c and all heads, queries before keys."""
    c, p = cuda.blockIdx.y, cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if p < partial.shape[1]:
        s, even, places = 0.0, 2 * (first + p), q.shape[2]
        for i in range(c * CHUNK, min(tau.size, c * CHUNK + CHUNK)):
            b, t, turned = i // places, i % places, 0.0
            for h in range(q.shape[1]):
                turned += float(dq[b, h, t, even + 1]) * float(load(q, (b, h, t, even)))
                turned -= float(dq[b, h, t, even]) * float(load(q, (b, h, t, even + 1)))
            for g in range(k.shape[1]):
                turned += float(dk[b, g, t, even + 1]) * float(load(k, (b, g, t, even)))
                turned -= float(dk[b, g, t, even]) * float(load(k, (b, g, t, even + 1)))
            s += turned * tau[i]
        partial[c, p] = s


def rope_backward(dq, dk, dv, q, k, cos, sin, tau, dqkv, domega, partial) -> None:
    """dqkv (N, (H + 2G) D) from dq, dk, dv, which are shaped like q, k, v of rope_forward; domega float64, one for each pair turned by time.

    q, k: what rope_forward wrote; tau (N,) float64. partial (rows.chunks_of(N), domega.size) float64 is scratch.
    """
    turn_back[blocks_for(dqkv.shape[0] * dqkv.shape[1] // 2, THREADS), THREADS](dq, dk, dv, cos, sin, dqkv)
    if domega.size:
        first = cos.shape[1] - domega.size
        omega_chunks[(blocks_for(domega.size, THREADS), partial.shape[0]), THREADS](dq, dk, q, k, tau, first, partial)
        sum_chunks(partial, domega)
