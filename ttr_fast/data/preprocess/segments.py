"""Where sequences begin and end."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..sequences import Times

Integers = NDArray[np.int64]


class Pieces(NamedTuple):
    """Sequences as ranges of the tokens of sorted records: piece i is starts[i]:stops[i], and records[i] is the one of its first token."""

    starts: Integers
    stops: Integers
    records: Integers


def pieces(bounds: Integers, begins: NDArray[np.bool_], length: int | None, overlap: int) -> Pieces:
    """Cut where a record begins a new sequence, and what is longer than `length` again.

    bounds: (n + 1,) where each record's tokens start, and the end of the last; begins: (n,). After a cut by length, the next piece goes back by
    `overlap` tokens, and the last piece reaches the end.
    """
    first = np.flatnonzero(begins)
    starts, stops = bounds[first], bounds[np.append(first[1:], begins.size)] if first.size else bounds[first]
    if length is None:
        return Pieces(starts, stops, first)
    step = length - overlap
    counts = 1 + np.maximum(0, -((length - (stops - starts)) // step))  # 1 + ⌈(size − length) / step⌉
    inner = ranges(np.zeros(counts.size, np.int64), counts)
    cut = np.repeat(starts, counts) + step * inner
    return Pieces(cut, np.minimum(cut + length, np.repeat(stops, counts)), np.searchsorted(bounds, cut, side="right") - 1)


def new_sequences(entities: Integers, times: Times, sides: NDArray[np.int8], by_document: bool, gap: float | None) -> NDArray[np.bool_]:
    """(n,) whether each of the sorted records begins one; gap in the unit of the times."""
    begins = np.ones(entities.size, bool)
    if by_document:
        return begins
    begins[1:] = (entities[1:] != entities[:-1]) | (sides[1:] != sides[:-1])
    if gap is not None:
        # against an integer where the times are integers: as float64, long gaps in nanoseconds would be rounded
        begins[1:] |= np.diff(times) > (math.floor(gap) if times.dtype == np.int64 else gap)
    return begins


def ranges(starts: Integers, lengths: Integers) -> Integers:
    """starts[0], starts[0] + 1, … of lengths[0] numbers, then those of the next."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if ends.size else 0) + np.repeat(starts - (ends - lengths), lengths)
