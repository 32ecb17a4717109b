"""Time2Vec (Kazemi et al. 2019, arXiv:1907.05321, eq. 1): a vector for a moment.

    τ    = (t − origin) / unit
    y[0] = ω₀ τ + φ₀                      a straight line: how long ago the origin is
    y[k] = sin(ω_k τ + φ_k)               k = 1 … E − 1: where we are in the day, the week, …

The phase is formed in float64 and brought into one turn around zero before the sine, so that nothing is lost when the result is
rounded to a smaller type: at UNIX times a float32 phase is noise, one float32 step at 1.7e9 s is 128 s. ω stays float64 always.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Inexact
from numpy import ndarray

from .config import TimeConfig
from .timeline import Timeline, elapsed

TURN = 2 * np.pi
DAY, WEEK, YEAR = 86_400.0, 604_800.0, 31_556_952.0
"""Seconds; the year is the mean Gregorian one."""


class Time2VecParams(NamedTuple):
    """ω in radians per unit of time, φ in radians."""

    omega: Inexact[ndarray, "E"]
    phi: Inexact[ndarray, "E"]


class Time2VecCache(NamedTuple):
    """What backward needs."""

    tau: Float64[ndarray, "B T"]
    phase: Inexact[ndarray, "B T E"]


def reduced_phase(tau: Float64[ndarray, "*places"], omega: Inexact[ndarray, "P"], phi: Inexact[ndarray, "P"]) -> Inexact[ndarray, "*places P"]:
    """ω τ + φ less the nearest whole number of turns, in float64."""
    phase = tau[..., None] * omega + phi
    return phase - TURN * np.round(phase.real / TURN)


def time2vec_forward(at: Timeline, params: Time2VecParams, time: TimeConfig) -> tuple[Inexact[ndarray, "B T E"], Time2VecCache]:
    """E features of each time. Padding counts as the origin."""
    tau = elapsed(at, time)
    phase = reduced_phase(tau, params.omega, params.phi)
    y = np.sin(phase)
    y[..., 0] = params.omega[0] * tau + params.phi[0]
    return y, Time2VecCache(tau, phase)


def time2vec_backward(dy: Inexact[ndarray, "B T E"], cache: Time2VecCache) -> Time2VecParams:
    """Gradients of ω and φ; the times are data and have none.

    d sin(ωτ + φ) = cos(ωτ + φ) (τ dω + dφ), and without the cosine for the straight line. A turn taken off the phase changes no cosine.
    """
    dphase = dy * np.cos(cache.phase)
    dphase[..., 0] = dy[..., 0]
    return Time2VecParams(np.einsum("btk,bt->k", dphase, cache.tau), dphase.sum(axis=(0, 1)))


def geometric_frequencies(count: int, time: TimeConfig) -> Float64[ndarray, "count"]:
    """Angular frequencies, in radians per unit, of `count` periods spaced geometrically from the shortest gap to the longest span."""
    return TURN * time.unit / np.geomspace(time.shortest, time.span, count)


def calendar_periods(time: TimeConfig) -> list[float]:
    """Periods in ticks: day, week and year, then their first harmonics; those that the span covers."""
    if time.tick_seconds is None:
        return []
    seconds = [DAY, WEEK, YEAR, DAY / 2, WEEK / 2, DAY / 3, WEEK / 3, DAY / 4]
    return [p / time.tick_seconds for p in seconds if time.shortest < p / time.tick_seconds <= time.span]


def time2vec_init(features: int, time: TimeConfig) -> Time2VecParams:
    """The straight line rises by one over the span; the sines come in pairs a quarter turn apart.

    Calendar times get the beginnings of the Fourier series of the day, the week and the year; the sines left over start silent (ω = φ = 0), free for
    training to use. Periods that are no part of the calendar would be noise: their phase on one date says nothing of another.
    Other times get periods spaced geometrically from the shortest gap to the longest span.
    """
    pairs = features // 2  # of E − 1 sines; if that is odd, the last pair is half
    calendar = calendar_periods(time)[:pairs]
    omega, quarter_turns = np.zeros(pairs), np.zeros(pairs)
    used = len(calendar) or pairs
    omega[:used] = TURN * time.unit / np.array(calendar) if calendar else geometric_frequencies(pairs, time)
    quarter_turns[:used] = TURN / 4
    sines, phases = np.repeat(omega, 2), np.stack([np.zeros(pairs), quarter_turns], axis=-1).ravel()
    return Time2VecParams(
        np.concatenate([[time.unit / time.span], sines[: features - 1]]), np.concatenate([[0.0], phases[: features - 1]])
    )
