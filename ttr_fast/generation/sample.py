"""Sampling what comes next from a state: of events a token and a time, in the order in which the model was trained to predict them."""

from dataclasses import replace
from hashlib import blake2b
from typing import NamedTuple, Protocol

import numpy as np
from numpy import ndarray

from ttr_fast.errors import UserError
from ttr_fast.generation.distribution import Sampling, distribution, drawn
from ttr_ref.config import ModelConfig
from ttr_ref.float_dtype import FloatDType
from ttr_ref.model import ModelParams, compute_copy
from ttr_ref.next_event import next_time_forward
from ttr_ref.time_head import mixture_of
from ttr_ref.timeline import Timeline
from ttr_ref.tree import tree_map

COUNTED = 2.0**53
"""Below it float64 holds every whole number."""


class Event(NamedTuple):
    """A token at a time."""

    token: int
    time: int | float


class Sampler(Protocol):
    """Draws what follows a state."""

    def __call__(self, z: ndarray, last: Event, rng: np.random.Generator) -> Event:
        """The event after `last`, whose normed state is z (E,)."""


def row_generator(seed: int, name: str, sample: int) -> np.random.Generator:
    """The random numbers of one continuation: they depend on nothing but the seed, whose it is, and which of its samples it is."""
    return np.random.default_rng([seed, int.from_bytes(blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()), sample])


class TokenSampler:
    """Tokens alone: each gets the time of the last. All arithmetic is in float64, on the weights as storage holds them, a row at a time."""

    def __init__(self, params: ModelParams, config: ModelConfig, how: Sampling) -> None:
        self.params: ModelParams = tree_map(lambda a: a.astype(np.float64), compute_copy(params, config))
        self.how = how
        self.w_vocab = self.params.embedding.T if self.params.w_vocab is None else self.params.w_vocab

    def __call__(self, z: ndarray, last: Event, rng: np.random.Generator) -> Event:
        return Event(self.token(z.astype(np.float64), rng), last.time)

    def token(self, state: ndarray, rng: np.random.Generator) -> int:
        """One token after a state in float64."""
        return drawn(distribution(state @ self.w_vocab, self.how), rng)


class EventSampler(TokenSampler):
    """A token and its time. Times are a multiple of the recording resolution after the last, at least one.

    A model trained in both orders is asked for the time first: then the token knows the hour.
    """

    def __init__(self, params: ModelParams, config: ModelConfig, how: Sampling) -> None:
        """Raises UserError for a model without a time head."""
        super().__init__(params, config, how)
        if self.params.time_head is None:
            raise UserError("this model was trained without time and predicts no times; train one with time to generate events")
        self.head, self.block = self.params.time_head, replace(config.block, float_dtype=FloatDType.F64)

    def __call__(self, z: ndarray, last: Event, rng: np.random.Generator) -> Event:
        z, next_time = z.astype(np.float64), self.head.next_time
        if next_time is not None:
            time = self.time(z, last.time, rng)
            nowhere = np.zeros((1, 1), np.int64)  # only when it is matters here
            at_next = Timeline(nowhere, nowhere, np.array([[time]]))
            knowing, _ = next_time_forward(z[None, None], at_next, next_time, self.block)
            return Event(self.token(knowing[0, 0], rng), time)
        token = self.token(z, rng)
        return Event(token, self.time(z + self.params.embedding[token], last.time, rng))

    def time(self, state: ndarray, last: int | float, rng: np.random.Generator) -> int | float:
        """last + a gap drawn from the mixture: a component by its weight, then e^(μ + σ n) with n normal.

        Raises UserError for a gap of more ticks than float64 counts one by one, or that ends beyond int64.
        """
        resolution = self.block.time.resolution
        mixture = mixture_of(state[None], self.head.mixture, resolution)
        m = drawn(np.exp(mixture.log_weight[0]), rng)
        with np.errstate(over="ignore"):  # told below
            gap = float(np.exp(mixture.mu[0, m] + mixture.sigma[0, m] * rng.standard_normal()))
        if not gap / resolution < COUNTED:
            raise UserError(f"the model drew a gap of {gap:g} to the next event, expected less than {COUNTED * resolution:g}: train it longer")
        ticks = max(1, round(gap / resolution)) * resolution
        time = last + (int(ticks) if isinstance(last, int) else ticks)
        if isinstance(time, int) and time >= 2**63:
            raise UserError(f"the model drew a gap of {gap:g} to the next event, which ends beyond int64: train it longer")
        return time
