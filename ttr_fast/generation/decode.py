"""Continue a sequence: feed its past into the ring buffers event by event, then let the model speak."""

from collections.abc import Iterator

import numpy as np
from numpy import ndarray

from ttr_fast.errors import UserError
from ttr_fast.generation.sample import Event, sample_event
from ttr_fast.model import Backend
from ttr_ref.config import ModelConfig
from ttr_ref.model import ModelParams


def continue_sequence(
    backend: Backend, params: ModelParams, config: ModelConfig, tokens: ndarray, times: ndarray, count: int, temperature: float, seed: int
) -> Iterator[Event]:
    """The next `count` events after a history of tokens and times, one at a time as they are found.

    The cost of an event does not depend on how long the history is. Raises UserError for a model without a window or without times.
    """
    if config.block.window is None:
        raise UserError("this model sees everything before (--model.window None); decoding with a ring buffer needs a window")
    if config.time_head is None:
        raise UserError("this model was trained without time and predicts no times; train one with time to generate events")
    return decoded_events(backend, params, config, tokens, times, count, temperature, seed)


def decoded_events(
    backend: Backend, params: ModelParams, config: ModelConfig, tokens: ndarray, times: ndarray, count: int, temperature: float, seed: int
) -> Iterator[Event]:
    """What continue_sequence gives."""
    rng = np.random.default_rng(seed)
    kind = np.int64 if times.dtype == np.int64 else np.float64
    state = backend.decode_start(params, config, 1, kind)
    for token, time in zip(tokens.tolist(), times.tolist(), strict=True):
        event = Event(token, time)
        z, state = backend.decode(state, np.array([token]), np.array([time], kind), config)
    for n in range(count):
        event = sample_event(z[0], event, tokens.size - 1 + n, params, config, temperature, rng)
        yield event
        if n + 1 < count:
            z, state = backend.decode(state, np.array([event.token]), np.array([event.time], kind), config)
