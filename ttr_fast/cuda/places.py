"""Where the tokens of a batch stand, flat: what the modules are told about them, once for all blocks."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from ttr_fast.cuda.rope import theta_of
from ttr_fast.cuda.time2vec import elapsed
from ttr_fast.cuda.workspace import new_array, on_device
from ttr_ref.config import BlockConfig
from ttr_ref.rope import time_pairs
from ttr_ref.timeline import Timeline


class Places(NamedTuple):
    """One entry for each of the N = B · T places, row by row; arrays of the device."""

    position: Int64[ndarray, "N"]
    document: Int64[ndarray, "N"]
    tau: Float64[ndarray, "N"]
    theta: Float64[ndarray, "P"]
    """Angles of rope by position, for each pair that is turned by it."""
    shape: tuple[int, int]


def places_of(at: Timeline, config: BlockConfig) -> Places:
    """The places of a timeline."""
    document, position, times = (np.ascontiguousarray(a).reshape(-1) for a in at)
    position, document, times = on_device((position.astype(np.int64), document.astype(np.int64), times))
    tau = new_array(times.shape, np.float64)
    elapsed(times, document, config.time.origin, config.time.unit, tau)
    return Places(position, document, tau, on_device(theta_of(config, time_pairs(config))), (at.time.shape[0], at.time.shape[1]))
