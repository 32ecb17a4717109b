"""A linear map of the few rows of one decoding step, from inside kernels: the bits of linear.py without the way through Python.

A product is planned once for all steps; its scratch is shared by all products of a step. Up to FEW_ROWS rows the matrix is read once where it lies
and dealt out evenly, the rows being packed by the calling thread; more rows are left to linear.product.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Num
from numba import prange
from numpy import ndarray

from ttr_fast.cpu.jit import kernel
from ttr_fast.cpu.linear import BLOCK_STEPS, FEW_ROWS, LONG, item_product, layout, panel_type, product, rounded_up
from ttr_fast.cpu.panels import COLUMNS, ROWS, each, pack_rows
from ttr_fast.cpu.workspace import Workspace


class ProductScratch(NamedTuple):
    """Rows packed; for each thread a part of the matrix, and sums."""

    a_panels: Num[ndarray, "n"]
    blocks: Num[ndarray, "threads n"]
    strips: Num[ndarray, "threads n"]


def plan_products(
    rows: int, shapes: list[tuple[int, int]], carrier: np.dtype, workers: int, workspace: Workspace
) -> tuple[Int64[ndarray, "n 3"], ProductScratch]:
    """For matrices of these shapes (in, out): rows of an item, k at a time, panels of columns of an item; and scratch for all of them."""
    held = np.dtype(panel_type(carrier, carrier))
    sums = np.dtype(np.float64 if held == np.float64 else np.float32)
    width, plans, sizes = COLUMNS * (64 // sums.itemsize), [], []
    for depth, columns in shapes:
        plan, (panel_bytes, block_bytes, strip_bytes) = layout(rows, depth, columns, held, workers)
        if rows <= FEW_ROWS:
            panels = -(-columns // width)
            items = workers * -(-panels // (workers * (LONG // width)))
            plan = (*plan[:2], -(-panels // items))
            share = 2 if held == np.uint32 else 1
            block_bytes = plan[1] // share * plan[2] * width * held.itemsize
            strip_bytes = rounded_up(FEW_ROWS, ROWS) * plan[2] * width * sums.itemsize
        plans.append(plan)
        sizes.append((panel_bytes, block_bytes, strip_bytes))
    panel_bytes, block_bytes, strip_bytes = np.max(sizes, 0).tolist()
    return np.array(plans, np.int64), ProductScratch(
        workspace.array(f"panels.{workers}", (panel_bytes // held.itemsize,), held),
        workspace.array(f"blocks.{workers}", (workers, block_bytes // held.itemsize), held),
        workspace.array(f"strips.{workers}", (workers, strip_bytes // sums.itemsize), sums),
    )


@kernel(parallel=True)
def few_rows_product(a, b, c, addend, adds, k_block, item_panels, a_panels, blocks, strips):
    """C = A B, or addend + A B, for at most FEW_ROWS rows."""
    (rows, depth), columns = a.shape, b.shape[1]
    share, workers = each(blocks), strips.shape[0]
    for k in range(0, depth, BLOCK_STEPS):
        pack_rows(a.reshape(-1), True, depth, 0, rows, k, min(BLOCK_STEPS, depth - k), a_panels, k // share * ROWS)
    panels = (columns + COLUMNS * (64 // strips.itemsize) - 1) // (COLUMNS * (64 // strips.itemsize))
    items = (panels + item_panels - 1) // item_panels
    for unsigned in prange(workers):
        worker = np.int64(unsigned)
        for item in range(worker * items // workers, (worker + 1) * items // workers):
            first = item * item_panels
            item_product(a_panels, b.reshape(-1), False, columns, c.reshape(-1), addend.reshape(-1), adds, (rows, depth, columns), 0, rows,
                         first * COLUMNS * (64 // strips.itemsize), min(item_panels, panels - first), k_block, blocks[worker],
                         strips[worker])  # fmt: skip


@kernel()
def planned_product(a, b, c, addend, adds, plan, a_panels, blocks, strips):
    """C = A B, or addend + A B; addend is C where nothing is added."""
    if a.shape[0] <= FEW_ROWS:
        few_rows_product(a, b, c, addend, adds, plan[1], plan[2], a_panels, blocks, strips)
    else:
        shape = (a.shape[0], a.shape[1], b.shape[1])
        product(a.reshape(-1), True, b.reshape(-1), False, c.reshape(-1), addend.reshape(-1), adds, shape, (plan[0], plan[1], plan[2]), a_panels,
                blocks, strips)  # fmt: skip


