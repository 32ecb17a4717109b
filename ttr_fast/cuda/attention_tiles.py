"""What attention's kernels share: tiles of rows in shared memory, tiles of products in registers, what becomes of a pair of query and key.

A block has 64 threads, SIDE × SIDE. Of a tile of pairs thread (i, j) owns the rows i, i + SIDE, … and the columns j, j + SIDE, …, and likewise of a
tile of outputs: so each number that is read from shared memory is used as often as the thread owns rows or columns. Sums run in registers, where no
loop may be too long to be unrolled; what becomes of a pair is a long story, so pairs wait for it in shared memory.
"""

from typing import Any, NamedTuple

import numpy as np

from ttr_fast.cuda.dropout import THRESHOLD, drawn, one_of
from ttr_fast.cuda.jit import cuda, inner
from ttr_fast.cuda.numbers import load, number
from ttr_fast.cuda.time_bias import bias_of

SIDE = 8
THREADS = SIDE * SIDE
PLAN = "int64[:, ::1], int64[:, ::1], float64[:, ::1], float64[:, ::1], int64[:, ::1], int64[:, ::1], int64[:, ::1], boolean"
BIAS = "int64, int64, C[::1], C[:, ::1]"
DROP = "int64[:, ::1], C[::1]"


class Spec(NamedTuple):
    """What kernels are made for."""

    compute: str
    """float32, or float64 for storage in it."""
    width: int

    @property
    def tile(self) -> int:
        """Queries and keys of a tile: as many as there is room for, four panels of rows and two of pairs."""
        size = np.dtype(self.compute).itemsize
        return min(128 // size, 8192 // (self.width * size))

    @property
    def storages(self) -> list[str]:
        """Of queries, keys, values and outputs."""
        return ["float64"] if self.compute == "float64" else ["float32", "int16", "uint16"]

    def signatures(self, template: str) -> tuple[str, ...]:
        """A signature with S and C, for each storage."""
        return tuple(template.replace("S[", f"{s}[").replace("C[", f"{self.compute}[").replace("C,", f"{self.compute},") for s in self.storages)


SPECS = (Spec("float32", 32), Spec("float32", 64), Spec("float32", 128), Spec("float64", 32))
"""The kernels there are; float64 is there to check gradients."""


def spec_for(compute: np.dtype, d: int) -> Spec:
    """The narrowest kernels for heads of d features. Raises ValueError for more than there are."""
    fitting = [spec for spec in SPECS if spec.compute == compute.name]
    for spec in fitting:
        if d <= spec.width:
            return spec
    raise ValueError(f"attention: on the GPU a head has at most {fitting[-1].width} features in {compute.name}, got {d}")


@inner
def fetch(source, b, h, first, width, tile, rows):
    """rows[r, f] = feature f of place first + r of head h; zeros behind the ends."""
    for at in range(cuda.threadIdx.x, tile * width, THREADS):
        r, f = at // width, at % width
        v = number(source, 0)
        if first + r < source.shape[2] and f < source.shape[3]:
            v = load(source, (b, h, first + r, f))
        rows[r, f] = v


@inner
def pair_is_read(plan, b, query, key):
    """Whether query reads key; plan: the fields of AttentionPlan."""
    return query < plan[0].shape[1] and plan[0][b, query] <= key and key < plan[1][b, query]


@inner
def elapsed(like, time_q, time_k, causal):
    """Δ, subtracted in float64."""
    d = time_q - time_k
    return number(like, d if causal else abs(d))


@inner
def difference(plan, like, b, query, key):
    """Δ of a pair that is read."""
    return elapsed(like, plan[2][b, query], plan[3][b, key], plan[7])


@inner
def pair_score(product, scale, bias, delta):
    """The score of a pair that is read; bias: head_bias."""
    return product * scale + bias_of(bias, delta)


@inner
def kept(p, plan, words, factors, heads, b, h, query, key):
    """p times dropout's mask of the pair; as it is where there is no site."""
    if factors.size > 0:
        column = plan[5][b, key]
        four = drawn(words, 0, column // 4 & 0xFFFFFFFF, plan[4][b, query], plan[6][b, query] * heads + h)
        p = p * factors[0] if one_of(four, column % 4) >= np.uint64(words[0, THRESHOLD]) else number(p, 0)
    return p


def chain_maker(spec: Spec) -> Any:
    """How a thread forms its products."""
    part, dtype = spec.tile // SIDE, np.dtype(spec.compute).type

    @inner
    def chains(left, right, d, products):
        """products[i + SIDE r, j + SIDE c] = Σ_f left[i + SIDE r, f] · right[j + SIDE c, f], one chain each."""
        i, j = cuda.threadIdx.x // SIDE, cuda.threadIdx.x % SIDE
        sums = cuda.local.array((part, part), dtype)
        for r in range(part):
            for c in range(part):
                sums[r, c] = number(sums, 0)
        for f in range(d):
            for r in range(part):
                x = left[i + SIDE * r, f]
                for c in range(part):
                    sums[r, c] += x * right[j + SIDE * c, f]
        for r in range(part):
            for c in range(part):
                products[i + SIDE * r, j + SIDE * c] = sums[r, c]

    return chains


def row_adder(spec: Spec) -> Any:
    """How a thread adds weighted rows to its outputs."""
    columns = spec.width // SIDE

    @inner
    def add_row(weight, r, rows, c, sums):
        """sums[r, f] += weight · rows[c, j + SIDE f]; a weight of 0 reads nothing, so that what no query reads may be NaN."""
        if weight != 0:
            for f in range(columns):
                sums[r, f] += weight * rows[c, cuda.threadIdx.x % SIDE + SIDE * f]

    return add_row
