"""Where and when each token stands: the document it belongs to, its position there, its time.

A batch of B rows of T places is filled in one of two ways:

- `lengths`: one document a row, padding at the end;
- `cu_seqlens` (0 = c₀ < c₁ < … < c_n): documents packed one after the other over the places read row by row; document d owns
  the places c_d … c_{d+1} − 1, all in one row; what lies behind c_n is padding.

Positions count from the start of the document, so rotary angles, dropout and windows do not know about packing.
When there are fewer queries than keys, the queries are the last ones: give their timeline a `shift` of (number of keys − number of queries).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Integer, Num
from numpy import ndarray

from .config import TimeConfig

PADDING = -1


class Timeline(NamedTuple):
    """One entry for each place of a batch."""

    document: Integer[ndarray, "B T"]
    """Index of the document in the *global* batch; PADDING where no token stands."""
    position: Integer[ndarray, "B T"]
    """Position in the document; negative for queries that stand before the first key."""
    time: Num[ndarray, "B T"]
    """Time in the caller's unit, int64 or float64; anything at all in padding."""

    @property
    def is_token(self) -> Bool[ndarray, "B T"]:
        """False in padding."""
        return self.document != PADDING

    def places(self, rows: slice, columns: slice) -> "Timeline":
        """The timeline of a rectangle of places."""
        return Timeline(*(a[rows, columns] for a in self))


def timeline_from_lengths(
    time: Num[ndarray, "B T"], lengths: Integer[ndarray, "B"], shift: int | Integer[ndarray, "B"] = 0, first_document: int = 0
) -> Timeline:
    """Row b holds document first_document + b in its first lengths[b] places, starting at position shift[b].

    Raises TypeError for times that are not int64 or float64, ValueError for a length outside 0 … T.
    """
    rows, places = _shape_of_times(time)
    if np.any(lengths < 0) or np.any(lengths > places):
        raise ValueError(f"timeline: lengths must be in 0 … {places}, got {lengths.min()} … {lengths.max()}")
    index = np.arange(places)
    document = np.where(index < lengths[:, None], first_document + np.arange(rows)[:, None], PADDING)
    position = index + np.broadcast_to(shift, rows)[:, None]
    return Timeline(document, position, time)


def timeline_from_cu_seqlens(
    time: Num[ndarray, "B T"], cu_seqlens: Integer[ndarray, "n_plus_1"], shift: int | Integer[ndarray, "n"] = 0, first_document: int = 0
) -> Timeline:
    """Documents packed over the places of all rows; document d starts at position shift[d].

    Raises TypeError for times that are not int64 or float64, ValueError if cu_seqlens does not start at 0, decreases, ends behind the last place, or
    lets a document cross from one row to the next.
    """
    rows, places = _shape_of_times(time)
    start, end = cu_seqlens[:-1], cu_seqlens[1:]
    if cu_seqlens[0] != 0 or np.any(end < start) or cu_seqlens[-1] > rows * places:
        raise ValueError(f"timeline: cu_seqlens must rise from 0 to at most {rows * places}, got {cu_seqlens.tolist()}")
    crossing = (end > start) & (start // places != (end - 1) // places)
    if np.any(crossing):
        raise ValueError(f"timeline: document {np.argmax(crossing)} crosses from one row of {places} places into the next")
    document = np.full(rows * places, PADDING)
    position = np.zeros(rows * places, dtype=np.int64)
    shifts = np.broadcast_to(shift, start.size)
    for d in range(start.size):
        document[start[d] : end[d]] = first_document + d
        position[start[d] : end[d]] = shifts[d] + np.arange(end[d] - start[d])
    return Timeline(document.reshape(rows, places), position.reshape(rows, places), time)


def _shape_of_times(time: ndarray) -> tuple[int, int]:
    if time.dtype not in (np.int64, np.float64):
        raise TypeError(f"timeline: times must be int64 or float64 ({time.dtype} cannot tell seconds of UNIX time apart)")
    return time.shape[0], time.shape[1]


def elapsed(at: Timeline, time: TimeConfig) -> Float64[ndarray, "B T"]:
    """τ = (t − origin) / unit: subtracted in the caller's type, then float64; 0 in padding, whose times are never read."""
    return np.where(at.is_token, at.time - np.asarray(time.origin, at.time.dtype), 0).astype(np.float64) / time.unit


def key_set(at_q: Timeline, at_k: Timeline, causal: bool, window: int | None) -> Bool[ndarray, "B T_q T_k"]:
    """Which keys each query reads: same document, j ≤ i when causal, j > i − W when a window is set."""
    i, j = at_q.position[:, :, None], at_k.position[:, None, :]
    read = (at_q.document[:, :, None] == at_k.document[:, None, :]) & at_q.is_token[:, :, None]
    if causal:
        read &= j <= i
    if window is not None:
        read &= j > i - window
    return read


def time_differences(at_q: Timeline, at_k: Timeline, read: Bool[ndarray, "B T_q T_k"], causal: bool) -> Float64[ndarray, "B T_q T_k"]:
    """Δ_ij = t_i − t_j, |t_i − t_j| without causality; 0 where nothing is read.

    Subtracted in the caller's type, so two UNIX times a second apart differ by exactly one second.
    Raises ValueError if a causal query reads a key that is later in time.
    """
    t_q, t_k = np.where(at_q.is_token, at_q.time, 0), np.where(at_k.is_token, at_k.time, 0)
    delta = np.where(read, t_q[:, :, None] - t_k[:, None, :], 0).astype(np.float64)
    if not causal:
        return np.abs(delta)
    if np.any(delta < 0):
        b, i, j = np.argwhere(delta < 0)[0]
        raise ValueError(f"timeline: times go backwards in document {at_q.document[b, i]}: {t_k[b, j]} is followed by {t_q[b, i]}")
    return delta
