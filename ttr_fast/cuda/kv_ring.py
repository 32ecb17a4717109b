"""The key/value ring buffer on the GPU; the mathematics is in ttr_ref/kv_ring.py.

Slots are the oracle's: token n of a row lies in slot n mod W. Times and counts are the same in all blocks of the network and are kept once.

Ladder:
1. A thread owns a feature of one head's key and value. Measured: not yet, no device.
"""

from typing import NamedTuple

from jaxtyping import Int64, Num, Shaped
from numpy import ndarray

from ttr_fast.cuda.jit import blocks_for, cuda, kernel
from ttr_fast.cuda.rows import THREADS


class KVRing(NamedTuple):
    """Keys and values of one block, in storage type."""

    k: Shaped[ndarray, "B G W D"]
    v: Shaped[ndarray, "B G W D"]


class Past(NamedTuple):
    """What all blocks share: times by slot as they came, how many tokens each row has seen."""

    time: Num[ndarray, "B W"]
    seen: Int64[ndarray, "B"]


@kernel("M[::1], M[:, ::1], int64[::1], int64[::1]", registers=32, threads=THREADS)
def next_places(times, time, seen, position):
    """One thread for each row."""
    b = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if b < seen.size:
        position[b] = seen[b]
        time[b, seen[b] % time.shape[1]] = times[b]
        seen[b] += 1


def kv_ring_next(times, past: Past, position) -> None:
    """Each row's next place: `position` (B,) int64, its time (B,) into the ring, one more seen."""
    next_places[blocks_for(position.size, THREADS), THREADS](times, past.time, past.seen, position)


@kernel("S[:, :, :, ::1], S[:, :, :, ::1], int64[::1], S[:, :, :, ::1], S[:, :, :, ::1]", registers=40, threads=THREADS)
def place_token(new_k, new_v, position, k, v):
    """One thread for each feature of each group of each row."""
    at, groups, d = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, k.shape[1], k.shape[3]
    b, g, f = at // (groups * d), at // d % groups, at % d
    if b < k.shape[0]:
        slot = position[b] % k.shape[2]
        k[b, g, slot, f] = new_k[b, g, 0, f]
        v[b, g, slot, f] = new_v[b, g, 0, f]


def kv_ring_append(new_k, new_v, position, ring: KVRing) -> None:
    """new_k, new_v (B, G, 1, D), keys turned already, become those of the tokens at `position`."""
    rows, groups, _, d = ring.k.shape
    place_token[blocks_for(rows * groups * d, THREADS), THREADS](new_k, new_v, position, *ring)
