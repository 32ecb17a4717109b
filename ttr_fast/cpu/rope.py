"""Rotary embedding on the CPU; the mathematics is in ttr_ref/rope.py.

One pass takes the rows of the projection, features of one head after the other, and writes what attention reads: an axis of heads before that of
places, head widths filled up with zeros to a multiple of 16. Angles are formed in float64, with the oracle's own roundings; their cosine and sine
(N, D/2) are kept in the type of arithmetic. Backward does the same in the other direction.
"""

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from ttr_fast.cpu import rows, simd
from ttr_fast.cpu.jit import inner, kernel
from ttr_fast.cpu.rows import CHUNK
from ttr_fast.cpu.team import share, team
from ttr_ref.config import BlockConfig


@inner()
def row_angles(position, tau, theta, omega, cos, sin, i):
    """Row i."""
    pairs, by_index = cos.shape[1], theta.size
    for k in range(0, by_index, 8):
        x = rows.phase(simd.mul(simd.splat(np.float64(position[i])), rows.load_part(theta, k, by_index - k)))
        rows.store_part(rows.cosine(x), cos, i * pairs + k, by_index - k)
        rows.store_part(rows.sine(x), sin, i * pairs + k, by_index - k)
    for k in range(0, omega.size, 8):
        x = rows.phase(simd.mul(simd.splat(tau[i]), rows.load_part(omega, k, omega.size - k)))
        rows.store_part(rows.cosine(x), cos, i * pairs + by_index + k, omega.size - k)
        rows.store_part(rows.sine(x), sin, i * pairs + by_index + k, omega.size - k)


@team()
def angles(worker, workers, position, tau, theta, omega, cos, sin):
    """cos, sin (N, len(theta) + len(omega)): of position · θ, then of τ · ω."""
    begin, end = share(worker, workers, cos.shape[0])
    for i in range(begin, end):
        row_angles(position, tau, theta, omega, cos, sin, i)


def theta_of(config: BlockConfig, by_time: int) -> Float64[ndarray, "P"]:
    """θ of the pairs turned by position: all but the last `by_time`."""
    by_index = np.arange(config.head_dim // 2 - by_time)
    return config.rope_base ** (-2.0 * by_index / config.head_dim)


def rope_angles(position, tau, omega, config: BlockConfig, cos, sin) -> None:
    """position (N,) int64, tau (N,) and omega float64: ω of the pairs turned by time, the last ones. cos, sin (N, D/2) float32 or float64."""
    angles(position, tau, theta_of(config, omega.size), omega, cos, sin)


@inner()
def turn_row(source, source_at, cos, sin, angle_at, d, target, target_at, sign):
    """One head of one token, from D features to as many as `target`'s rows have, or back."""
    lanes = rows.lanes_of(source)
    width = target.shape[3] if target.ndim == 4 else d
    for k in range(0, width, lanes):
        x = rows.load_part(source, source_at + k, d - k)
        c, s = rows.load_twice(cos, angle_at + k // 2, (d - k) // 2), rows.load_twice(sin, angle_at + k // 2, (d - k) // 2)
        y = simd.fma(x, c, simd.mul(rows.turn(x), simd.mul(s, rows.full(source, sign))))
        rows.store_part(y, target, target_at + k, width - k)


@inner()
def copy_row(source, source_at, d, target, target_at):
    """The same without a turn."""
    lanes = rows.lanes_of(source)
    width = target.shape[3] if target.ndim == 4 else d
    for k in range(0, width, lanes):
        rows.store_part(rows.load_part(source, source_at + k, d - k), target, target_at + k, width - k)


@inner()
def place_of(i, heads, h, places, width):
    """Where token i of head h stands in an array (B, heads, places, width)."""
    return ((i // places * heads + h) * places + i % places) * width


@team()
def rope_forward(worker, workers, qkv, cos, sin, d, q, k, v):
    """qkv (N, (H + 2G) D); cos, sin (N, D/2); q (B, H, T, width), k and v (B, G, T, width): queries and keys turned; zeros behind D features."""
    b_all, heads, t_all, width = q.shape
    groups, features = k.shape[1], qkv.shape[1]
    begin, end = share(worker, workers, b_all * t_all)
    for i in range(begin, end):
        for h in range(heads):
            turn_row(qkv, i * features + h * d, cos, sin, i * (d // 2), d, q, place_of(i, heads, h, t_all, width), 1)
        for g in range(groups):
            at = place_of(i, groups, g, t_all, width)
            turn_row(qkv, i * features + (heads + g) * d, cos, sin, i * (d // 2), d, k, at, 1)
            copy_row(qkv, i * features + (heads + groups + g) * d, d, v, at)


@inner()
def add_angle_gradients(y, dy, h, first, stop, tau, partial, row):
    """partial[row] += Σ τ (dy ∘ J y) over the tokens first … stop − 1 of head h; both features of a pair, side by side."""
    heads, places, width = y.shape[1], y.shape[2], y.shape[3]
    for k in range(0, width, 8):
        s = rows.load_part(partial, row * width + k, 8)
        for i in range(first, stop):
            at = place_of(i, heads, h, places, width) + k
            product = simd.mul(rows.load_wide(dy, at, 8), rows.turn(rows.load_wide(y, at, 8)))
            s = simd.fma(product, simd.splat(tau[i]), s)
        simd.store(s, partial, row * width + k)


@team()
def turn_back(worker, workers, dq, dk, dv, q, k, cos, sin, tau, d, by_time, dqkv, partial):
    """Chunks of tokens."""
    b_all, heads, t_all, width = q.shape
    groups, features, n = k.shape[1], dqkv.shape[1], b_all * t_all
    begin, end = share(worker, workers, (n + CHUNK - 1) // CHUNK)
    for c in range(begin, end):
        first, stop = c * CHUNK, min(n, c * CHUNK + CHUNK)
        partial[c] = 0
        for i in range(first, stop):
            for h in range(heads):
                turn_row(dq, place_of(i, heads, h, t_all, width), cos, sin, i * (d // 2), d, dqkv, i * features + h * d, -1)
            for g in range(groups):
                at = place_of(i, groups, g, t_all, width)
                turn_row(dk, at, cos, sin, i * (d // 2), d, dqkv, i * features + (heads + g) * d, -1)
                copy_row(dv, at, d, dqkv, i * features + (heads + groups + g) * d)
        if by_time:
            for h in range(heads):
                add_angle_gradients(q, dq, h, first, stop, tau, partial, c)
            for g in range(groups):
                add_angle_gradients(k, dk, g, first, stop, tau, partial, c)


@kernel()
def sum_pairs(partial, first, domega):
    """domega[p] = the sum of both features of pair first + p over all chunks, in order."""
    for p in range(domega.size):
        s = 0.0
        for c in range(partial.shape[0]):
            s += partial[c, 2 * (first + p)] + partial[c, 2 * (first + p) + 1]
        domega[p] = s


def rope_backward(dq, dk, dv, q, k, cos, sin, tau, d, dqkv, domega, partial) -> None:
    """dqkv (N, (H + 2G) D) from dq, dk, dv, which are shaped like q, k, v of rope_forward; domega float64, one for each pair turned by time.

    q, k: what rope_forward wrote; tau (N,) float64. partial (rows.chunks_of(N), width) float64 is scratch.
    """
    by_time = domega.size
    turn_back(dq, dk, dv, q, k, cos, sin, tau, d, by_time > 0, dqkv, partial)
    sum_pairs(partial, d // 2 - by_time, domega)
