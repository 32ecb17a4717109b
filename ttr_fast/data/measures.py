"""What a model has to know of its data before training: how long a gap is, how far the times reach, how finely they were recorded."""

import numpy as np
from numpy import ndarray

from ttr_fast.data.sequences import EventSequences
from ttr_fast.data.sources.times import TimeUnit
from ttr_fast.errors import UserError
from ttr_ref.config import TimeConfig

TICK_SECONDS: dict[TimeUnit, float] = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "iso8601": 1.0}
"""Seconds in one unit of the times that read_events gives."""


def gaps_of(events: EventSequences) -> ndarray:
    """Times between neighbouring events of each sequence, float64, one sequence after the other."""
    differences = np.diff(events.times)
    inside = np.ones(differences.size, bool)
    inside[events.offsets[1:-1] - 1] = False  # from one sequence to the next
    return differences[inside].astype(np.float64)


def measured_time(events: EventSequences, unit: TimeUnit) -> TimeConfig:
    """The TimeConfig of a model trained on these events: origin at the earliest time, the median gap as unit.

    Raises UserError if no sequence has two events at different times.
    """
    gaps = gaps_of(events)
    gaps = gaps[gaps > 0]
    if gaps.size == 0:
        raise UserError("there is nothing to learn from: no entity has two events at different times")
    resolution = float(np.gcd.reduce(np.unique(gaps).astype(np.int64))) if events.times.dtype == np.int64 else float(gaps.min())
    span = float(events.times.max() - events.times.min())
    return TimeConfig(
        origin=events.times.min().item(),
        unit=float(np.median(gaps)),
        shortest=float(gaps.min()),
        span=span,
        resolution=resolution,
        tick_seconds=TICK_SECONDS[unit],
    )
