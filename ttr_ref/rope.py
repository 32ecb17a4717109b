"""Rotary embedding (Su et al. 2021, arXiv:2104.09864, §3.2.2): turn each pair of features by an angle that grows with its place.

Pairs are neighbours, (x_2k, x_2k+1). A pair is turned by

    by index:  position · θ_k,  θ_k = base^(−2k/D)
    by time:   τ · ω_k,         ω_k learned, in radians per unit of time

so that the dot product of a turned query and a turned key depends on the *difference* of their angles alone. `position` turns all pairs by
index, `time` all by time, `split` the first half by index and the second by time. Angles are formed and reduced to one turn in float64.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Inexact
from numpy import ndarray

from .config import BlockConfig
from .float_dtype import at_precision_of
from .time2vec import geometric_frequencies, reduced_phase
from .timeline import Timeline, elapsed


class RopeCache(NamedTuple):
    """What backward needs: the turned pairs, the angles' cosine and sine, the times of the last pairs (those turned by time)."""

    y: Inexact[ndarray, "B H T D"]
    cos: Inexact[ndarray, "B 1 T P"]
    sin: Inexact[ndarray, "B 1 T P"]
    tau: Float64[ndarray, "B T"]
    time_pairs: int


def time_pairs(config: BlockConfig) -> int:
    """How many pairs of a head are turned by time; they are the last ones."""
    pairs = config.head_dim // 2
    return {"position": 0, "time": pairs, "split": pairs - pairs // 2}[config.rope]


def rope_init(config: BlockConfig) -> Float64[ndarray, "P_time"]:
    """Frequencies of the pairs turned by time: periods from four times the shortest gap to four times the span, so that no pair turns
    by more than a quarter between the two ends of its scale."""
    return geometric_frequencies(time_pairs(config), config.time) / 4


def rope_forward(
    x: Inexact[ndarray, "B H T D"], at: Timeline, omega: Inexact[ndarray, "P_time"], config: BlockConfig
) -> tuple[Inexact[ndarray, "B H T D"], RopeCache]:
    """Turn every pair of x; omega holds the frequencies of the pairs turned by time."""
    pairs = config.head_dim // 2
    by_index = np.arange(pairs - omega.size)
    theta = config.rope_base ** (-2.0 * by_index / config.head_dim)
    tau = elapsed(at, config.time)
    angle = np.concatenate(
        [
            reduced_phase(at.position.astype(np.float64), theta, np.zeros(theta.size)),
            reduced_phase(tau, omega, np.zeros(omega.size)),
        ],
        axis=-1,
    )[:, None]
    cos, sin = at_precision_of(x, np.cos(angle)), at_precision_of(x, np.sin(angle))
    y = rotate(x, cos, sin)
    return y, RopeCache(y, cos, sin, tau, omega.size)


def rope_backward(dy: Inexact[ndarray, "B H T D"], cache: RopeCache) -> tuple[Inexact[ndarray, "B H T D"], Inexact[ndarray, "P_time"]]:
    """(dx, domega).

    The rotation R(α) is linear in x and its transpose is R(−α), so dx = R(−α) dy. And dR(α)/dα · x is y turned by another quarter, J y, so with
    α = τ ω_k:  dω_k = Σ τ (dy · J y) over the pair k of all tokens and heads, J (y₀, y₁) = (−y₁, y₀).
    """
    y, cos, sin, tau, n = cache
    dx = rotate(dy, cos, -sin)
    dangle = dy[..., 1::2] * y[..., 0::2] - dy[..., 0::2] * y[..., 1::2]
    domega = np.einsum("bhtp,bt->p", dangle[..., dangle.shape[-1] - n :], tau)
    return dx, domega


def rotate(x: Inexact[ndarray, "B H T D"], cos: Inexact[ndarray, "B 1 T P"], sin: Inexact[ndarray, "B 1 T P"]) -> Inexact[ndarray, "B H T D"]:
    """Turn the pairs (x_2k, x_2k+1) by the angles of the given cosine and sine."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)
