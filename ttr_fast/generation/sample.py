"""Sampling the next event from a state: a token and a time, in the order in which the model was trained to predict them."""

from typing import NamedTuple

import numpy as np
from numpy import ndarray

from ttr_ref.config import ModelConfig
from ttr_ref.model import ModelParams
from ttr_ref.next_event import TimeHeadParams, next_time_forward
from ttr_ref.time_head import mixture_of
from ttr_ref.timeline import Timeline


class Event(NamedTuple):
    """A token at a time."""

    token: int
    time: int | float


def sample_event(
    z: ndarray, last: Event, position: int, params: ModelParams, config: ModelConfig, temperature: float, rng: np.random.Generator
) -> Event:
    """The event after `last`, whose normed state is z (E,).

    A model trained in both orders is asked for the time first: then the token knows the hour. Times are a multiple of the recording
    resolution after the last, at least one. The model has a time head.
    """
    head = params.time_head
    assert head is not None
    if head.next_time is not None:
        time = sample_time(z, last.time, head, config, rng)
        at_next = Timeline(np.zeros((1, 1), np.int64), np.full((1, 1), position + 1), np.array([[time]]))
        knowing, _ = next_time_forward(z[None, None], at_next, head.next_time, config.block)
        return Event(sample_token(knowing[0, 0], params, temperature, rng), time)
    token = sample_token(z, params, temperature, rng)
    return Event(token, sample_time(z + params.embedding[token], last.time, head, config, rng))


def sample_token(state: ndarray, params: ModelParams, temperature: float, rng: np.random.Generator) -> int:
    """From softmax(logits / temperature); temperature 0 takes the likeliest."""
    w_vocab = params.embedding.T if params.w_vocab is None else params.w_vocab
    logits = (state @ w_vocab).astype(np.float64)
    if temperature == 0:
        return int(np.argmax(logits))
    p = np.exp((logits - logits.max()) / temperature)
    return int(rng.choice(p.size, p=p / p.sum()))


def sample_time(state: ndarray, last: int | float, head: TimeHeadParams, config: ModelConfig, rng: np.random.Generator) -> int | float:
    """last + a gap drawn from the mixture: a component by its weight, then e^(μ + σ n) with n normal."""
    time = config.block.time
    mixture = mixture_of(state[None], head.mixture, time.resolution)
    weight = np.exp(mixture.log_weight[0])
    m = rng.choice(weight.size, p=weight / weight.sum())
    gap = np.exp(mixture.mu[0, m] + mixture.sigma[0, m] * rng.standard_normal())
    ticks = max(1, round(float(gap) / time.resolution)) * time.resolution
    return last + (int(ticks) if isinstance(last, int) else ticks)
