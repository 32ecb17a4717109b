"""What attention's kernels on tensor cores share: how rows come into shared memory and into registers, products of tiles, who owns which pair.

A block has four warps, each of which owns ROWS rows of the left factor (queries, or keys in backward's second pass) and holds them in registers, or
those of wide heads, for which registers do not suffice, on a shelf in shared memory. The rows of the right factor come through shared memory, STEP at
a time, the next ones while these are multiplied; PAD items behind each row put the eight rows that ldmatrix reads at once into different banks. Of a
warp's tile of pairs each lane has, of every eight columns, two neighbours in the row lane // 4 and two in the row 8 below, as primitives.py says:
item 4 n + e of `sums` is the pair

    row      lane // 4 + 8 (e // 2)
    column   8 n + 2 (lane % 4) + e % 2

Two tiles of sums beside each other, rounded and paired, lie as a left factor does: so weights are multiplied with values where they are.

What is in registers has no index: every loop over it is unrolled. What becomes of a pair is too long a story for that, so there each lane keeps its
pairs in a column of its own of shared memory, (items, THREADS), where no other lane looks and no barrier is needed; but for those that sum the knots
of a table: they wait for their warp, and the barrier of the next step keeps its pairs behind theirs.

What no row of a block reads is not copied. What some row of a warp reads is multiplied for all of its rows, with a weight of 0 where one does not
read it: a number that is none reaches them too, while the readable kernels keep it to the rows that read it.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from ttr_fast.cuda.attention_tiles import kept, pair_is_read
from ttr_fast.cuda.found import LANES
from ttr_fast.cuda.jit import cuda, inner
from ttr_fast.cuda.numbers import number
from ttr_fast.cuda.primitives import copy_async, ldmatrix, ldmatrix_trans, mma, pair, store_pair, unknown

WARPS = 4
THREADS = LANES * WARPS
ROWS = 16
"""Rows of a warp."""
TILE = ROWS * WARPS
"""Rows of a block."""
STEP = 32
"""Rows of the right factor at a time."""
PAIRS = ROWS * STEP // LANES
"""Of a step, those that a lane has."""
SECOND = 2 * STEP
"""Row of shared memory where the two buffers of the second right factor begin, behind those of the first."""
SHELF = 4 * STEP
"""That where the block's rows of the left factors lie, if not in registers: TILE of each."""
PAD = 8
ALIGN = 8
"""Features of a head are a multiple of it: 16 bytes are copied at once."""


class TensorSpec(NamedTuple):
    """What kernels are made for."""

    width: int
    """Features of a head, at most; those that are not there are zeros."""

    @property
    def row(self) -> int:
        """Items of a row in shared memory."""
        return self.width + PAD

    @property
    def shelved(self) -> bool:
        """Whether left factors lie on the shelf."""
        return self.width > 64

    @property
    def held(self) -> int:
        """Pairs of a left factor in each lane's registers; one that nobody uses if there are none."""
        return 1 if self.shelved else self.width // 4

    def row_bytes(self, left: int) -> int:
        """Of all rows in shared memory, with that many left factors."""
        return 2 * self.row * (SHELF + TILE * left * self.shelved)


def for_tensor_cores(template: str) -> str:
    """A signature of the readable kernels, for both storages of 16 bits."""
    return template.replace("S[", "H[")


LOG2_E = np.float32(1 / math.log(2))
INSTRUCTIONS = ("HMMA", "LDSM", "LDGSTS")
TENSOR_SPECS = (TensorSpec(32), TensorSpec(64), TensorSpec(128))
"""The kernels there are."""


@inner
def row_of(e):
    """Of item e of four, within the warp's rows."""
    return cuda.threadIdx.x % LANES // 4 + 8 * (e // 2)


@inner
def column_of(n, e):
    """Of item e of four in the n-th eight columns."""
    return 8 * n + 2 * (cuda.threadIdx.x % 4) + e % 2


@inner
def reach_of_rows(plan, b, first):
    """The first place and one behind the last of the keys that one of the warp's queries reads, which are at first, first + 1, …"""
    low, high = plan[3].shape[1], 0
    for query in range(first, min(first + ROWS, plan[0].shape[1])):
        if plan[0][b, query] < plan[1][b, query]:
            low, high = min(low, plan[0][b, query]), max(high, plan[1][b, query])
    return low, high


