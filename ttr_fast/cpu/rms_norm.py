"""RMSNorm on the CPU; the mathematics is in ttr_ref/rms_norm.py.

Arrays are rows (N, E) of any storage, `r` and gradients of the weight in the type of arithmetic. Rows are independent, x̂ is formed again in backward
from x and r. `rms_norm_add_forward` normalises u = x + features, rounded as ttr_ref/transformer_block.attention_input does, and keeps u.
Backward takes the gradient of a residual beside the norm in the same pass: dx = residual + …, rounded once.
"""

import numpy as np

from ttr_fast.cpu import rows, simd
from ttr_fast.cpu.jit import inner
from ttr_fast.cpu.rows import CHUNK
from ttr_fast.cpu.team import share, team


@inner()
def normalise(x, weight, eps, y, r, i):
    """Row i."""
    e, lanes = weight.size, rows.lanes_of(x)
    at, squares = i * e, rows.full(x, 0)
    for k in range(0, e, lanes):
        v = rows.load_part(x, at + k, e - k)
        squares = simd.fma(v, v, squares)
    r[i] = np.sqrt(simd.total(squares) / rows.number(x, e) + rows.number(x, eps))
    scale = simd.splat(rows.number(x, 1) / r[i])
    for k in range(0, e, lanes):
        x_hat = simd.mul(rows.load_part(x, at + k, e - k), scale)
        rows.store_part(simd.mul(x_hat, rows.load_part(weight, k, e - k)), y, at + k, e - k)


@team()
def rms_norm_forward(worker, workers, x, weight, eps, y, r):
    """x, y (N, E); weight (E,); r (N,): the scale of each row, kept for backward."""
    begin, end = share(worker, workers, x.shape[0])
    for i in range(begin, end):
        normalise(x, weight, eps, y, r, i)


@inner()
def add_and_normalise(x, features, weight, eps, u, y, r, i):
    """Row i."""
    e = weight.size
    for k in range(0, e, rows.lanes_of(x)):
        v = simd.add(rows.load_part(x, i * e + k, e - k), rows.load_part(features, i * e + k, e - k))
        rows.store_part(v, u, i * e + k, e - k)
    normalise(u, weight, eps, y, r, i)


@team()
def rms_norm_add_forward(worker, workers, x, features, weight, eps, u, y, r):
    """u = x + features in the storage of u, then y = rms_norm(u)."""
    begin, end = share(worker, workers, x.shape[0])
    for i in range(begin, end):
        add_and_normalise(x, features, weight, eps, u, y, r, i)


@inner()
def row_gradient(dy, x, r, weight, residual, dx, du, partial, i, c):
    """Row i, whose share of the weight's gradient is added to partial[c]."""
    e, lanes = weight.size, rows.lanes_of(x)
    at, dots, one = i * e, rows.full(x, 0), rows.number(x, 1)
    scale = simd.splat(one / r[i])
    for k in range(0, e, lanes):
        g, x_hat = rows.load_part(dy, at + k, e - k), simd.mul(rows.load_part(x, at + k, e - k), scale)
        product = simd.mul(g, x_hat)
        dots = simd.fma(product, rows.load_part(weight, k, e - k), dots)
        rows.store_part(simd.add(rows.load_part(partial, c * e + k, e - k), product), partial, c * e + k, e - k)
    mean = simd.splat(-simd.total(dots) / rows.number(x, e))
    for k in range(0, e, lanes):
        g = simd.mul(rows.load_part(dy, at + k, e - k), rows.load_part(weight, k, e - k))
        d = simd.mul(simd.fma(simd.mul(rows.load_part(x, at + k, e - k), scale), mean, g), scale)
        if du is not None:
            rows.store_part(d, du, at + k, e - k)
        if residual is not None:
            d = simd.add(rows.load_part(residual, at + k, e - k), d)
        rows.store_part(d, dx, at + k, e - k)


@team()
def norm_gradients(worker, workers, dy, x, r, weight, residual, dx, du, partial):
    """Chunks of rows."""
    n = x.shape[0]
    begin, end = share(worker, workers, partial.shape[0])
    for c in range(begin, end):
        partial[c] = 0
        for i in range(c * CHUNK, min(n, c * CHUNK + CHUNK)):
            row_gradient(dy, x, r, weight, residual, dx, du, partial, i, c)


def rms_norm_backward(dy, x, r, weight, residual, dx, du, dweight, partial) -> None:
    """dx = residual + du, du being the gradient of what was normalised; x is u of rms_norm_add_forward where that was used.

    residual (N, E) or None; du (N, E), what the time features are given, or None. dx may be dy or residual.
    partial (rows.chunks_of(N), E) is scratch in the type of arithmetic.
    """
    norm_gradients(dy, x, r, weight, residual, dx, du, partial)
    rows.sum_chunks(partial, dweight)
