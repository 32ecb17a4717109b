"""Attention of one query a head against the ring, with split keys; the mathematics is in ttr_ref/attention.py.

The ring is cut into parts of SLOTS slots. Each gives the largest score, the sum of exponentials relative to it and the sum of values weighted by
them; a second kernel adds the parts in order, as the online softmax does. A ring that holds W tokens is its window: no query reads further back.

Ladder:
1. A block owns a part of one head's ring, a thread the score of a slot, then every SLOTS-th feature of the values. Measured: not yet, no device.
"""

import math

from ttr_fast.cuda.jit import blocks_for, cuda, kernel
from ttr_fast.cuda.kv_ring import KVRing, Past
from ttr_fast.cuda.numbers import compute_type, exp, load, log, number, store
from ttr_fast.cuda.rows import block_max, block_sum
from ttr_fast.cuda.time_bias import BiasTable, bias_of, head_bias

SLOTS = 64


def parts_of(window: int) -> int:
    """How many parts a ring has."""
    return -(-window // SLOTS)


@kernel(
    "S[:, :, :, ::1], S[:, :, :, ::1], S[:, :, :, ::1], M[:, ::1], int64[::1], int64, int64, C[::1], C[:, ::1], C, C[:, :, ::1], C[:, :, ::1], "
    "C[:, :, :, ::1]",
    registers=48,
    shared=2 * 8 * SLOTS,
    threads=SLOTS,
)
def attend_part(q, k, v, time, position, kind, terms, rate, parameters, scale, tops, totals, sums):
    """Block (x, h, b) has part x of the ring of head h of row b."""
    weights, scratch = cuda.shared.array(SLOTS, compute_type(q)), cuda.shared.array(SLOTS, compute_type(q))
    part, h, b, t = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z, cuda.threadIdx.x
    window, d, last, slot = k.shape[2], k.shape[3], position[b], part * SLOTS + t
    g = h // (q.shape[1] // k.shape[1])
    score = number(q, -math.inf)
    if slot < window and last - (last - slot) % window >= 0:
        score = number(q, 0)
        for f in range(d):
            score += load(q, (b, h, 0, f)) * load(k, (b, g, slot, f))
        delta = number(q, time[b, last % window] - time[b, slot])
        score = score * scale + bias_of(head_bias(kind, terms, rate, parameters, h), delta)
    top = block_max(scratch, score)
    p = exp(score - top) if score != number(q, -math.inf) else number(q, 0)
    weights[t] = p
    total = block_sum(scratch, p)
    if t == 0:
        tops[b, h, part], totals[b, h, part] = top, total
    for f in range(t, d, SLOTS):
        s = number(q, 0)
        for other in range(min(SLOTS, window - part * SLOTS)):
            if weights[other] != 0:
                s += weights[other] * load(v, (b, g, part * SLOTS + other, f))
        sums[b, h, part, f] = s


@kernel("C[:, :, ::1], C[:, :, ::1], C[:, :, :, ::1], S[:, :, :, ::1], C[:, :, ::1]", registers=56, threads=SLOTS)
def add_parts(tops, totals, sums, o, lse):
    """One thread for each feature of each head of each row."""
    at, heads, d = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, o.shape[1], o.shape[3]
    b, h, f = at // (heads * d), at // d % heads, at % d
    if b < o.shape[0]:
        top, total, s = tops[b, h, 0], number(tops, 0), number(tops, 0)
        for part in range(1, tops.shape[2]):
            top = max(top, tops[b, h, part])
        for part in range(tops.shape[2]):
            if totals[b, h, part] != 0:
                weight = exp(tops[b, h, part] - top)
                total += totals[b, h, part] * weight
                s += sums[b, h, part, f] * weight
        store(s / total, o, (b, h, 0, f))
        if f == 0:
            lse[b, h, 0] = top + log(total)


def attention_decode(q, ring: KVRing, past: Past, position, bias: BiasTable, o, lse, tops, totals, sums) -> None:
    """o (B, H, 1, D), lse (B, H, 1) of q (B, H, 1, D), the query of the token at `position` (B,), which lies in the ring already.

    tops, totals (B, H, parts_of(W)) and sums (B, H, parts_of(W), D) are scratch in the type of arithmetic.
    """
    rows, heads, _, d = q.shape
    grid = tops.shape[2], heads, rows
    attend_part[grid, SLOTS](q, *ring, past.time, position, *bias, lse.dtype.type(d**-0.5), tops, totals, sums)
    add_parts[blocks_for(rows * heads * d, SLOTS), SLOTS](tops, totals, sums, o, lse)
