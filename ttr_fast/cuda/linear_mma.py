"""Matrix products of 16-bit storages on tensor cores; `linear.matmul` says which products come here.

Each number of the result is one chain of m16n8k16 products over the inner axis, in order, whatever stands beside it and whatever the tile. Rows of
both matrices have to be a multiple of 8 items long, since copies are of 16 bytes; the other axes end anywhere, behind which copies bring zeros.

A tile lies in shared memory as its matrix lies in global memory, so that neither is turned while it is copied; where the inner axis is not the one
along rows, `ldmatrix_trans` turns it on the way to registers. Eight rows that are read together meet no bank twice:

    along   [outer][STEPS]   16 bytes c of row r are at place c ^ (r / 2 mod 4)
    across  [STEPS][outer]   16 bytes c of row r are at place c ^ (r mod 8)

Ladder:
1. linear.py: products on the cores for float32. Measured: not yet, no device.
2. MANY: a warp owns 64 × 64 numbers in registers, for which it loads 64 + 64 rows of factors per 32 products on tensor cores: shared memory keeps up.
   A block of four warps owns 128 × 128; while it multiplies STEPS steps of the inner axis, copies bring the next two, with one barrier for each.
   Blocks go down GROUP tiles of rows before they go on to the next columns, so that those that run together share what they read. 48 KiB a block,
   two blocks a processor. Measured: not yet, no device.
3. FEW: where there are few rows, as in decoding, all there is to do is to read W. A block has 16 rows and 64 columns, so that there are many blocks,
   and each has seven times STEPS steps on the way. Measured: not yet, no device.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ttr_fast.cuda.jit import blocks_for, cuda, inner, kernel
from ttr_fast.cuda.primitives import commit_copies, copy_async, ldmatrix, ldmatrix_trans, load_pair, mma, store_pair, wait_copies

STEPS, GROUP, THREADS = 32, 8, 128
ZERO = np.float32(0)


class Tile(NamedTuple):
    """Rows and columns of a block's tile and of each of its four warps' parts; how many times STEPS steps lie in shared memory."""

    rows: int
    columns: int
    warp_rows: int
    warp_columns: int
    stages: int

    @property
    def nbytes(self) -> int:
        """Of shared memory."""
        return 2 * self.stages * STEPS * (self.rows + self.columns)


MANY, FEW = Tile(128, 128, 64, 64, 3), Tile(16, 64, 16, 16, 8)
FEW_ROWS = 32
"""Up to so many rows FEW has them."""


def fetcher(along: bool, side: int) -> Callable[..., None]:
    """What starts to copy side × STEPS items of a matrix to a tile: along, where its rows go along the inner axis, or across."""
    pieces = STEPS // 8 if along else side // 8
    high, mask, shift = THREADS // pieces, (3 if along else 7), (1 if along else 0)
    every = side * STEPS // 8
    rounds, whole = -(-every // THREADS), every % THREADS == 0

    @inner
    def fetch(array, first, step, tile, at):
        """From `first` on the outer and `step` on the inner axis."""
        top, left = (first, step) if along else (step, first)
        t = cuda.threadIdx.x
        piece, above = t % pieces, t // pieces
        for i in range(rounds):
            r = above + high * i
            row, column = top + r, left + 8 * piece
            if whole or t + THREADS * i < every:
                inside = row < array.shape[0] and column < array.shape[1]
                copy_async(tile, at + 8 * (r * pieces + (piece ^ (r >> shift & mask))), array, row * array.shape[1] + column, inside)

    return fetch


def reader(along: bool, side: int, is_b: bool) -> Callable[..., Any]:
    """What loads the factors of 16 rows of A, or 16 columns of B, and 16 steps: two fragments of B, b0 b1 and b2 b3."""
    by_halves = along != is_b

    @inner
    def read(tile, at, outer, step):
        """outer, step: multiples of 16 within the tile."""
        lane = cuda.threadIdx.x & 31
        r, piece = (lane & 15, lane >> 4) if by_halves else ((lane & 7) + (lane >> 4 << 3), lane >> 3 & 1)
        if along:
            return ldmatrix(tile, at + (outer + r) * STEPS + (step ^ ((piece ^ (r >> 1 & 3)) << 3)))
        return ldmatrix_trans(tile, at + (step + r) * side + (outer ^ ((piece ^ (r & 7)) << 3)))

    return read


def tile_of(block, down, wide):
    """Which tile a block has: its row and column in a grid of so many tiles. GROUP rows of tiles are done before the next, column by column."""
    group = block // (GROUP * wide)
    within, high = block - group * GROUP * wide, min(GROUP, down - group * GROUP)
    return group * GROUP + within % high, within // high


tile_of_block = inner(tile_of)


def product_of(turned_a: bool, turned_b: bool, tile: Tile) -> Any:
    """The kernel for one way that a and b lie."""
    rows, columns, warp_rows, warp_columns, stages = tile
    fetch_a, fetch_b = fetcher(not turned_a, rows), fetcher(turned_b, columns)
    read_a, read_b = reader(not turned_a, rows, False), reader(turned_b, columns, True)
    ahead, behind, beside = stages - 1, stages - 2, columns // warp_columns
    size_a, size_b = rows * STEPS, columns * STEPS
    all_a, all_b = stages * size_a, stages * size_b
    high, wide = warp_rows // 16, warp_columns // 16
    numbers, factors = 8 * high * wide, 4 * high

    @kernel(
        ("H[:, ::1], H[:, ::1], H[:, ::1], boolean, H[:, ::1]", "H[:, ::1], H[:, ::1], C[:, ::1], boolean, C[:, ::1]"),
        registers=255 if tile == MANY else 64,
        shared=tile.nbytes,
        threads=THREADS,
        variant=f"{rows} {'aT' if turned_a else 'a'} {'bT' if turned_b else 'b'}",
        instructions=("HMMA", "LDSM", "LDGSTS"),
    )
    def product(a, b, addend, with_addend, out):
        """Each block has one tile of the result."""
        left = cuda.shared.array(all_a, a.dtype, alignment=16)
        right = cuda.shared.array(all_b, a.dtype, alignment=16)
        sums = cuda.local.array(numbers, np.float32)
        x = cuda.local.array(factors, np.uint32)
        for i in range(numbers):
            sums[i] = ZERO
        steps = a.shape[0] if turned_a else a.shape[1]
        row, column = tile_of_block(cuda.blockIdx.x, (out.shape[0] + rows - 1) // rows, (out.shape[1] + columns - 1) // columns)
        first_row, first_column = row * rows, column * columns
        warp, lane = cuda.threadIdx.x >> 5, cuda.threadIdx.x & 31
        top, start = warp // beside * warp_rows, warp % beside * warp_columns
        some = first_row + top < out.shape[0] and first_column + start < out.shape[1]
        for stage in range(ahead):
            fetch_a(a, first_row, stage * STEPS, left, stage * size_a)
            fetch_b(b, first_column, stage * STEPS, right, stage * size_b)
            commit_copies()
        at, free = 0, ahead
        for step in range(0, steps, STEPS):
            wait_copies(behind)
            cuda.syncthreads()
            if step + ahead * STEPS < steps:
                fetch_a(a, first_row, step + ahead * STEPS, left, free * size_a)
                fetch_b(b, first_column, step + ahead * STEPS, right, free * size_b)
            commit_copies()
            if some:
                for k in range(0, STEPS, 16):
                    for m in range(high):
                        x[4 * m], x[4 * m + 1], x[4 * m + 2], x[4 * m + 3] = read_a(left, at * size_a, top + 16 * m, k)
                    for n in range(wide):
                        b0, b1, b2, b3 = read_b(right, at * size_b, start + 16 * n, k)
                        for m in range(high):
                            s, f = 8 * (m * wide + n), 4 * m
                            sums[s], sums[s + 1], sums[s + 2], sums[s + 3] = mma(
                                a, sums[s], sums[s + 1], sums[s + 2], sums[s + 3], x[f], x[f + 1], x[f + 2], x[f + 3], b0, b1
                            )
                            sums[s + 4], sums[s + 5], sums[s + 6], sums[s + 7] = mma(
                                a, sums[s + 4], sums[s + 5], sums[s + 6], sums[s + 7], x[f], x[f + 1], x[f + 2], x[f + 3], b2, b3
                            )
            free = at
            at = at + 1 if at < ahead else 0
        row, column = first_row + top + (lane >> 2), first_column + start + 2 * (lane & 3)
        if with_addend:
            for m in range(2 * high):
                for n in range(2 * wide):
                    s = 4 * ((m >> 1) * 2 * wide + n) + 2 * (m & 1)
                    if row + 8 * m < out.shape[0] and column + 8 * n < out.shape[1]:
                        first, second = load_pair(addend, (row + 8 * m) * out.shape[1] + column + 8 * n)
                        sums[s] += first
                        sums[s + 1] += second
        for m in range(2 * high):
            for n in range(2 * wide):
                s = 4 * ((m >> 1) * 2 * wide + n) + 2 * (m & 1)
                if row + 8 * m < out.shape[0] and column + 8 * n < out.shape[1]:
                    store_pair(sums[s], sums[s + 1], out, (row + 8 * m) * out.shape[1] + column + 8 * n)

    return product


PRODUCTS = {way: product_of(*way, MANY) for way in ((False, False), (False, True), (True, False))}
PRODUCTS_OF_FEW = {way: product_of(*way, FEW) for way in ((False, False), (False, True))}


def matmul_mma(a, turned_a: bool, b, turned_b: bool, addend, out) -> None:
    """As `linear.matmul`, which says what comes here; out is not empty. Whatever the tile, the bits are the same."""
    few = out.shape[0] <= FEW_ROWS and not turned_a
    tile, made = (FEW, PRODUCTS_OF_FEW) if few else (MANY, PRODUCTS)
    grid = blocks_for(out.shape[0], tile.rows) * blocks_for(out.shape[1], tile.columns)
    made[turned_a, turned_b][grid, THREADS](a, b, out if addend is None else addend, addend is not None, out)
