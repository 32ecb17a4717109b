"""Dropout of features and whole heads on the GPU; counters and masks are those of ttr_ref/dropout.py, bit for bit.

Two sites that follow each other (feed-forward, then the block's output) and the residual sum take one pass and one rounding.

Ladder:
1. A thread owns four neighbouring features of a token, for which one call of the generator draws. Measured: not yet, no device.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Inexact, Int64
from numpy import ndarray

from ttr_fast.cuda.jit import blocks_for, cuda, inner, kernel
from ttr_fast.cuda.numbers import load, number, store, times
from ttr_fast.cuda.philox import philox4x32
from ttr_ref.dropout import Dropout

THREADS = 128
THRESHOLD, SITE, SEED, STEP = range(4)
WORD = 0xFFFFFFFF


class Sites(NamedTuple):
    """What kernels are told of dropouts that follow each other."""

    words: Int64[ndarray, "S 4"]
    """Keep iff a random word is at least THRESHOLD; the number of the site; the key's two words."""
    factors: Inexact[ndarray, "S"]
    """1 / (1 − p); 0 where the threshold is 2³², which no word reaches."""


def sites_of(drops: list[Dropout | None], compute: np.dtype) -> Sites:
    """Those that draw something, in the order in which they multiply; arrays of the host."""
    drawing = [d for d in drops if d is not None and d.p > 0]
    words = [(round(d.p * 2**32), d.site, d.key.seed % 2**32, d.key.step % 2**32) for d in drawing]
    return Sites(np.array(words, np.int64).reshape(-1, 4), np.array([1 / (1 - d.p) if round(d.p * 2**32) < 2**32 else 0 for d in drawing], compute))


@inner
def drawn(words, s, group, row, third):
    """The four words of site s for a group of four columns; row and third modulo 2³²."""
    site, seed, step = np.uint64(words[s, SITE]), np.uint64(words[s, SEED]), np.uint64(words[s, STEP])
    return philox4x32(np.uint64(group), np.uint64(row & WORD), np.uint64(third & WORD), site, seed, step)


@inner
def one_of(four, lane):
    """An item of a tuple, which compiled code can only be asked for by a constant."""
    return four[0] if lane == 0 else four[1] if lane == 1 else four[2] if lane == 2 else four[3]


@kernel(
    (
        "S[:, ::1], S[:, ::1], boolean, S[:, ::1], int64[::1], int64[::1], int64[:, ::1], C[::1]",
        "C[:, ::1], S[:, ::1], boolean, S[:, ::1], int64[::1], int64[::1], int64[:, ::1], C[::1]",
    ),
    registers=48,
    threads=THREADS,
)
def drop_features(x, residual, with_residual, y, position, document, words, factors):
    """y = residual + masks ∘ x; one thread for each group of four columns of a row."""
    at, e = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, x.shape[1]
    groups, count = (e + 3) // 4, factors.size
    i, group = at // groups, at % groups
    if i < x.shape[0]:
        zero = np.uint64(0)
        first, second = (zero, zero, zero, zero), (zero, zero, zero, zero)
        if count > 0:
            first = drawn(words, 0, group, position[i], document[i])
        if count > 1:
            second = drawn(words, 1, group, position[i], document[i])
        for lane in range(4):
            k = 4 * group + lane
            if k < e:
                v = load(x, (i, k))
                if count > 0:
                    v = times(v, factors[0] if one_of(first, lane) >= np.uint64(words[0, THRESHOLD]) else number(factors, 0))
                if count > 1:
                    v = times(v, factors[1] if one_of(second, lane) >= np.uint64(words[1, THRESHOLD]) else number(factors, 0))
                if with_residual:
                    v = load(residual, (i, k)) + v
                store(v, y, (i, k))


def dropout_forward(x, residual, sites: Sites, position, document, y) -> None:
    """y = residual + drop_b(drop_a(x)), the drops being those of `sites`, two at most; residual (N, E) or None.

    x (N, E) in the storage of y or in its type of arithmetic; residual, y (N, E); position, document (N,) int64. y may be x or the residual.
    Raises ValueError for more than two sites.
    """
    if sites.factors.size > 2:
        raise ValueError(f"dropout: at most two sites follow each other, got {sites.factors.size}")
    threads = x.shape[0] * -(-x.shape[1] // 4)
    added = y if residual is None else residual
    drop_features[blocks_for(threads, THREADS), THREADS](x, added, residual is not None, y, position, document, *sites)


def backward_order(sites: Sites) -> Sites:
    """The last site multiplies first; arrays of the host."""
    return Sites(sites.words[::-1].copy(), sites.factors[::-1].copy())


def dropout_backward(dy, sites: Sites, position, document, dx) -> None:
    """dx = m ∘ dy, the masks drawn again; sites: backward_order."""
    dropout_forward(dy, None, sites, position, document, dx)


@kernel("int64[::1], int64[:, ::1], C[::1], C[:, ::1]", registers=32, threads=THREADS)
def draw_heads(document, words, factors, y):
    """y (N, H): 1 / (1 − p) or 0 for each head of each document, from one site; 1 from none. One thread for each item."""
    at, heads = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, y.shape[1]
    if at < y.size:
        i, h = at // heads, at % heads
        y[i, h] = number(factors, 1)
        if factors.size > 0:
            word = one_of(drawn(words, 0, h // 4, 0, document[i]), h % 4)
            y[i, h] = factors[0] if word >= np.uint64(words[0, THRESHOLD]) else number(factors, 0)


def head_dropout_factors(document, sites: Sites, y) -> None:
    """y (N, H), in the type of arithmetic, with which the outputs of heads and their gradients are multiplied; document (N,) int64."""
    draw_heads[blocks_for(y.size, THREADS), THREADS](document, *sites, y)
