"""The key/value ring buffer on the CPU; the mathematics is in ttr_ref/kv_ring.py.

The ring of the oracle has W slots. This one has W rounded up to whole tiles of 64, and one tile more, so that (B, G, W, D) becomes
(B, G, tiles, ·, ·):

    token n lies in tile ⌊n / 64⌋ mod tiles, place n mod 64

Tiles are those of the forward pass, whose borders lie at multiples of 64 in position. A window reaches into ⌈W / 64⌉ + 1 of them at most, so all of
them are there whole up to the newest token, and with them the first key of its own tile, to which times are related (attention_forward.py).

A tile of keys is kept turned, (width, 64): the scores of one query are then chains over its features with keys as lanes, read once as they lie.
Values lie as rows, (64, width). Both are in storage type, head widths filled up with zeros to a multiple of 16.
Times and counts are the same in all blocks and are kept once: times as the forward pass sees them, relative to the row's first if they are integers.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, Num, Shaped
from numpy import ndarray

from ttr_fast.cpu.attention_tiles import BLOCK
from ttr_fast.cpu.jit import kernel


class KVRing(NamedTuple):
    """Keys and values of one block."""

    k: Shaped[ndarray, "B G tiles width 64"]
    v: Shaped[ndarray, "B G tiles 64 width"]


class Past(NamedTuple):
    """What all blocks share: times by slot, what they are relative to, each row's last time as it came, how many tokens it has seen."""

    time: Float64[ndarray, "B slots"]
    first: Num[ndarray, "B"]
    last: Num[ndarray, "B"]
    seen: Int64[ndarray, "B"]


def tiles_of(window: int) -> int:
    """How many tiles hold a window wherever it starts."""
    return -(-window // BLOCK) + 1


def kv_ring_empty(rows: int, groups: int, window: int, width: int, carrier: np.dtype) -> KVRing:
    """A ring that has seen nothing; `width` is a head's, filled up."""
    shape = (rows, groups, tiles_of(window))
    return KVRing(np.zeros((*shape, width, BLOCK), carrier), np.zeros((*shape, BLOCK, width), carrier))


def past_empty(rows: int, window: int, time_dtype: type[np.int64] | type[np.float64]) -> Past:
    """Rows that have seen nothing."""
    return Past(np.zeros((rows, tiles_of(window) * BLOCK)), np.zeros(rows, time_dtype), np.zeros(rows, time_dtype), np.zeros(rows, np.int64))


@kernel()
def first_backwards(times, last, seen):
    """The first row whose time lies before its last one; −1 if there is none."""
    for b in range(times.size):
        if seen[b] > 0 and times[b] < last[b]:
            return b
    return -1


@kernel()
def kv_ring_next(times, relative, time, first, last, seen, position):
    """Each row's next place: `position` (B,), its time into the ring, `relative` to the row's first, one more seen."""
    slots = time.shape[1]
    for b in range(times.size):
        if relative and seen[b] == 0:
            first[b] = times[b]
        position[b], last[b] = seen[b], times[b]
        time[b, seen[b] % slots] = times[b] - first[b]
        seen[b] += 1


@kernel()
def kv_ring_append(source, k_at, v_at, b, g, position, k, v):
    """Key and value of group g of row b, `width` items each of the flat source, become those of the token at `position`."""
    tiles, width = k.shape[2], k.shape[3]
    tile, place = position // BLOCK % tiles, position % BLOCK
    for d in range(width):
        k[b, g, tile, d, place] = source[k_at + d]
        v[b, g, tile, place, d] = source[v_at + d]
