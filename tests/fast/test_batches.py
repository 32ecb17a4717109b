"""Batches: every event once an epoch, in an order that is a function of seed and step alone, with the right successor."""

import numpy as np
from hypothesis import given, strategies as st

from ttr_fast.data.batches import Marker, TrainingBatches, evaluation_batches, targets_of, transitions
from ttr_fast.data.sequences import EventSequences
from ttr_ref.config import TrainConfig


def made_of(lengths: list[int]) -> EventSequences:
    """Sequences whose tokens and times tell where they come from: event n of all has token n and time 10 n."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    n = int(offsets[-1])
    names = tuple(f"e{i:03}" for i in range(len(lengths)))
    return EventSequences(names, np.arange(n, dtype=np.int32), 10 * np.arange(n, dtype=np.int64), offsets, tuple(map(str, range(n))))


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=8).filter(lambda lengths: max(lengths) > 1)


@given(lengths=LENGTHS, rows=st.integers(1, 3), length=st.integers(1, 7), seed=st.integers(0, 99))
def test_an_epoch_holds_every_transition_once(lengths: list[int], rows: int, length: int, seed: int) -> None:
    events = made_of(lengths)
    batches = TrainingBatches(events, TrainConfig(rows=rows, length=length, seed=seed))
    targets = sum(lengths) - len(lengths)
    seen: list[int] = []
    step = 0
    while len(seen) < 2 * targets:
        batch = batches.at(step)
        assert batch.is_target.all()
        np.testing.assert_array_equal(batch.next_tokens, batch.tokens + 1)
        np.testing.assert_array_equal(batch.next_times, 10 * batch.next_tokens)
        np.testing.assert_array_equal(batch.at.time, 10 * batch.tokens)
        seen += batch.tokens.ravel().tolist()
        step += 1
    last_of_sequence = set((events.offsets[1:] - 1).tolist())
    expected = sorted(set(range(sum(lengths))) - last_of_sequence)
    assert sorted(seen[:targets]) == sorted(seen[targets : 2 * targets]) == expected


@given(lengths=LENGTHS, rows=st.integers(1, 3), length=st.integers(1, 7), step=st.integers(0, 5))
def test_documents_are_runs_of_one_sequence(lengths: list[int], rows: int, length: int, step: int) -> None:
    """Neighbouring places share a document exactly when the second follows the first in the same row, and positions count from its start."""
    batch = TrainingBatches(made_of(lengths), TrainConfig(rows=rows, length=length)).at(step)
    for tokens, document, position in zip(batch.tokens, batch.at.document, batch.at.position, strict=True):
        assert position[0] == 0
        same = np.diff(document) == 0
        np.testing.assert_array_equal(np.diff(tokens)[same], 1)
        np.testing.assert_array_equal(position[1:], np.where(same, position[:-1] + 1, 0))


def test_order_changes_with_seed_and_epoch_and_not_otherwise() -> None:
    events = made_of([4] * 12)

    def order(seed: int, step: int) -> list[int]:
        return TrainingBatches(events, TrainConfig(rows=3, length=12, seed=seed)).at(step).tokens.ravel().tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(1, 0)
    assert order(0, 0) != order(0, 1)
    assert sorted(order(0, 0)) == sorted(order(0, 1)) == sorted(order(1, 0))


@given(lengths=LENGTHS, places=st.integers(1, 20))
def test_evaluation_sees_every_sequence_whole_and_once(lengths: list[int], places: int) -> None:
    events = made_of(lengths)
    seen: list[int] = []
    for batch in evaluation_batches(events, places):
        assert batch.tokens.shape[0] == 1 or batch.tokens.size <= places
        np.testing.assert_array_equal(batch.is_target, batch.at.is_token)
        np.testing.assert_array_equal(batch.next_tokens[batch.is_target], batch.tokens[batch.is_target] + 1)
        np.testing.assert_array_equal(batch.at.position, np.broadcast_to(np.arange(batch.tokens.shape[1]), batch.tokens.shape))
        seen += batch.tokens[batch.is_target].tolist()
    assert sorted(seen) == sorted(set(range(sum(lengths))) - set((events.offsets[1:] - 1).tolist()))


DRAWN = [[4, 5, 6, 7, 0, 1], [11, 12, 13, 9, 9, 0], [1, 4, 5, 6, 7, 11], [12, 13, 0, 1, 4, 5], [6, 7, 9, 11, 12, 13]]


def test_batches_are_what_they_were() -> None:
    """A run that was saved goes on with the same order in every later version: tokens of five steps, written down when they were first drawn."""
    batches = TrainingBatches(made_of([3, 1, 5, 2, 4]), TrainConfig(rows=2, length=3, seed=7))
    drawn = [batches.at(step).tokens.ravel().tolist() for step in range(5)]
    assert drawn == DRAWN
    assert [batches.at(step).tokens.ravel().tolist() for step in (4, 0, 2)] == [DRAWN[step] for step in (4, 0, 2)]


def test_an_epoch_is_laid_out_once() -> None:
    """Its order and ends are not made again in each of its steps."""
    batches = TrainingBatches(made_of([5] * 10), TrainConfig(rows=1, length=4))
    for step in range(15):  # ten steps are one epoch
        batches.at(step)
    assert (batches.epoch.cache_info().misses, batches.epoch.cache_info().hits) == (2, 13)


class Mapped:
    """As a split of a corpus: unsigned tokens, nothing but what the protocol asks for."""

    def __init__(self, events: EventSequences) -> None:
        self.events, self.asked = events, 0
        self.n_sequences, self.n_tokens, self.lengths = events.n_sequences, events.n_tokens, events.lengths

    def sequence(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        self.asked += 1
        tokens, times = self.events.sequence(i)
        return tokens.astype(np.uint32), times


@given(lengths=LENGTHS, step=st.integers(0, 5))
def test_a_mapped_corpus_gives_the_same_batches(lengths: list[int], step: int) -> None:
    """And a step reads the sequences it needs, no others."""
    events, config = made_of(lengths), TrainConfig(rows=2, length=4)
    mapped = Mapped(events)
    ours, theirs = TrainingBatches(mapped, config).at(step), TrainingBatches(events, config).at(step)
    assert mapped.asked <= 8
    for a, b in zip((*ours, *ours.at), (*theirs, *theirs.at), strict=True):
        assert isinstance(a, tuple) or (a.dtype == b.dtype and a.tobytes() == b.tobytes())
    for a, b in zip(evaluation_batches(mapped), evaluation_batches(events), strict=True):
        assert (a.tokens.tobytes(), a.next_times.tobytes()) == (b.tokens.tobytes(), b.next_times.tobytes())


def marked(text: str) -> EventSequences:
    """One sequence of letters; > is the marker, . the terminator."""
    tokens = np.array(["abc>.".index(letter) for letter in text], np.int32)
    return EventSequences(("e",), tokens, np.arange(tokens.size), np.array([0, tokens.size]), tuple("abc>."))


AFTER = Marker(3, 4)


@given(text=st.text("abc>.", min_size=2, max_size=30))
def test_targets_stand_between_the_marker_and_the_terminator(text: str) -> None:
    """Against a walk over the letters."""
    expected, on = [], False
    for before in text[:-1]:
        on = before == ">" or (on and before != ".")
        expected.append(on)
    assert targets_of(marked(text).tokens, AFTER).tolist() == expected
    until_the_end = [">" in text[: n + 1] for n in range(len(text) - 1)]
    assert targets_of(marked(text).tokens, Marker(3)).tolist() == until_the_end


def test_masked_batches() -> None:
    """Training keeps every place but predicts only what is wanted, also where a row begins inside an answer; evaluation leaves out what has none."""
    events = marked("ab>ca.bb>a.")
    wanted = [TrainingBatches(events, TrainConfig(rows=1, length=5), AFTER).at(step).is_target[0] for step in range(2)]
    assert "".join("-x"[int(w)] for w in np.concatenate(wanted)) == "--xxx---xx"
    assert [b.is_target.sum() for b in evaluation_batches(events, after=AFTER)] == [5]
    assert list(evaluation_batches(marked("abc"), after=AFTER)) == []
    (part,) = transitions(events, AFTER)
    assert part.next_tokens.tolist() == ["abc>.".index(letter) for letter in "ca.a."]
    assert part.gaps.tolist() == [1.0] * 5
