"""Where the tokens of a batch stand, flat: what the modules are told about them, once for all blocks."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from ttr_fast.cuda.rope import theta_of
from ttr_fast.cuda.time2vec import elapsed
from ttr_fast.cuda.workspace import Workspace
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


def places_of(at: Timeline, config: BlockConfig, name: str, workspace: Workspace) -> Places:
    """The places of a timeline, in arrays of the workspace under that name."""
    document, position, times = (np.ascontiguousarray(a).reshape(-1) for a in at)
    given = (position.astype(np.int64), document.astype(np.int64), times, theta_of(config, time_pairs(config)))
    position, document, times, theta = workspace.upload(f"{name}.places", given)
    tau = workspace.array(f"{name}.tau", times.shape, np.float64)
    elapsed(times, document, config.time.origin, config.time.unit, tau)
    return Places(position, document, tau, theta, (at.time.shape[0], at.time.shape[1]))
