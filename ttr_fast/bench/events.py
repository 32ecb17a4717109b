"""When the events of every benchmark happen: a Poisson process in whole UNIX seconds."""

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from ttr_ref.config import TimeConfig

NOW, MEAN_GAP, SHORTEST = 1_700_000_000, 3600.0, 60.0


def gaps_between(rng: np.random.Generator, shape: tuple[int, ...]) -> Float64[ndarray, "..."]:
    """An event an hour."""
    return rng.exponential(MEAN_GAP, shape)


def event_times(rng: np.random.Generator, rows: int, length: int) -> Int64[ndarray, "rows length"]:
    """Rows that begin now."""
    times: ndarray = NOW + np.cumsum(gaps_between(rng, (rows, length)), 1).astype(np.int64)
    return times


def time_config(length: int) -> TimeConfig:
    """How a model measures such times."""
    return TimeConfig(origin=NOW, unit=MEAN_GAP, shortest=SHORTEST, span=MEAN_GAP * max(length, 2))
