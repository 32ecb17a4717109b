"""Are predicted probabilities what they say? Of times by the PIT, of tokens by how often the likeliest is right.

The probability integral transform of a gap g is F(g), F being the predicted distribution: uniform over [0, 1] if the prediction is right (Dawid 1984;
Diebold, Gunther & Tay 1998). A gap recorded in ticks of r says only that the time lay in [g − r/2, g + r/2): for whole (int64) times a number is
drawn uniformly between F at the two ends, which is uniform again (Czado, Gneiting & Held 2009, §2). Times with fractions are taken as they are.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from ttr_ref.time_head import Mixture, mixture_cdf

BINS = 20
"""Of the PIT histogram."""
STEPS = 10
"""Of the token's reliability, by the probability of the likeliest token."""


class Reliability(NamedTuple):
    """For each step of confidence: how many predictions, their mean confidence, how often they were right (NaN where there are none)."""

    predictions: ndarray
    confidence: ndarray
    accuracy: ndarray

    def error(self) -> float:
        """The expected calibration error: mean |accuracy − confidence|, weighted by count (Guo et al. 2017, arXiv:1706.04599, eq. 3)."""
        full = self.predictions > 0
        return float((self.predictions[full] * np.abs(self.accuracy - self.confidence)[full]).sum() / self.predictions.sum())


def pit(mixture: Mixture, gap: Float64[ndarray, "N"], tick: float | None, rng: np.random.Generator) -> Float64[ndarray, "N"]:
    """One number in [0, 1] for each gap; tick None: times with fractions."""
    if tick is None:
        return distribution_at(mixture, gap)
    below, above = distribution_at(mixture, gap - tick / 2), distribution_at(mixture, gap + tick / 2)
    return below + rng.random(gap.size) * (above - below)


def distribution_at(mixture: Mixture, gap: Float64[ndarray, "N"]) -> Float64[ndarray, "N"]:
    """F(gap), also where it is not positive."""
    return np.where(gap > 0, mixture_cdf(mixture, np.where(gap > 0, gap, 1.0)), 0.0)


def distance_from_uniform(values: Float64[ndarray, "N"]) -> float:
    """Kolmogorov's: the largest difference between the share of values below x, and x."""
    ordered, n = np.sort(values), values.size
    return float(np.maximum(np.arange(1, n + 1) / n - ordered, ordered - np.arange(n) / n).max())


def histogram(values: Float64[ndarray, "N"]) -> ndarray:
    """(BINS,) share of the values in each of equal parts of [0, 1]."""
    return np.histogram(values, BINS, (0.0, 1.0))[0] / values.size


def reliability(confidence: ndarray, right: ndarray) -> Reliability:
    """confidence: the probability (N,) given to the likeliest token; right (N,): whether it came."""
    step = np.minimum((confidence * STEPS).astype(np.int64), STEPS - 1)
    count = np.bincount(step, minlength=STEPS)
    with np.errstate(invalid="ignore"):  # 0/0 where there are none
        return Reliability(count, np.bincount(step, confidence, STEPS) / count, np.bincount(step, right, STEPS) / count)
