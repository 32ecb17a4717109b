"""A split by entity depends on names alone."""

from string import ascii_lowercase

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st

from ttr_fast.data.sequences import EventSequences
from ttr_fast.data.split import split_by_entity
from ttr_fast.errors import UserError

NAMES = st.sets(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=2, max_size=40)


def events_of(names: set[str], each: int = 2) -> EventSequences:
    """each events for every name; the token is the entity's own position, so that a mix-up shows."""
    n = len(names)
    tokens = np.repeat(np.arange(n, dtype=np.int32), each)
    vocabulary = tuple(f"of {name}" for name in sorted(names))
    return EventSequences(tuple(sorted(names)), tokens, np.arange(n * each), np.arange(n + 1) * each, vocabulary)


def sides(names: set[str], held_out: float, seed: int = 0, each: int = 2) -> tuple[set[str], set[str]]:
    try:
        train, aside = split_by_entity(events_of(names, each), held_out, seed)
    except UserError:
        assume(False)
    return set(train.entities), set(aside.entities)


@settings(deadline=None)
@given(NAMES, st.floats(0.1, 0.9), st.integers(0, 2**32))
def test_every_entity_is_on_one_side_with_its_own_events(names, held_out, seed):
    sides(names, held_out, seed)
    events = events_of(names)
    parts = split_by_entity(events, held_out, seed)
    assert sorted(parts[0].entities + parts[1].entities) == sorted(names)
    for part in parts:
        assert list(part.entities) == sorted(part.entities)
        assert part.vocabulary == events.vocabulary
        for i, name in enumerate(part.entities):
            tokens, times = part.sequence(i)
            assert [part.vocabulary[k] for k in tokens] == [f"of {name}"] * 2
            assert times.tolist() == events.sequence(events.entities.index(name))[1].tolist()


@settings(deadline=None)
@given(NAMES, NAMES, st.integers(0, 2**32))
def test_more_entities_and_rows_move_nobody(names, more, seed):
    train, aside = sides(names, 0.5, seed)
    all_train, all_aside = sides(names | more, 0.5, seed, each=3)
    assert train == all_train & names
    assert aside == all_aside & names


@settings(deadline=None)
@given(NAMES, st.floats(0.2, 0.5), st.floats(0.5, 0.8))
def test_a_larger_fraction_only_adds(names, smaller, larger):
    assert sides(names, smaller)[1] <= sides(names, larger)[1]


def test_the_fraction_is_about_what_was_asked_for_and_the_seed_matters():
    names = {f"N{i}" for i in range(10_000)}
    asides = [sides(names, 0.2, seed)[1] for seed in (0, 1)]
    # binomial: 2,000 with a standard deviation of 40, and 400 with one of 20 on both; five of them either way
    assert all(abs(len(aside) - 2000) <= 200 for aside in asides)
    assert abs(len(asides[0] & asides[1]) - 400) <= 100


def test_the_same_names_are_held_out_for_ever():
    """A saved model was trained on its side of this split; a changed hash would evaluate it on what it has seen."""
    assert sides(set(ascii_lowercase), 0.3, seed=0)[1] == set("eknrsuz")
    assert sides(set(ascii_lowercase), 0.3, seed=7)[1] == set("fgjkq")


@pytest.mark.parametrize("held_out", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_fraction_out_of_range_is_refused(held_out):
    with pytest.raises(UserError) as caught:
        split_by_entity(events_of({"a", "b"}), held_out)
    assert str(caught.value) == f"the held-out fraction is {held_out}, expected a number between 0 and 1"


@pytest.mark.parametrize(("held_out", "empty"), [(0.0001, "held-out"), (0.9999, "training")])
def test_an_empty_side_is_refused(held_out, empty):
    with pytest.raises(UserError) as caught:
        split_by_entity(events_of({"a", "b"}), held_out)
    problem = f"holding out {held_out} of 2 entities with seed 0 leaves the {empty} side empty"
    assert str(caught.value) == f"{problem}, expected an entity on each side"
