"""A linear map, y = x W, and its gradients, with the mathematics of ttr_ref/linear.py; storages f64, f32, f16 and bf16, sums in float64 or float32.

All three are one product C = A B whose operands may lie transposed. A is packed whole (panels.py). Then each worker owns a run of items, an item
being a block of rows of C and some panels of its columns: it packs the part of B that the item needs into a buffer of its own, a block of k at a
time, and continues the chain of each element with it. Panels of B thus serve their whole block of rows from cache. Where there are few rows, as in
decoding, B is not packed at all but read once where it lies, in long stretches of several of its rows: lanes are columns, as in the panels.

Each element is one chain over ascending k from 0, kept unrounded between blocks of k; what is added (the residual, an earlier gradient) is
added at its end, and the result is rounded to its storage once. So a row's bits depend on the row and on W, not on the rows beside it, their number
or that of the threads; in dW rows are summed in their order.
"""

from typing import Literal

import numpy as np
from numba import get_num_threads
from numpy import ndarray

from ttr_fast.cpu import simd
from ttr_fast.cpu.jit import inner
from ttr_fast.cpu.panels import COLUMNS, PAIRS, ROWS, advance, each, pack_columns, pack_rows, stream
from ttr_fast.cpu.rows import load_part, store_part
from ttr_fast.cpu.team import share, team
from ttr_fast.cpu.workspace import Workspace

PADDED_TO = 32
"""Panels have room for k up to a multiple of it: what is turned at once, with pairs."""
FEW_ROWS, STREAMED, LONG = 4, 8, 1024
"""Up to FEW_ROWS rows B is read where it lies: STREAMED steps at a time, at most LONG columns an item."""
BLOCK_ROWS, BLOCK_STEPS = 1024, 256
"""Rows of C of an item, and steps of a panel (k, or pairs of them) at a time."""
ALIGNED_TO = 64
CARRIERS = (np.float64, np.float32, np.int16, np.uint16)


@inner()
def finish(strip, at, row, rows, column, c, columns, addend, adds):
    """Rows of one panel's sums to C, `addend` added to them if `adds`."""
    vector = 64 // strip.itemsize
    for i in range(rows):
        for j in range(0, min(COLUMNS * vector, columns - column), vector):
            v, to, n = simd.load(strip, at + i * COLUMNS * vector + j), (row + i) * columns + column + j, columns - column - j
            if adds:
                v = simd.add(v, load_part(addend, to, n))
            store_part(v, c, to, n)


@inner()
def tile_rows(rows):
    """For how many rows there is room in the sums of a panel."""
    return FEW_ROWS if rows <= FEW_ROWS else (rows + ROWS - 1) // ROWS * ROWS


