"""What a model has to know of its data before training: how long a gap is, how far the times reach, how finely they were recorded."""

import numpy as np
from numpy import ndarray

from ttr_fast.data.sequences import Sequences
from ttr_fast.data.sources.times import TimeUnit
from ttr_fast.errors import UserError
from ttr_ref.config import TimeConfig

TICK_SECONDS: dict[TimeUnit, float] = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "iso8601": 1.0}
"""Seconds in one unit of the times as they are held."""
MEASURED = 2**24
"""Gaps are measured on about so many events at most: on every second, third, … sequence of larger data."""


def gaps_of(events: Sequences, every: int = 1) -> ndarray:
    """Times between neighbouring events of every so many-th sequence, float64, one sequence after the other."""
    return np.concatenate([np.diff(events.sequence(i)[1]).astype(np.float64) for i in range(0, events.n_sequences, every)])


def borders_of(events: Sequences) -> tuple[ndarray, ndarray]:
    """The first and the last time of each sequence, in the type of the times."""
    dtype = events.sequence(0)[1].dtype
    first, last, n = np.empty(events.n_sequences, dtype), np.empty(events.n_sequences, dtype), 0
    for i in range(events.n_sequences):
        times = events.sequence(i)[1]
        if times.size:
            first[n], last[n], n = times[0], times[-1], n + 1
    return first[:n], last[:n]


def measured_time(events: Sequences, unit: TimeUnit | None, of_texts: bool = False) -> TimeConfig:
    """The TimeConfig of a model trained on these events: origin at the earliest time, the median gap as unit.

    unit: of the times; None where they are no calendar times.
    of_texts: all tokens of a text have one time, so where no gap inside a sequence is positive, those from each sequence's start to the next are
    taken, and 1 where these are none either. Raises UserError if no sequence of events has two at different times.
    """
    first, last = borders_of(events)
    gaps = gaps_of(events, -(-events.n_tokens // MEASURED))
    gaps = gaps[gaps > 0]
    if gaps.size == 0 and of_texts:
        gaps = np.diff(np.unique(first)).astype(np.float64)
        gaps = gaps if gaps.size else np.ones(1)
    if gaps.size == 0:
        raise UserError("there is nothing to learn from: no entity has two events at different times")
    shortest, longest = float(gaps.min()), float(last.max() - first.min())
    return TimeConfig(
        origin=first.min().item(),
        unit=float(np.median(gaps)),
        shortest=shortest,
        span=max(longest, shortest),
        resolution=float(np.gcd.reduce(np.unique(gaps).astype(np.int64))) if first.dtype == np.int64 else shortest,
        tick_seconds=None if unit is None else TICK_SECONDS[unit],
    )
