"""The key/value ring buffer: the last W keys and values of each row, at a cost that does not grow with the number of tokens seen.

Token n of a row lies in slot n mod W, over token n − W, which no later query may read when the window is W. So slot s holds

    n(s) = last − ((last − s) mod W),   last = seen − 1,

and nothing yet when that is negative. Attention is told each slot's position and need not know in which order the slots lie.
Keys are stored already rotated: the rotary angle is absolute, only its difference enters a score.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Inexact, Int64, Num, Shaped
from numpy import ndarray

from .float_dtype import FloatDType, to_storage
from .timeline import PADDING, Timeline


class KVRing(NamedTuple):
    """Keys and values in storage type, times as they came, and how many tokens each row has seen."""

    k: Shaped[ndarray, "B G W D"]
    v: Shaped[ndarray, "B G W D"]
    time: Num[ndarray, "B W"]
    seen: Int64[ndarray, "B"]

    @property
    def window(self) -> int:
        """W, the number of slots."""
        return int(self.time.shape[1])


def kv_ring_empty(
    rows: int, groups: int, window: int, head_dim: int, dtype: FloatDType, time_dtype: type[np.int64] | type[np.float64] = np.int64
) -> KVRing:
    """A ring that has seen nothing."""
    shape = (rows, groups, window, head_dim)
    return KVRing(np.zeros(shape, dtype.storage), np.zeros(shape, dtype.storage), np.zeros((rows, window), time_dtype), np.zeros(rows, np.int64))


def kv_ring_append(
    ring: KVRing, k: Inexact[ndarray, "B G D"], v: Inexact[ndarray, "B G D"], time: Num[ndarray, "B"], dtype: FloatDType
) -> KVRing:
    """The ring after one more token in every row."""
    rows, slot = np.arange(ring.seen.size), ring.seen % ring.window
    new_k, new_v, new_time = ring.k.copy(), ring.v.copy(), ring.time.copy()
    new_k[rows, :, slot], new_v[rows, :, slot], new_time[rows, slot] = to_storage(k, dtype), to_storage(v, dtype), time
    return KVRing(new_k, new_v, new_time, ring.seen + 1)


def kv_ring_timeline(ring: KVRing) -> Timeline:
    """Where and when the token in each slot stands; row b is document b."""
    last = ring.seen[:, None] - 1
    position = last - (last - np.arange(ring.window)) % ring.window
    document = np.where(position >= 0, np.arange(ring.seen.size)[:, None], PADDING)
    return Timeline(document, position, ring.time)


def kv_ring_next(ring: KVRing, time: Num[ndarray, "B"]) -> Timeline:
    """Where and when the next token of each row will stand."""
    return Timeline(np.arange(ring.seen.size)[:, None], ring.seen[:, None], time[:, None])
