"""Sampling against the exact distributions it is to follow. Seeds are fixed; the bounds are those of the statistics."""

from dataclasses import replace

import numpy as np
import pytest

from tests.ref.cases import lively_model
from ttr_fast.commands.options import ModelOptions
from ttr_fast.errors import UserError
from ttr_fast.generation.distribution import Sampling
from ttr_fast.generation.itinerary import gap_text, itinerary_line
from ttr_fast.generation.sample import Event, EventSampler, TokenSampler, row_generator
from ttr_ref.config import TimeConfig, TimeHeadConfig
from ttr_ref.next_event import next_time_forward
from ttr_ref.time_head import mixture_cdf, mixture_of
from ttr_ref.timeline import Timeline

TIME = TimeConfig(origin=1_700_000_000, unit=600.0, shortest=60.0, span=1e6, resolution=60.0, tick_seconds=1.0)
CONFIG = ModelOptions(embed_dim=8, hidden_dim=8, heads=2, window=4, components=3, dtype="f64").config(5, TIME)
PARAMS = lively_model(CONFIG, 0)
STATE = np.random.default_rng(1).standard_normal(8)
DRAWS = 4000


SAMPLER = EventSampler(PARAMS, CONFIG, Sampling())


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_follow_the_softmax(temperature: float) -> None:
    """Pearson's χ² with 4 degrees of freedom is below 23.5 with probability 0.9999."""
    rng, sampler = np.random.default_rng(2), TokenSampler(PARAMS, CONFIG, Sampling(temperature))
    drawn = [sampler(STATE, Event(0, 7), rng) for _ in range(DRAWS)]
    assert {event.time for event in drawn} == {7}
    counts = np.bincount([event.token for event in drawn], minlength=5)
    p = np.exp(PARAMS.embedding @ STATE / temperature)
    expected = DRAWS * p / p.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 23.5


def test_times_follow_the_mixture() -> None:
    """Kolmogorov's distance of n draws is below 2.23/√n with probability 0.9999; rounding to the resolution moves a draw by half of it at most."""
    rng, last = np.random.default_rng(4), 1_700_000_000
    head = PARAMS.time_head
    assert head is not None
    times = [SAMPLER.time(STATE, last, rng) for _ in range(DRAWS)]
    gaps = np.sort(np.array(times) - last)
    assert all(isinstance(t, int) for t in times)
    assert gaps[0] >= 60
    assert not np.any(gaps % 60)
    mixture = mixture_of(np.tile(STATE, (1, 1)), head.mixture, 60.0)
    at = np.unique(gaps)
    share = np.searchsorted(gaps, at, side="right") / DRAWS
    low, high = (np.array([mixture_cdf(mixture, np.array([g]))[0] for g in at + shift]) for shift in (-30.0, 30.0))
    assert np.max(np.maximum(low - share, share - high)) < 2.23 / np.sqrt(DRAWS)


def test_the_first_part_does_not_know_the_second() -> None:
    """Time first: the same draws give the same time at any temperature of the token. Token first: the time knows the token."""
    last = Event(1, 1_700_000_000)
    drawn = [EventSampler(PARAMS, CONFIG, Sampling(t))(STATE, last, np.random.default_rng(5)) for t in (0.0, 1.0, 9.0)]
    assert len({event.time for event in drawn}) == 1

    config = replace(CONFIG, time_head=TimeHeadConfig(3, "token_then_time"))
    params = lively_model(config, 0)
    sampler, tokens = EventSampler(params, config, Sampling()), set()
    for seed in range(20):
        event, rng = sampler(STATE, last, np.random.default_rng(seed)), np.random.default_rng(seed)
        assert event.token == sampler.token(STATE, rng)
        assert event.time == sampler.time(STATE + params.embedding[event.token], last.time, rng)
        tokens.add(event.token)
    assert len(tokens) > 1


def test_the_time_that_was_drawn_is_what_the_token_knows() -> None:
    """Two events of one state, equal but for the time: the distribution of the token is that of ttr_ref.next_event at this very time."""
    head = PARAMS.time_head
    assert head is not None
    assert head.next_time is not None
    seen = []
    sampler = EventSampler(PARAMS, CONFIG, Sampling())
    sampler.token = lambda state, rng: seen.append(state) or 0  # type: ignore[method-assign, func-returns-value, assignment]
    event = sampler(STATE, Event(1, 1_700_000_000), np.random.default_rng(6))
    at = Timeline(np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int64), np.array([[event.time]]))
    expected, _ = next_time_forward(STATE[None, None], at, head.next_time, CONFIG.block)
    np.testing.assert_array_equal(seen[0], expected[0, 0])


def test_a_gap_beyond_all_numbers_is_told() -> None:
    """In one sentence, without a warning."""
    head = PARAMS.time_head
    assert head is not None
    wild = head.mixture._replace(b_mixture=np.concatenate([np.zeros(3), np.full(3, 800.0), np.zeros(3)]))
    sampler = EventSampler(PARAMS._replace(time_head=head._replace(mixture=wild)), CONFIG, Sampling())
    with pytest.raises(UserError, match=r"the model drew a gap of (inf|\d\S+) to the next event, expected less than 5.40432e\+17: train it longer"):
        sampler.time(STATE, 1_700_000_000, np.random.default_rng(0))


def test_a_time_beyond_int64_is_told() -> None:
    """Where times are that large already, as nanoseconds are."""
    with pytest.raises(UserError, match=r"which ends beyond int64: train it longer"):
        SAMPLER.time(STATE, 2**63 - 60, np.random.default_rng(0))


def test_a_model_without_times() -> None:
    with pytest.raises(UserError, match="predicts no times"):
        EventSampler(PARAMS._replace(time_head=None), CONFIG, Sampling())


def test_each_row_has_random_numbers_of_its_own() -> None:
    """They depend on the seed, the name and the number of the sample, and on each of them."""
    rows = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (0, "\ud800", 0)]
    first = [row_generator(*row).random() for row in rows]
    assert len(set(first)) == len(rows)
    assert [row_generator(*row).random() for row in rows] == first


def test_itinerary() -> None:
    calendar = itinerary_line(Event(1, 1_700_000_000), 1_699_999_000, ("ORD", "BOS"), 1.0)
    assert calendar == "Tue 2023-11-14 22:13 UTC        + 17 min  BOS"
    assert itinerary_line(Event(0, 12), None, ("x",), None) == f"12  {'':14}  x"
    assert [gap_text(g, 1.0) for g in (12.5, 90, 7260, 90_000)] == ["12.5 s", "2 min", "2 h  1 min", "1 d  1 h"]
    assert itinerary_line(Event(1, 10**15), None, ("x", "y"), 1.0).startswith("1000000000000000  "), "no calendar reaches so far"
