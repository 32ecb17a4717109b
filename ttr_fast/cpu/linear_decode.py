"""A linear map of the few rows of one decoding step: the bits of linear.py, at the speed at which memory gives the matrix.

A step reads every matrix once, so nearly all of its time goes into that. Panels of columns are made once, for all steps, and stay in storage type:
then each thread reads one stretch of memory from its start to its end, which the CPU foresees, and the sums of a panel stay in registers.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Inexact, Num, Shaped
from numba import prange
from numpy import ndarray

from ttr_fast.cpu.jit import kernel
from ttr_fast.cpu.linear import BLOCK_STEPS, FEW_ROWS, PADDED_TO, finish, panel_type, rounded_up
from ttr_fast.cpu.panels import COLUMNS, ROWS, advance, each, pack_rows
from ttr_fast.cpu.workspace import Workspace


def panels_of(w: Shaped[ndarray, "K M"]) -> Shaped[ndarray, "panels steps width"]:
    """A matrix of carriers in panels of columns, zeros behind the last; a step is one k, or two of bf16 where the CPU multiplies pairs (panels.py).

    It need not be contiguous, as the transpose of an embedding is not.
    """
    (depth, columns), held = w.shape, np.dtype(panel_type(w.dtype, w.dtype))
    share, width = (2 if held == np.uint32 else 1), COLUMNS * (8 if held == np.float64 else 16)
    panels = np.zeros((-(-columns // width), -(-depth // share), width, share), w.dtype)
    for p, panel in enumerate(panels):
        for s in range(share):
            part = w[s::share, p * width : (p + 1) * width]
            panel[: part.shape[0], : part.shape[1], s] = part
    return (panels.view(held) if share == 2 else panels)[..., 0]


class ProductScratch(NamedTuple):
    """The rows of a product, packed; each thread's sums."""

    a_panels: Num[ndarray, "n"]
    strips: Inexact[ndarray, "threads n"]


def product_scratch(rows: int, depth: int, carrier: np.dtype, threads: int, workspace: Workspace) -> ProductScratch:
    """For products of that many rows of up to `depth` numbers."""
    held = np.dtype(panel_type(carrier, carrier))
    sums = np.dtype(np.float64 if held == np.float64 else np.float32)
    return ProductScratch(
        workspace.array("panels", (rounded_up(rows, ROWS) * rounded_up(depth, PADDED_TO),), held),
        workspace.array("strips", (threads, ROWS * COLUMNS * (64 // sums.itemsize)), sums),
    )


@kernel(parallel=True)
def panel_product(a, panels, c, addend, adds, a_panels, strips):
    """c (N, M) = a (N, K) W, or addend + a W if `adds`; W as panels_of makes it, scratch as product_scratch."""
    (rows, depth), columns = a.shape, c.shape[1]
    count, steps, width = panels.shape
    share, workers = each(a_panels), strips.shape[0]
    room = (depth + PADDED_TO - 1) // PADDED_TO * PADDED_TO // share
    for i in range(0, rows, ROWS):
        for k in range(0, depth, BLOCK_STEPS):
            pack_rows(a.reshape(-1), True, depth, i, rows, k, min(BLOCK_STEPS, depth - k), a_panels, i * room + k // share * ROWS)
    for unsigned in prange(workers):
        worker = np.int64(unsigned)
        strip = strips[worker]
        for p in range(worker * count // workers, (worker + 1) * count // workers):
            for i in range(0, rows, ROWS):
                strip[:] = 0
                if rows == 1:
                    advance(steps, a_panels, i * room, panels, p * steps * width, strip, 0, 1)
                elif rows - i <= FEW_ROWS:
                    advance(steps, a_panels, i * room, panels, p * steps * width, strip, 0, FEW_ROWS)
                else:
                    advance(steps, a_panels, i * room, panels, p * steps * width, strip, 0, ROWS)
                finish(strip, 0, i, min(ROWS, rows - i), p * width, c.reshape(-1), columns, addend.reshape(-1), adds)
