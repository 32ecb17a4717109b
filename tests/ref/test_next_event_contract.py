"""Who sees what: −ln p(token) and −ln p(gap) of one event factorise the joint density in either order, and no event sees another's."""

import numpy as np
import pytest
from numpy import ndarray

from tests.ref.cases import NOW
from ttr_ref.config import BlockConfig, ModelConfig, TimeConfig, TimeHeadConfig, TimeHeadOrder
from ttr_ref.model import model_init
from ttr_ref.next_event import Batch, gaps, next_event_forward
from ttr_ref.timeline import timeline_from_lengths
from ttr_ref.tree import tree_map

ORDERS: tuple[TimeHeadOrder, ...] = ("token_then_time", "time_then_token")
PLACES = 6
CHANGED = 2
"""The place whose next event is another one."""


def batch_of(tokens: ndarray, times: ndarray) -> Batch:
    """One row; every place but the last has a target, the place after it."""
    at = timeline_from_lengths(times[None, :-1], np.array([PLACES]))
    return Batch(tokens[None, :-1], at, tokens[None, 1:], times[None, 1:], np.ones((1, PLACES), bool))


def nats(batch: Batch, order: TimeHeadOrder) -> tuple[ndarray, ndarray]:
    """Of every token and every gap, from states that stay the same whatever follows."""
    rng = np.random.default_rng(3)
    block = BlockConfig(4, 3, 2, time=TimeConfig(origin=NOW, unit=60.0))
    config = ModelConfig(5, 1, block, time_head=TimeHeadConfig(3, order))
    params = tree_map(lambda a: a + rng.standard_normal(a.shape), model_init(config, 0))
    z = rng.standard_normal((1, PLACES, 4))
    (event,), _, _ = next_event_forward(z, params.embedding, params.embedding.T, params.time_head, batch, config)
    assert event.time is not None
    return event.token, event.time


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("what", ["token", "time"])
def test_the_second_sees_the_first(order: TimeHeadOrder, what: str) -> None:
    """Another next token (or time) changes its own nats; those of the other part only where that part comes second; and no other event's."""
    tokens, times = np.array([0, 1, 2, 3, 4, 0, 1]), NOW + 70 * np.arange(PLACES + 1)
    before = batch_of(tokens, times)
    if what == "token":
        after = before._replace(next_tokens=np.where(np.arange(PLACES) == CHANGED, 0, before.next_tokens))
    else:
        after = before._replace(next_times=before.next_times + 13 * (np.arange(PLACES) == CHANGED))
    own = np.arange(PLACES) == CHANGED
    both_change = order == f"{what}_then_{'time' if what == 'token' else 'token'}"
    for part, x, y in zip(("token", "time"), nats(before, order), nats(after, order), strict=True):
        np.testing.assert_array_equal(x != y, own & (part == what or both_change))


def test_gaps_are_differences_of_the_times_as_they_came() -> None:
    """A second is a second in this century, and a nanosecond a nanosecond."""
    tokens, ticks = np.zeros(PLACES + 1, np.int64), np.array([0, 1, 1, 3, 86_400, 86_407, 86_408])
    for start in (NOW, 10**9 * NOW):
        assert gaps(batch_of(tokens, start + ticks)).tolist() == np.diff(ticks).tolist()
