"""Dropout of features and whole heads on the CPU; counters and masks are those of ttr_ref/dropout.py, bit for bit.

One call of the vectorised generator draws four words in each lane, a lane being a group of four columns: side by side they are the mask of four
vectors. Two sites that follow each other (feed-forward, then the block's output) and the residual sum take one pass and one rounding.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Inexact, Int64
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy import ndarray

from ttr_fast.cpu import rows, simd
from ttr_fast.cpu.jit import inner, kernel
from ttr_fast.cpu.philox import emit_philox
from ttr_fast.cpu.simd import COMPUTE, I32, LANES, VECTORS, Emitter
from ttr_fast.cpu.team import share, team
from ttr_ref.dropout import Dropout
from ttr_ref.philox import M0, M1, ROUNDS, W0, W1

THRESHOLD, SITE, SEED, STEP = range(4)


class Sites(NamedTuple):
    """What kernels are told of dropouts that follow each other."""

    words: Int64[ndarray, "S 4"]
    """Keep iff a random word is at least THRESHOLD; the number of the site; the key's two words."""
    factors: Inexact[ndarray, "S"]
    """1 / (1 − p); 0 where the threshold is 2³², which no word reaches."""


def sites_of(drops: list[Dropout | None], compute: np.dtype) -> Sites:
    """Those that draw something, in the order in which they multiply; backward takes them the other way round."""
    drawing = [d for d in drops if d is not None and d.p > 0]
    words = [(round(d.p * 2**32), d.site, d.key.seed % 2**32, d.key.step % 2**32) for d in drawing]
    return Sites(np.array(words, np.int64).reshape(-1, 4), np.array([1 / (1 - d.p) if round(d.p * 2**32) < 2**32 else 0 for d in drawing], compute))


@kernel()
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Four random words for four words and a key, all uint64 below 2³²."""
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(ROUNDS):
        p0, p1 = np.uint64(M0) * c0, np.uint64(M1) * c2
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ k0, p1 & low, (p0 >> half) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + np.uint64(W0)) & low, (k1 + np.uint64(W1)) & low
    return c0, c1, c2, c3


@intrinsic
def draw(typing, like, group, row, third, words, factor):
    """Four vectors: `factor` where a column is kept, 0 where dropped; from column 4 · group, the site's words being (threshold, site, seed, step)."""
    scalar = COMPUTE[like.dtype]
    lanes = LANES[scalar]
    vector = VECTORS[scalar]
    result: Any = types.UniTuple(vector, 4)

    def generate(context, b, signature, arguments):
        _, first, row_value, third_value, site_words, by = arguments
        e = Emitter(context, b, scalar)
        threshold, site, seed, step = (b.extract_value(site_words, i) for i in range(4))
        narrow = ir.VectorType(I32, lanes)

        def word(x):
            return b.trunc(x, I32)

        groups = b.add(e.splat(word(first)), ir.Constant(narrow, list(range(lanes))))
        counters = [groups, *(e.splat(word(x)) for x in (row_value, third_value, site))]
        drawn = emit_philox(b, counters, (word(seed), word(step)), lanes)
        pairs = [b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, 2 * lanes), list(range(2 * lanes)))) for x, y in (drawn[:2], drawn[2:])]
        masks = []
        for part in range(4):  # column 4 g + j of the group g is word j of lane g
            columns = [part * lanes + lane for lane in range(lanes)]
            taken = ir.Constant(narrow, [column % 4 * lanes + column // 4 for column in columns])
            words_here = b.shuffle_vector(*pairs, taken)
            kept = b.icmp_unsigned(">=", words_here, e.splat(word(threshold)))
            masks.append(b.select(kept, e.splat(by), e.constant(0.0)))
        return context.make_tuple(b, result, masks)

    return result(like, types.int64, types.int64, types.int64, types.UniTuple(types.int64, 4), scalar), generate


@inner()
def dropped(v, a, b, count):
    """v times the masks of up to two sites, in order."""
    if count > 0:
        v = simd.mul(v, a)
    if count > 1:
        v = simd.mul(v, b)
    return v


@team()
def drop_features(worker, workers, x, residual, y, position, document, words, factors):
    """y = residual + masks ∘ x; residual (N, E) or None. y may be x or the residual."""
    n, e = x.shape
    lanes, count = rows.lanes_of(x), words.shape[0]
    begin, end = share(worker, workers, n)
    for i in range(begin, end):
        for first in range(0, e, 4 * lanes):
            one = rows.full(x, 1)
            a, b = (one, one, one, one), (one, one, one, one)
            if count > 0:
                a = draw(x, first // 4, position[i], document[i], (words[0, 0], words[0, 1], words[0, 2], words[0, 3]), factors[0])
            if count > 1:
                b = draw(x, first // 4, position[i], document[i], (words[1, 0], words[1, 1], words[1, 2], words[1, 3]), factors[1])
            for part in range(4):
                k = first + part * lanes
                if k < e:
                    v = dropped(rows.load_part(x, i * e + k, e - k), a[part], b[part], count)
                    if residual is not None:
                        v = simd.add(rows.load_part(residual, i * e + k, e - k), v)
                    rows.store_part(v, y, i * e + k, e - k)


def dropout_forward(x, residual, sites: Sites, position, document, y) -> None:
    """y = residual + drop_b(drop_a(x)), the drops being those of `sites`, two at most; residual (N, E) or None.

    x, y (N, E) of any storage, equal in arithmetic; position, document (N,) int64. y may be x or the residual.
    Raises ValueError for more than two sites.
    """
    if sites.factors.size > 2:
        raise ValueError(f"dropout: at most two sites follow each other, got {sites.factors.size}")
    drop_features(x, residual, y, position, document, sites.words, sites.factors)


def dropout_backward(dy, sites: Sites, position, document, dx) -> None:
    """dx = m ∘ dy, the masks drawn again; the last site multiplies first."""
    dropout_forward(dy, None, Sites(sites.words[::-1].copy(), sites.factors[::-1].copy()), position, document, dx)


@kernel()
def draw_heads(document, words, factors, y):
    """y (N, H): 1 / (1 − p) or 0 for each head of each document, from one site; 1 from none."""
    n, heads = y.shape
    y[:] = 1
    for i in range(n if words.shape[0] else 0):
        third = np.uint64(np.uint32(document[i]))
        for first in range(0, heads, 4):
            key = np.uint64(words[0, SEED]), np.uint64(words[0, STEP])
            drawn = philox4x32(np.uint64(first // 4), np.uint64(0), third, np.uint64(words[0, SITE]), key[0], key[1])
            for h in range(first, min(first + 4, heads)):
                y[i, h] = factors[0] if drawn[h - first] >= np.uint64(words[0, THRESHOLD]) else 0


def head_dropout_factors(document, sites: Sites, y) -> None:
    """y (N, H), in the type of arithmetic, with which the outputs of heads and their gradients are multiplied; document (N,) int64."""
    draw_heads(document, sites.words, sites.factors, y)
