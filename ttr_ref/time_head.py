"""When is the next event? A mixture of log-normals over the gap g = t_{i+1} − t_i (Shchur, Biloš & Günnemann 2020, arXiv:1909.12127, eq. 2).

    [ℓ | μ | s]_m = u W + b,   w = softmax(ℓ),   σ_m = e^(s_m) + r e^(−μ_m)
    p(g) = Σ_m w_m LogNormal(g; μ_m, σ_m),   ln LogNormal = −ln g − ln σ − ½ ln 2π − ½ z²,   z = (ln g − μ) / σ

A component with median e^μ is about σ e^μ wide; times recorded to r cannot tell anything narrower, hence the floor r e^(−μ) under σ: without it
a component could shrink onto one recorded value and make its density as large as it likes. Everything is formed in float64; nats are in the data's
own unit of time (those per hour are those per second − ln 3600).
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Inexact
from numpy import ndarray

from .config import TimeConfig
from .float_dtype import at_precision_of
from .linear import linear_backward

HALF_LN_TURN = 0.5 * math.log(2 * math.pi)
NARROWEST = 0.1
"""A component starts at least this wide (σ), also where all gaps are alike."""


class MixtureParams(NamedTuple):
    """The projection to M logits, M medians (as logarithms) and M widths (as logarithms)."""

    w_mixture: Inexact[ndarray, "E three_M"]
    b_mixture: Inexact[ndarray, "three_M"]


class Mixture(NamedTuple):
    """The mixture after each state."""

    log_weight: Inexact[ndarray, "N M"]
    mu: Inexact[ndarray, "N M"]
    sigma: Inexact[ndarray, "N M"]


class TimeHeadCache(NamedTuple):
    """What backward needs."""

    u: Inexact[ndarray, "N E"]
    params: MixtureParams
    mixture: Mixture
    responsibility: Inexact[ndarray, "N M"]
    z: Inexact[ndarray, "N M"]
    resolution: float


def log_sum_exp(a: Inexact[ndarray, "N M"]) -> Inexact[ndarray, "N 1"]:
    """ln Σ_m exp a_m."""
    top = a.real.max(axis=-1, keepdims=True)
    return top + np.log(np.exp(a - top).sum(axis=-1, keepdims=True))


def mixture_of(u: Inexact[ndarray, "N E"], params: MixtureParams, resolution: float) -> Mixture:
    """The density of the next gap after each state u."""
    return mixture_from(u @ params.w_mixture + params.b_mixture.astype(np.result_type(params.b_mixture, np.float64)), resolution)


def mixture_from(raw: Inexact[ndarray, "N three_M"], resolution: float) -> Mixture:
    """That of the projection [ℓ | μ | s]."""
    logit, mu, s = np.split(raw, 3, axis=-1)
    return Mixture(logit - log_sum_exp(logit), mu, np.exp(s) + resolution * np.exp(-mu))


def time_head_forward(
    u: Inexact[ndarray, "N E"], gap: Float64[ndarray, "N"], params: MixtureParams, resolution: float
) -> tuple[Inexact[ndarray, "N"], TimeHeadCache]:
    """−ln p(gap) of each state. A gap shorter than half the resolution, so also 0, counts as half the resolution."""
    mixture = mixture_of(u, params, resolution)
    log_gap = np.log(np.maximum(gap, resolution / 2))[:, None]
    z = (log_gap - mixture.mu) / mixture.sigma
    joint = mixture.log_weight - log_gap - np.log(mixture.sigma) - HALF_LN_TURN - 0.5 * z * z
    log_p = log_sum_exp(joint)
    return -log_p[:, 0], TimeHeadCache(u, params, mixture, np.exp(joint - log_p), z, resolution)


def time_head_backward(dnats: Inexact[ndarray, "N"], cache: TimeHeadCache) -> tuple[Inexact[ndarray, "N E"], MixtureParams]:
    """(du, dparams). With r_m = the share of component m in p(g), ∂(−ln p)/∂x = −Σ_m r_m ∂(ln w_m + ln LogNormal_m)/∂x:

        dℓ = w − r                       the softmax's usual difference
        dμ|σ = −r z/σ
        dσ   = r (1 − z²)/σ,   and σ depends on s and μ:  ds = dσ e^s,   dμ = dμ|σ − dσ r_t e^(−μ)      r_t: the resolution
    """
    u, params, (log_weight, mu, sigma), r, z, resolution = cache
    floor = resolution * np.exp(-mu)
    dsigma = r * (1 - z * z) / sigma
    draw = np.concatenate([np.exp(log_weight) - r, -r * z / sigma - dsigma * floor, dsigma * (sigma - floor)], axis=-1) * dnats[:, None]
    du, dw = linear_backward(at_precision_of(u, draw), u, params.w_mixture)
    return du, MixtureParams(dw, at_precision_of(params.b_mixture, draw.sum(axis=0)))


def mixture_cdf(mixture: Mixture, gap: Float64[ndarray, "N"]) -> Float64[ndarray, "N"]:
    """P(next gap ≤ gap) = Σ_m w_m Φ((ln gap − μ_m) / σ_m)."""
    z = (np.log(gap)[:, None] - mixture.mu) / mixture.sigma
    normal_cdf = 0.5 * np.vectorize(math.erfc, otypes=[float])(-z / math.sqrt(2))
    return (np.exp(mixture.log_weight) * normal_cdf).sum(axis=-1)


def mixture_quantile(mixture: Mixture, probability: float) -> Float64[ndarray, "N"]:
    """The gap that is not exceeded with the given probability, by bisection of its logarithm.

    It lies between the smallest and the largest quantile of the components, each within 8 σ of its μ for probabilities above 1e-15 from both ends;
    50 halvings leave less than 1e-12 of ln gap.
    """
    low = (mixture.mu - 8 * mixture.sigma).min(axis=-1)
    high = (mixture.mu + 8 * mixture.sigma).max(axis=-1)
    for _ in range(50):
        middle = 0.5 * (low + high)
        below = mixture_cdf(mixture, np.exp(middle)) < probability
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.exp(0.5 * (low + high))


def mixture_init(features: int, components: int, time: TimeConfig, rng: np.random.Generator) -> MixtureParams:
    """Equal weights, medians spaced geometrically from the shortest gap to the span, each as wide as its distance to the next."""
    mu, distance = np.linspace(np.log(time.shortest), np.log(time.span), components + 2, retstep=True)
    s = np.full(components, np.log(max(distance, NARROWEST)))
    return MixtureParams(0.02 * rng.standard_normal((features, 3 * components)), np.concatenate([np.zeros(components), mu[1:-1], s]))