@inner()
def packed_chains(a_panels, b, b_turned, b_stride, shape, start, row, rows, column, panels, k_block, block, strip, at):
    """Sums from k = start on of rows row … row + rows of C and `panels` panels of its columns from `column` on, B packed on the way."""
    _, depth, columns = shape
    width, held = COLUMNS * (64 // strip.itemsize), each(block)
    room = (depth + PADDED_TO - 1) // PADDED_TO * PADDED_TO // held
    height = tile_rows(rows)
    for k in range(start, depth, k_block):
        count = min(k_block, depth - k)
        steps = (count + held - 1) // held
        for p in range(panels):
            pack_columns(b, b_turned, b_stride, column + p * width, columns, k, count, block, p * (k_block // held) * width)
        for p in range(panels):
            at_b = p * (k_block // held) * width
            for i in range(0, rows, ROWS):
                at_a, at_c = (row + i) * room + k // held * ROWS, at + (p * height + i) * width
                if rows - i <= FEW_ROWS:
                    advance(steps, a_panels, at_a, block, at_b, strip, at_c, FEW_ROWS)
                else:
                    advance(steps, a_panels, at_a, block, at_b, strip, at_c, ROWS)


@inner()
def streamed_chains(a_panels, b, shape, rows, column, panels, strip):
    """The same where there are `rows` ≤ FEW_ROWS rows in all, B read once where it lies. Returns the next k: of bf16 pairs one may be left."""
    _, depth, columns = shape
    width, held = COLUMNS * (64 // strip.itemsize), each(a_panels)
    steps, height = depth // held, FEW_ROWS * width
    whole = steps // STREAMED * STREAMED
    for s in range(0, whole, STREAMED):
        at = s * held * columns + column
        if rows == 1:
            stream(panels, a_panels, s * ROWS, b, at, columns, strip, 0, height, 1, STREAMED)
        else:
            stream(panels, a_panels, s * ROWS, b, at, columns, strip, 0, height, FEW_ROWS, STREAMED)
    for s in range(whole, steps):
        stream(panels, a_panels, s * ROWS, b, s * held * columns + column, columns, strip, 0, height, FEW_ROWS, 1)
    return steps * held


@inner()
def item_product(a_panels, b, b_turned, b_stride, c, addend, adds, shape, row, rows, column, panels, k_block, block, strip):
    """Rows row … row + rows of C, `panels` panels of its columns from `column` on."""
    columns = shape[2]
    width = COLUMNS * (64 // strip.itemsize)
    height = tile_rows(rows)
    strip[: panels * height * width] = 0
    first, k = 0, 0
    if shape[0] <= FEW_ROWS and not b_turned:
        first = min(panels, (columns - column) // width)
        k = streamed_chains(a_panels, b, shape, rows, column, first, strip)
    for part in range(2):  # what was streamed, of which k may be left, and what was not
        start, begin, end = (k, 0, first) if part == 0 else (0, first, panels)
        packed_chains(a_panels, b, b_turned, b_stride, shape, start, row, rows, column + begin * width, end - begin, k_block, block, strip,
                      begin * height * width)  # fmt: skip
    for p in range(panels):
        finish(strip, p * height * width, row, rows, column + p * width, c, columns, addend, adds)


@team()
def pack_left(worker, workers, a, a_turned, shape, a_panels):
    """The panels of A, flat; a_turned: A lies by rows, so that its panels have to be turned."""
    rows, depth, _ = shape
    held = each(a_panels)
    room = (depth + PADDED_TO - 1) // PADDED_TO * PADDED_TO // held
    a_stride = depth if a_turned else rows
    # 64 rows are packed together: where A lies by columns, panels next to each other share cache lines
    groups, cuts = (rows + 63) // 64, (depth + BLOCK_STEPS - 1) // BLOCK_STEPS
    begin, end = share(worker, workers, groups * cuts)
    for job in range(begin, end):
        group, k = job // cuts, job % cuts * BLOCK_STEPS
        for i in range(group * 64, min(group * 64 + 64, rows), ROWS):
            pack_rows(a, a_turned, a_stride, i, rows, k, min(BLOCK_STEPS, depth - k), a_panels, i * room + k // held * ROWS)


@team()
def product(worker, workers, a_panels, b, b_turned, c, addend, adds, shape, plan, blocks, strips):
    """C = A B, all arrays flat; b_turned: B lies by columns."""
    rows, depth, columns = shape
    block_rows, k_block, item_panels = plan
    width = COLUMNS * (64 // strips.itemsize)
    b_stride = depth if b_turned else columns
    row_blocks = (rows + block_rows - 1) // block_rows
    column_blocks = (columns + item_panels * width - 1) // (item_panels * width)
    items = row_blocks * column_blocks
    begin, end = share(worker, workers, items)
    for item in range(begin, end):
        row, column = item // column_blocks * block_rows, item % column_blocks * item_panels * width
        panels = min(item_panels, (columns - column + width - 1) // width)
        item_product(a_panels, b, b_turned, b_stride, c, addend, adds, shape, row, min(block_rows, rows - row), column, panels,
                     k_block, blocks[worker], strips[worker])  # fmt: skip


def rounded_up(n: int, multiple: int) -> int:
    """The least multiple that is not less."""
    return -(-n // multiple) * multiple


def panel_type(a: np.dtype, b: np.dtype) -> type[np.generic]:
    """What panels of a product of these carriers hold."""
    if a == b == np.uint16 and PAIRS:
        return np.uint32
    return np.float64 if a == np.float64 else np.float32


def plan_of(rows: int, columns: int, lanes: int, share: int, workers: int) -> tuple[int, int, int]:
    """Rows of an item, k at a time, panels of columns of an item."""
    width = COLUMNS * lanes
    if rows <= FEW_ROWS:
        return FEW_ROWS, PADDED_TO * share, max(min(LONG, -(-columns // workers)) // width, 1)
    block_rows = min(BLOCK_ROWS, rounded_up(rows, ROWS))
    while block_rows > 64 and -(-rows // block_rows) * -(-columns // width) < 4 * workers:
        block_rows = rounded_up(block_rows // 2, ROWS)
    return block_rows, BLOCK_STEPS * share, 1


def layout(rows: int, depth: int, columns: int, held: np.dtype, workers: int) -> tuple[tuple[int, int, int], list[int]]:
    """The plan, and the bytes of the panels of A, of each worker's part of B and of its sums."""
    sums = 8 if held == np.float64 else 4
    lanes = 64 // sums
    share = 2 if held == np.uint32 else 1
    plan = plan_of(rows, columns, lanes, share, workers)
    block_rows, k_block, panels = plan
    items = (rounded_up(rows, ROWS) * rounded_up(depth, PADDED_TO) // share, k_block // share * panels * COLUMNS * lanes,
             rounded_up(block_rows, ROWS) * panels * COLUMNS * lanes)  # fmt: skip
    return plan, [rounded_up(n * size, ALIGNED_TO) for n, size in zip(items, (held.itemsize, held.itemsize, sums), strict=True)]


def matmul(
    a: ndarray, a_transposed: bool, b: ndarray, b_transposed: bool, c: ndarray, addend: ndarray | None = None, workspace: Workspace | None = None
) -> None:
    """C = A B, or C = addend + A B, where `addend` has C's storage and may be C itself; a transposed operand is given as its transpose.

    All are C-contiguous matrices of carriers (half.py), all of them float64 or none; the workspace lends the scratch.
    Raises ValueError if shapes do not fit or something is not contiguous, TypeError if types do not go together.
    """
    (rows, depth), (inner, columns) = a.shape[:: -1 if a_transposed else 1], b.shape[:: -1 if b_transposed else 1]
    if depth != inner or c.shape != (rows, columns) or (addend is not None and addend.shape != c.shape):
        raise ValueError(f"linear: shapes {(rows, depth)} @ {(inner, columns)} do not give {c.shape if addend is None else (c.shape, addend.shape)}")
    arrays = (a, b, c) if addend is None else (a, b, c, addend)
    if not all(x.flags.c_contiguous for x in arrays):
        raise ValueError("linear: matrices must be C-contiguous")
    types = [x.dtype for x in arrays]
    if any(t not in CARRIERS for t in types) or (np.float64 in types and set(types) != {np.dtype(np.float64)}) or types[2] != types[-1]:
        raise TypeError(f"linear: no product of {types[0]} and {types[1]} is stored as {' + '.join(map(str, types[2:]))}")
    if not c.size:
        return
    workers, held = get_num_threads(), np.dtype(panel_type(a.dtype, b.dtype))
    plan, (panel_bytes, block_bytes, strip_bytes) = layout(rows, depth, columns, held, workers)
    needed = ALIGNED_TO + panel_bytes + workers * (block_bytes + strip_bytes)
    raw = (workspace or Workspace()).array("matmul", (needed,), np.uint8)
    start = -raw.ctypes.data % ALIGNED_TO
    end = start + panel_bytes
    panels = raw[start:end].view(held)
    blocks = raw[end : end + workers * block_bytes].view(held).reshape(workers, -1)
    end += workers * block_bytes
    strips = raw[end : end + workers * strip_bytes].view(np.float64 if held == np.float64 else np.float32).reshape(workers, -1)
    added = c if addend is None else addend
    shape = (rows, depth, columns)
    pack_left(a.reshape(-1), not a_transposed, shape, panels)
    product(panels, b.reshape(-1), b_transposed, c.reshape(-1), added.reshape(-1), addend is not None, shape, plan, blocks, strips)


def linear_forward(
    x: ndarray, w: ndarray, y: ndarray, end: Literal["store", "add"] = "store", residual: ndarray | None = None, workspace: Workspace | None = None
) -> None:
    """y (N, M) = x (N, K) @ w (K, M), or with end="add" y + x @ w, or residual + x @ w; rounded once."""
    if end == "add":
        if residual is not None:
            raise ValueError("linear: a residual is added, or y is; not both")
        residual = y
    matmul(x, False, w, False, y, residual, workspace)


def linear_backward_input(dy: ndarray, w: ndarray, dx: ndarray, workspace: Workspace | None = None) -> None:
    """dx (N, K) = dy (N, M) @ wᵀ."""
    matmul(dy, False, w, True, dx, None, workspace)


def linear_backward_weight(x: ndarray, dy: ndarray, dw: ndarray, accumulate: bool = False, workspace: Workspace | None = None) -> None:
    """dw (K, M), in float32 or float64, = xᵀ @ dy, added to what is there if `accumulate`."""
    matmul(x, True, dy, False, dw, dw if accumulate else None, workspace)
