"""From logits to the distribution a token is drawn from.

    p ∝ exp(logits / temperature), then of the tokens in descending order of their logits, equal ones in ascending order of their ids:
    top-k   the first k
    top-p   the fewest of what is left whose share of it reaches p (nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751, §3.1)
    min-p   all at least p times as likely as the likeliest (Nguyen et al. 2024, arXiv:2407.01082, §3)

What is dropped has probability 0, the rest are scaled to 1. All of it is formed in float64.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64
from numpy import ndarray

from ttr_fast.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Raises ValueError for numbers out of range."""

    temperature: float = 1.0
    """Below 1 likelier tokens win more often, 0 takes the likeliest."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: float = 1.0
    """Draw from the fewest likeliest tokens that together have this share of the probability."""
    min_p: float = 0.0
    """Draw from tokens at least this many times as likely as the likeliest."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"--temperature must be 0 or positive, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"--top-k must be at least 1, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top-p must be above 0 and at most 1, got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"--min-p must be from 0 to 1, got {self.min_p}")


def distribution(logits: Float[ndarray, "V"], how: Sampling) -> Float64[ndarray, "V"]:
    """The probability of each token; a logit of −∞ has none.

    Raises UserError if a logit is NaN or +∞, or all are −∞: then the model computes no numbers.
    """
    logits = logits.astype(np.float64)
    top = logits.max()
    if not np.isfinite(top):  # NaN wins every maximum
        raise UserError(f"the model's largest logit is {top}, expected a number: its training diverged, or its dtype is too small for it")
    p = np.zeros(logits.size)
    if how.temperature == 0:
        p[np.argmax(logits)] = 1
        return p
    with np.errstate(over="ignore"):  # a tiny temperature may send a difference to −∞, which is what it means
        weight = np.exp((logits - top) / how.temperature)
    keep = weight >= how.min_p  # the likeliest weighs 1
    if how.top_k is not None or how.top_p < 1:
        order = np.argsort(-logits, kind="stable")[: how.top_k]
        below = np.cumsum(weight[order])
        nucleus = order[: np.searchsorted(below, how.top_p * below[-1]) + 1]
        among = np.zeros(logits.size, bool)
        among[nucleus] = True
        keep &= among
    p[keep] = weight[keep]
    return p / p.sum()


def drawn(p: Float64[ndarray, "V"], rng: np.random.Generator) -> int:
    """A token by its probability, with one number of the generator; never one of probability 0."""
    cumulative = np.cumsum(p)
    return int(np.searchsorted(cumulative / cumulative[-1], rng.random(), side="right"))
