"""Continue sequences: feed their past into the ring buffers token by token, then let the model speak.

Rows move in lockstep, one token a step: a row that has more of its past left reads the next of it, another one what was just drawn for it, and one
that has ended its last token again, which nobody looks at. So a batch takes as many steps as its longest row alone, and since a decoder's row does
not depend on its neighbours and each row has random numbers of its own, what follows is the same whatever stands beside it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from ttr_fast.errors import UserError
from ttr_fast.generation.sample import Event, Sampler
from ttr_fast.model import Backend
from ttr_ref.config import ModelConfig
from ttr_ref.model import ModelParams


class Past(NamedTuple):
    """What a row starts from: (n,) tokens and their times, at least one, and the generator of what follows."""

    tokens: ndarray
    times: ndarray
    rng: np.random.Generator


def continue_sequences(
    backend: Backend, params: ModelParams, config: ModelConfig, pasts: Sequence[Past], sampler: Sampler, ended: Callable[[int, Event], bool]
) -> Iterator[tuple[int, Event]]:
    """(row, event) for each event as it is drawn, until ended(row, event), which is asked once after each, has been true for every row.

    All times are int64 or all are float64. The cost of an event does not depend on how long the past is.
    Raises UserError for a model without a window.
    """
    if config.block.window is None:
        raise UserError("this model sees everything before (--model.window None); decoding with a ring buffer needs a window")
    return drawn_events(backend, params, config, pasts, sampler, ended)


def drawn_events(
    backend: Backend, params: ModelParams, config: ModelConfig, pasts: Sequence[Past], sampler: Sampler, ended: Callable[[int, Event], bool]
) -> Iterator[tuple[int, Event]]:
    """What continue_sequences gives."""
    kind = np.int64 if pasts[0].times.dtype == np.int64 else np.float64
    state = backend.decode_start(params, config, len(pasts), kind)
    fed = [Event(past.tokens[0].item(), past.times[0].item()) for past in pasts]
    running, position = [True] * len(pasts), 0
    while any(running):
        z, state = backend.decode(state, np.array([e.token for e in fed]), np.array([e.time for e in fed], kind), config)
        for row, past in enumerate(pasts):
            if position + 1 < past.tokens.size:
                fed[row] = Event(past.tokens[position + 1].item(), past.times[position + 1].item())
            elif running[row]:
                fed[row] = sampler(z[row], fed[row], past.rng)
                running[row] = not ended(row, fed[row])
                yield row, fed[row]
        position += 1
