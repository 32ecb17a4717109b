"""Where the tokens of a batch stand, flat: what the modules are told about them."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, Num
from numpy import ndarray

from ttr_fast.cpu.time2vec import elapsed
from ttr_ref.config import TimeConfig
from ttr_ref.timeline import Timeline


class Places(NamedTuple):
    """One entry for each of the N = B · T places, row by row."""

    position: Int64[ndarray, "N"]
    document: Int64[ndarray, "N"]
    time: Num[ndarray, "N"]
    tau: Float64[ndarray, "N"]
    shape: tuple[int, int]
    has_padding: bool


def places_of(at: Timeline, time: TimeConfig) -> Places:
    """The places of a timeline."""
    document, position, times = (np.ascontiguousarray(a).reshape(-1) for a in at)
    tau = np.empty(times.size)
    elapsed(times, document.astype(np.int64), np.asarray(time.origin, times.dtype)[()], time.unit, tau)
    shape = (at.time.shape[0], at.time.shape[1])
    return Places(position.astype(np.int64), document.astype(np.int64), times, tau, shape, bool((document < 0).any()))
