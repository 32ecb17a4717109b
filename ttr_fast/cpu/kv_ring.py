"""The key/value ring buffer on the CPU; the mathematics is in ttr_ref/kv_ring.py.

The ring of the oracle has W slots. This one has W rounded up to whole tiles of 64, and one tile more, so that (B, G, W, D) becomes
(B, G, tiles, ·, ·):

    token n lies in tile ⌊n / 64⌋ mod tiles, place n mod 64

Tiles are those of the forward pass, whose borders lie at multiples of 64 in position. A window reaches into ⌈W / 64⌉ + 1 of them at most, so all of
them are there whole up to the newest token, and with them the first key of its own tile, to which times are related (attention_forward.py).

A tile of keys is kept turned, (width, 64): the scores of one query are then chains over its features with keys as lanes, read once as they lie.
Values lie as rows, (64, width). Both are in storage type, head widths filled up with zeros to a multiple of 16. Where bf16 is multiplied in pairs
(attention_pairs.py) a word holds two numbers: of a key's features, (width / 2, 64), of two neighbouring tokens' values, (32, width).
Times and counts are the same in all blocks and are kept once: times as the forward pass sees them, relative to the row's first if they are integers.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, Num, Shaped
from numpy import ndarray

from ttr_fast.cpu.attention_tiles import BLOCK
from ttr_fast.cpu.jit import kernel
from ttr_fast.cpu.panels import PAIRS


class KVRing(NamedTuple):
    """Keys and values of one block."""

    k: Shaped[ndarray, "B G tiles steps 64"]
    v: Shaped[ndarray, "B G tiles items width"]


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
    if PAIRS and carrier == np.uint16:
        return KVRing(np.zeros((*shape, width // 2, BLOCK), np.uint32), np.zeros((*shape, BLOCK // 2, width), np.uint32))
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
def kv_ring_append(source, k_at, v_at, b, g, position, window, k, v):
    """Key and value of group g of row b, `width` items each of the flat source, become those of the token at `position`."""
    tiles, width = k.shape[2], k.shape[3]
    tile, place = position // BLOCK % tiles, position % BLOCK
    for d in range(width):
        k[b, g, tile, d, place] = source[k_at + d]
        v[b, g, tile, place, d] = source[v_at + d]


@kernel()
def kv_ring_append_pairs(source, k_at, v_at, b, g, position, window, k, v):
    """The same in pairs. Whoever shares a word with a value that is read, but is not read itself, is 0: the token that comes, the one that leaves."""
    tiles, width = v.shape[2], v.shape[4]
    tile, place, leaving = position // BLOCK % tiles, position % BLOCK, position - window
    for d in range(width // 2):
        k[b, g, tile, d, place] = np.uint32(source[k_at + 2 * d]) | np.uint32(source[k_at + 2 * d + 1]) << np.uint32(16)
    for d in range(width):
        word = np.uint32(source[v_at + d])
        v[b, g, tile, place // 2, d] = word if place % 2 == 0 else v[b, g, tile, place // 2, d] & np.uint32(0xFFFF) | word << np.uint32(16)
    if leaving >= 0 and leaving % 2 == 0:
        tile, place = leaving // BLOCK % tiles, leaving % BLOCK
        for d in range(width):
            v[b, g, tile, place // 2, d] &= np.uint32(0xFFFF0000)
