"""RMSNorm on the GPU; the mathematics is in ttr_ref/rms_norm.py.

Arrays are rows (N, E) of any storage; `r`, the weight and its gradient are in the type of arithmetic. Backward takes the gradient of a residual
beside the norm in the same pass: dx = residual + …, rounded once.

Ladder:
1. A block owns a row and reads it twice; its sum of squares is a tree. The weight's gradient is a pass of its own in which a thread owns a column of
   CHUNK rows, then rows.sum_chunks. Measured: not yet, no device.
"""

from ttr_fast.cuda.jit import blocks_for, cuda, kernel
from ttr_fast.cuda.numbers import load, number, sqrt, store
from ttr_fast.cuda.rows import CHUNK, THREADS, block_sum, sum_chunks


@kernel("S[:, ::1], C[::1], C, S[:, ::1], C[::1]", registers=40, shared=8 * THREADS, threads=THREADS)
def normalise(x, weight, eps, y, r):
    """Block i has row i."""
    scratch = cuda.shared.array(THREADS, r.dtype)
    i, t, e = cuda.blockIdx.x, cuda.threadIdx.x, x.shape[1]
    squares = number(x, 0)
    for k in range(t, e, THREADS):
        v = load(x, (i, k))
        squares += v * v
    scale = sqrt(block_sum(scratch, squares) / number(x, e) + eps)
    if t == 0:
        r[i] = scale
    for k in range(t, e, THREADS):
        store(load(x, (i, k)) / scale * weight[k], y, (i, k))


def rms_norm_forward(x, weight, eps: float, y, r) -> None:
    """x, y (N, E); weight (E,); r (N,): the scale of each row, kept for backward."""
    if x.shape[0]:
        normalise[x.shape[0], THREADS](x, weight, r.dtype.type(eps), y, r)


@kernel(
    (
        "S[:, ::1], S[:, ::1], C[::1], C[::1], S[:, ::1], boolean, S[:, ::1], C[:, ::1], boolean",
        "C[:, ::1], S[:, ::1], C[::1], C[::1], S[:, ::1], boolean, S[:, ::1], C[:, ::1], boolean",
    ),
    registers=64,
    shared=8 * THREADS,
    threads=THREADS,
)
def row_gradients(dy, x, r, weight, residual, with_residual, dx, du, with_du):
    """Block i has row i."""
    scratch = cuda.shared.array(THREADS, r.dtype)
    i, t, e = cuda.blockIdx.x, cuda.threadIdx.x, x.shape[1]
    scale, dots = r[i], number(x, 0)
    for k in range(t, e, THREADS):
        dots += load(dy, (i, k)) * weight[k] * (load(x, (i, k)) / scale)
    mean = block_sum(scratch, dots) / number(x, e)
    for k in range(t, e, THREADS):
        d = (load(dy, (i, k)) * weight[k] - load(x, (i, k)) / scale * mean) / scale
        if with_du:
            du[i, k] = d
        if with_residual:
            d += load(residual, (i, k))
        store(d, dx, (i, k))


@kernel(("S[:, ::1], S[:, ::1], C[::1], C[:, ::1]", "C[:, ::1], S[:, ::1], C[::1], C[:, ::1]"), registers=48, threads=THREADS)
def weight_chunks(dy, x, r, partial):
    """partial[c] = Σ dy ∘ x̂ over the rows of chunk c, a thread a column."""
    c, k = cuda.blockIdx.y, cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if k < x.shape[1]:
        s = number(x, 0)
        for i in range(c * CHUNK, min(x.shape[0], c * CHUNK + CHUNK)):
            s += load(dy, (i, k)) * (load(x, (i, k)) / r[i])
        partial[c, k] = s


def rms_norm_backward(dy, x, r, weight, residual, dx, du, dweight, partial) -> None:
    """dx = residual + du, du being the gradient of what was normalised.

    dy (N, E) in the storage of x or in its type of arithmetic; residual (N, E) or None; du (N, E) in the type of arithmetic, or None. dx may be
    residual, but not dy, which is read again for dweight.
    partial (rows.chunks_of(N), E) is scratch in the type of arithmetic.
    """
    n, e = x.shape
    if n:
        spare = partial if du is None else du
        added = dx if residual is None else residual
        row_gradients[n, THREADS](dy, x, r, weight, added, residual is not None, dx, spare, du is not None)
        weight_chunks[(blocks_for(e, THREADS), partial.shape[0]), THREADS](dy, x, r, partial)
    sum_chunks(partial, dweight)
