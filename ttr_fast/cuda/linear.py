"""Matrix products on the GPU: y = x W and its gradients; the mathematics is in ttr_ref/linear.py.

Each number of the result is one chain of multiply-adds over the inner axis, in order, whatever stands beside it. A matrix is read as it lies or
turned.

Ladder:
1. `product`: a block owns a tile of SIDE × SIDE, a thread PART × PART numbers of it, SIDE / PART apart, in registers. STEPS steps of the inner axis
   lie in shared memory, a row longer than they need to be, so that neither reading nor turning meets one bank twice. Measured: not yet, no device.
2. Products of 16-bit storages on tensor cores: linear_mma.py.
"""

from ttr_fast.cuda.jit import blocks_for, cuda, inner, kernel
from ttr_fast.cuda.linear_mma import PRODUCTS, matmul_mma
from ttr_fast.cuda.numbers import compute_type, load, number, store

SIDE, STEPS, PART = 64, 16, 4
APART, LONG = SIDE // PART, SIDE + 1
THREADS = APART * APART


@inner
def fetch(a, turned, first, step, tile):
    """tile[s, i] = a[first + i, step + s], or a[step + s, first + i] where a is turned; zeros behind the ends. Neighbours read neighbours."""
    rows, steps = (a.shape[1], a.shape[0]) if turned else (a.shape[0], a.shape[1])
    for at in range(cuda.threadIdx.x, SIDE * STEPS, THREADS):
        i, s = (at % SIDE, at // SIDE) if turned else (at // STEPS, at % STEPS)
        v = number(a, 0)
        if first + i < rows and step + s < steps:
            v = load(a, (step + s, first + i)) if turned else load(a, (first + i, step + s))
        tile[s, i] = v


@kernel(
    (
        "S[:, ::1], boolean, S[:, ::1], boolean, S[:, ::1], boolean, S[:, ::1]",
        "S[:, ::1], boolean, S[:, ::1], boolean, C[:, ::1], boolean, C[:, ::1]",
    ),
    registers=120,
    shared=2 * STEPS * LONG * 8,
    threads=THREADS,
)
def product(a, turned_a, b, turned_b, addend, with_addend, out):
    """Block (x, y) has the tile of columns x and rows y."""
    left = cuda.shared.array((STEPS, LONG), compute_type(a))
    right = cuda.shared.array((STEPS, LONG), compute_type(a))
    sums = cuda.local.array((PART, PART), compute_type(a))
    for r in range(PART):
        for c in range(PART):
            sums[r, c] = number(a, 0)
    i, j = cuda.threadIdx.x // APART, cuda.threadIdx.x % APART
    first_row, first_column = cuda.blockIdx.y * SIDE, cuda.blockIdx.x * SIDE
    for step in range(0, a.shape[0] if turned_a else a.shape[1], STEPS):
        fetch(a, turned_a, first_row, step, left)
        fetch(b, not turned_b, first_column, step, right)
        cuda.syncthreads()
        for s in range(STEPS):
            for r in range(PART):
                x = left[s, i + APART * r]
                for c in range(PART):
                    sums[r, c] += x * right[s, j + APART * c]
        cuda.syncthreads()
    for r in range(PART):
        for c in range(PART):
            row, column = first_row + i + APART * r, first_column + j + APART * c
            if row < out.shape[0] and column < out.shape[1]:
                v = sums[r, c]
                if with_addend:
                    v += load(addend, (row, column))
                store(v, out, (row, column))


def matmul(a, turned_a: bool, b, turned_b: bool, addend, out) -> None:
    """out (N, M) = addend + A B, A being a or its transpose, B likewise.

    a, b of one storage; out in that storage or in the type of arithmetic; addend like out, or None; it may be out. All of them start at multiples of
    16 bytes. Tensor cores multiply 16-bit storages whose rows are multiples of 8 items long. Lengths of rows decide and never their number, so that a
    row has the same bits alone as among others.
    """
    if not out.size:
        return
    if a.dtype.itemsize == 2 and (turned_a, turned_b) in PRODUCTS and not any(matrix.shape[1] % 8 for matrix in (a, b, out)):
        matmul_mma(a, turned_a, b, turned_b, addend, out)
    else:
        grid = blocks_for(out.shape[1], SIDE), blocks_for(out.shape[0], SIDE)
        product[grid, THREADS](a, turned_a, b, turned_b, out if addend is None else addend, addend is not None, out)


def linear_forward(x, w, y, residual=None) -> None:
    """y (N, M) = residual + x W; x (N, K), w (K, M); residual (N, M) or None, which may be y."""
    matmul(x, False, w, False, residual, y)


def linear_backward_input(dy, w, dx, residual=None) -> None:
    """dx (N, K) = residual + dy Wᵀ."""
    matmul(dy, False, w, True, residual, dx)


def linear_backward_weight(x, dy, dw, add: bool = False) -> None:
    """dW (K, M) = xᵀ dy, or that much more than it was; in the type of arithmetic."""
    matmul(x, True, dy, False, dw if add else None, dw)