def row_holder(spec: TensorSpec) -> Any:
    """How a warp comes by its rows."""
    width, row, chunks, shelved = spec.width, spec.row, spec.width // ALIGN, spec.shelved

    @inner
    def hold_rows(source, b, h, first, held, rows, own):
        """The places first, first + 1, … of source, zeros behind the ends, are a left factor: from now on in `held`, the lane's registers, or on the
        shelf in rows own, own + 1, …, copied in the background.
        """
        if shelved:
            start = (b * source.shape[1] + h) * source.shape[2] * source.shape[3]
            for chunk in range(cuda.threadIdx.x % LANES, unknown(ROWS * chunks), LANES):
                r, f = chunk // chunks, chunk % chunks * ALIGN
                inside = first + r < source.shape[2] and f < source.shape[3]
                copy_async(rows, (own + r) * row + f, source, start + (first + r) * source.shape[3] + f, inside)
        else:
            for m in range(width // 16):
                for part in range(4):
                    place, f, both = first + row_of(2 * (part % 2)), 16 * m + column_of(part // 2, 0), 0
                    if place < source.shape[2] and f < source.shape[3]:
                        both = int(source[b, h, place, f]) & 0xFFFF | (int(source[b, h, place, f + 1]) & 0xFFFF) << 16
                    held[4 * m + part] = np.uint32(both)

    return hold_rows


def row_fetcher(spec: TensorSpec) -> Any:
    """How a block copies rows."""
    row, chunks = spec.row, spec.width // ALIGN

    @inner
    def fetch_rows(source, b, h, begin, reach, rows, at):
        """Rows at, at + 1, … of `rows` become the places begin, begin + 1, … of source in the background; zeros outside of reach, the first place
        and one behind the last: what no query reads may be anything, and is multiplied with weights of 0."""
        d, start = source.shape[3], (b * source.shape[1] + h) * source.shape[2] * source.shape[3]
        for chunk in range(cuda.threadIdx.x, unknown(STEP * chunks), THREADS):
            r, f = chunk // chunks, chunk % chunks * ALIGN
            place = begin + r
            copy_async(rows, (at + r) * row + f, source, start + place * d + f, reach[0] <= place and place < reach[1] and f < d)

    return fetch_rows


def multiplier(spec: TensorSpec) -> Any:
    """How a warp forms its products."""
    row, steps, columns, shelved = spec.row, spec.width // 16, STEP // 8, spec.shelved

    @inner
    def multiply(like, held, rows, own, at, sums):
        """sums = the warp's rows, of which hold_rows was told, times the rows at, at + 1, … of shared memory, feature by feature."""
        lane = cuda.threadIdx.x % LANES
        for i in range(4 * columns):
            sums[i] = np.float32(0)
        for m in range(steps):
            if shelved:
                a0, a1, a2, a3 = ldmatrix(rows, (own + lane % 16) * row + 16 * m + lane // 16 * 8)
            else:
                a0, a1, a2, a3 = held[4 * m], held[4 * m + 1], held[4 * m + 2], held[4 * m + 3]
            for n in range(0, columns, 2):
                b0, b1, b2, b3 = ldmatrix(rows, (at + 8 * n + lane // 16 * 8 + lane % 8) * row + 16 * m + lane // 8 % 2 * 8)
                i, j = 4 * n, 4 * n + 4
                sums[i], sums[i + 1], sums[i + 2], sums[i + 3] = mma(like, sums[i], sums[i + 1], sums[i + 2], sums[i + 3], a0, a1, a2, a3, b0, b1)
                sums[j], sums[j + 1], sums[j + 2], sums[j + 3] = mma(like, sums[j], sums[j + 1], sums[j + 2], sums[j + 3], a0, a1, a2, a3, b2, b3)

    return multiply


def row_adder(spec: TensorSpec) -> Any:
    """How a warp adds weighted rows to its outputs."""
    row, steps, columns = spec.row, STEP // 16, spec.width // 8

    @inner
    def add_rows(like, weights, rows, at, sums):
        """sums += weights, rounded to storage, times the rows at, at + 1, … of shared memory."""
        lane = cuda.threadIdx.x % LANES
        for m in range(steps):
            w = 8 * m
            a0, a1 = pair(like, weights[w], weights[w + 1]), pair(like, weights[w + 2], weights[w + 3])
            a2, a3 = pair(like, weights[w + 4], weights[w + 5]), pair(like, weights[w + 6], weights[w + 7])
            for n in range(0, columns, 2):
                b0, b1, b2, b3 = ldmatrix_trans(rows, (at + 16 * m + lane % 16) * row + 8 * (n + lane // 16))
                i, j = 4 * n, 4 * n + 4
                sums[i], sums[i + 1], sums[i + 2], sums[i + 3] = mma(like, sums[i], sums[i + 1], sums[i + 2], sums[i + 3], a0, a1, a2, a3, b0, b1)
                sums[j], sums[j + 1], sums[j + 2], sums[j + 3] = mma(like, sums[j], sums[j + 1], sums[j + 2], sums[j + 3], a0, a1, a2, a3, b2, b3)

    return add_rows


def row_storer(spec: TensorSpec) -> Any:
    """How a warp stores its outputs."""
    columns = spec.width // 8

    @inner
    def store_rows(sums, factors, target, b, h, first):
        """The places first, first + 1, … of target that are there = sums times factors: one for each of the lane's two rows."""
        for n in range(columns):
            for r in range(2):
                place, f = first + row_of(2 * r), column_of(n, 0)
                if place < target.shape[2] and f < target.shape[3]:
                    at = ((b * target.shape[1] + h) * target.shape[2] + place) * target.shape[3] + f
                    store_pair(sums[4 * n + 2 * r] * factors[r], sums[4 * n + 2 * r + 1] * factors[r], target, at)

    return store_rows


@inner
def draw_mask(plan, words, factors, heads, b, h, first_row, first_column, turned):
    """Bit i: whether dropout keeps the weight of pair i; none where there is no site. turned: rows are keys."""
    bits = 0
    for i in range(unknown(PAIRS) * factors.size):
        row, column = first_row + row_of(i % 4), first_column + column_of(i // 4, i)
        query, key = (column, row) if turned else (row, column)
        if pair_is_read(plan, b, query, key) and kept(number(factors, 1), plan, words, factors, heads, b, h, query, key) != 0:
            bits |= 1 << i
    return bits


@inner
def factor_of(mask, i, factors):
    """What dropout multiplies the weight of pair i with."""
    return number(factors, 1) if factors.size == 0 else factors[0] if mask >> i & 1 else number(factors, 0)
