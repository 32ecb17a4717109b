"""Sampling against the exact distributions it is to follow. Seeds are fixed; the bounds are those of the statistics."""

import numpy as np
import pytest

from ttr_fast.commands.options import ModelOptions
from ttr_fast.generation.itinerary import gap_text, itinerary_line
from ttr_fast.generation.sample import Event, sample_event, sample_time, sample_token
from ttr_ref.config import TimeConfig
from ttr_ref.model import model_init
from ttr_ref.time_head import mixture_cdf, mixture_of

TIME = TimeConfig(origin=1_700_000_000, unit=600.0, shortest=60.0, span=1e6, resolution=60.0, tick_seconds=1.0)
CONFIG = ModelOptions(embed_dim=8, hidden_dim=8, heads=2, window=4, components=3, dtype="f64").config(5, TIME)
PARAMS = model_init(CONFIG, 0)
STATE = np.random.default_rng(1).standard_normal(8)
DRAWS = 4000


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_follow_the_softmax(temperature: float) -> None:
    """Pearson's χ² with 4 degrees of freedom is below 23.5 with probability 0.9999."""
    rng = np.random.default_rng(2)
    counts = np.bincount([sample_token(STATE, PARAMS, temperature, rng) for _ in range(DRAWS)], minlength=5)
    p = np.exp(PARAMS.embedding @ STATE / temperature)
    expected = DRAWS * p / p.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 23.5


def test_temperature_zero_takes_the_likeliest() -> None:
    rng = np.random.default_rng(3)
    assert {sample_token(STATE, PARAMS, 0.0, rng) for _ in range(20)} == {int(np.argmax(PARAMS.embedding @ STATE))}


def test_times_follow_the_mixture() -> None:
    """Kolmogorov's distance of n draws is below 2.23/√n with probability 0.9999; rounding to the resolution moves a draw by half of it at most."""
    rng, last = np.random.default_rng(4), 1_700_000_000
    head = PARAMS.time_head
    assert head is not None
    times = [sample_time(STATE, last, head, CONFIG, rng) for _ in range(DRAWS)]
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
    """Time first: the same draws give the same time at any temperature of the token."""
    drawn = [sample_event(STATE, Event(1, 1_700_000_000), 3, PARAMS, CONFIG, t, np.random.default_rng(5)) for t in (0.0, 1.0, 9.0)]
    assert len({event.time for event in drawn}) == 1


def test_itinerary() -> None:
    calendar = itinerary_line(Event(1, 1_700_000_000), 1_699_999_000, ("ORD", "BOS"), 1.0)
    assert calendar == "Tue 2023-11-14 22:13 UTC        + 17 min  BOS"
    assert itinerary_line(Event(0, 12), None, ("x",), None) == f"12  {'':14}  x"
    assert [gap_text(g, 1.0) for g in (12.5, 90, 7260, 90_000)] == ["12.5 s", "2 min", "2 h  1 min", "1 d  1 h"]
