"""What is measured of data and of models, against sums done by hand."""

import math

import numpy as np
import pytest

from tests.fast.test_batches import made_of
from ttr_fast.commands.options import ModelOptions
from ttr_fast.data.batches import Marker, transitions, whole_sequences
from ttr_fast.data.measures import gaps_of, measured_time
from ttr_fast.data.sequences import EventSequences
from ttr_fast.errors import UserError
from ttr_fast.model import load_backend
from ttr_fast.training.baselines import BACKOFF, bigram_nats, log_normal_baseline, majority_nats
from ttr_fast.training.evaluation import evaluate
from ttr_ref.model import loss_forward, model_init


def events_of(sequences: list[tuple[str, list[int]]]) -> EventSequences:
    """Tokens as letters, times as given."""
    offsets = np.cumsum([0, *(len(times) for _, times in sequences)]).astype(np.int64)
    tokens = np.array(["ab".index(letter) for letters, _ in sequences for letter in letters], np.int32)
    times = np.array([t for _, ts in sequences for t in ts], np.int64)
    return EventSequences(tuple(f"e{i}" for i in range(len(sequences))), tokens, times, offsets, ("a", "b"))


TRAIN = events_of([("aab", [0, 60, 240]), ("ba", [1000, 1600])])
HELD_OUT = events_of([("aa", [0, 120]), ("bab", [0, 60, 60])])


def test_gaps_stay_inside_sequences() -> None:
    assert gaps_of(TRAIN).tolist() == [60, 180, 600]
    assert gaps_of(made_of([1, 3, 1, 2])).tolist() == [10, 10, 10]


def test_measured_time() -> None:
    time = measured_time(TRAIN, "ms")
    assert (time.origin, time.unit, time.shortest, time.span, time.resolution, time.tick_seconds) == (0, 180, 60, 1600, 60, 1e-3)
    assert isinstance(time.origin, int)
    with pytest.raises(UserError, match="no entity has two events at different times"):
        measured_time(events_of([("aa", [5, 5]), ("b", [7])]), "s")


def test_count_models_by_hand() -> None:
    """Training has the transitions aa, ab, ba: next tokens a twice, b once, each seen once more; held out are aa, ba, ab."""
    a, b = 3 / 5, 2 / 5
    assert majority_nats(TRAIN, HELD_OUT, 2) == pytest.approx(-(2 * math.log(a) + math.log(b)) / 3, rel=1e-12)
    after_a_a, after_a_b, after_b_a = (1 + BACKOFF * a) / (2 + BACKOFF), (1 + BACKOFF * b) / (2 + BACKOFF), (1 + BACKOFF * a) / (1 + BACKOFF)
    assert bigram_nats(TRAIN, HELD_OUT, 2) == pytest.approx(-(math.log(after_a_a) + math.log(after_b_a) + math.log(after_a_b)) / 3, rel=1e-12)


def test_log_normal_by_hand() -> None:
    logs = [math.log(g) for g in (60, 180, 600)]
    mean = sum(logs) / 3
    deviation = math.sqrt(sum((x - mean) ** 2 for x in logs) / 3)
    seen = [120, 60, 30]  # the gap of zero counts as half the resolution
    nats = [math.log(g * deviation * math.sqrt(2 * math.pi)) + ((math.log(g) - mean) / deviation) ** 2 / 2 for g in seen]
    found, error = log_normal_baseline(TRAIN, HELD_OUT, resolution=60.0)
    assert found == pytest.approx(sum(nats) / 3, rel=1e-12)
    assert error == pytest.approx(sorted(abs(g - math.exp(mean)) for g in seen)[1], rel=1e-12)


def test_log_normal_of_equal_gaps() -> None:
    """As wide as the resolution is of the gap."""
    regular = events_of([("aab", [0, 600, 1200])])
    found, error = log_normal_baseline(regular, regular, resolution=60.0)
    assert found == pytest.approx(math.log(600 * 0.1 * math.sqrt(2 * math.pi)), rel=1e-12)
    assert error == pytest.approx(0, abs=1e-9)


def test_evaluation_is_the_mean_over_all_events() -> None:
    """However the sequences are put into batches: the same as each sequence alone, event by event, in f64."""
    events = made_of([2, 9, 5, 3])
    config = ModelOptions(embed_dim=8, hidden_dim=8, heads=2, window=4, components=2, dtype="f64").config(19, measured_time(events, "s"))
    params, backend = model_init(config, 3), load_backend("reference")
    alone = [loss_forward(params, whole_sequences(events, [i]), config)[1] for i in range(4)]
    results = evaluate(backend, params, events, config, with_errors=True)
    assert [r.order for r in results] == ["token_then_time", "time_then_token"]
    for n, result in enumerate(results):
        assert result.token_nats == pytest.approx(np.concatenate([nats[n].token for nats in alone]).mean(), rel=1e-12)
        assert result.time_nats == pytest.approx(np.concatenate([nats[n].time for nats in alone]).mean(), rel=1e-12)
        assert result.median_time_error is not None
        assert result.median_time_error > 0
    assert evaluate(backend, params, events, config)[0].median_time_error is None


def test_time_of_texts() -> None:
    """All tokens of a text have its time, so the gaps are those from text to text; of one text alone there is none."""
    texts = events_of([("ab", [5000, 5000]), ("a", [2000]), ("bb", [2000, 2000]), ("ab", [3000, 3000])])
    time = measured_time(texts, "s", of_texts=True)
    assert (time.origin, time.unit, time.shortest, time.span, time.resolution) == (2000, 1500, 1000, 3000, 1000)
    with pytest.raises(UserError, match="no entity has two events at different times"):
        measured_time(texts, "s")
    alone = measured_time(events_of([("ab", [7, 7])]), "s", of_texts=True)
    assert (alone.origin, alone.unit, alone.shortest, alone.span, alone.resolution) == (7, 1, 1, 1, 1)


def test_large_data_are_measured_on_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """The span is that of all."""
    monkeypatch.setattr("ttr_fast.data.measures.MEASURED", 4)
    events = events_of([("aa", [0, 10]), ("aa", [0, 99]), ("aa", [0, 20]), ("aa", [0, 1])])
    assert gaps_of(events, 2).tolist() == [10, 20]
    time = measured_time(events, "s")
    assert (time.unit, time.shortest, time.span, time.resolution) == (15, 10, 99, 10)


def test_baselines_count_what_is_predicted() -> None:
    """After the marker b alone, in one part or in many: a follows once, b once; held out, of b → a and a → b."""
    marker = Marker(1)
    assert majority_nats(events_of([("abab", [0, 1, 2, 3])]), HELD_OUT, 2, marker) == pytest.approx(-math.log(2 / 4), rel=1e-12)
    many = [part.next_tokens.tolist() for part in transitions(TRAIN, at_once=1)]
    assert many == [[0, 1], [0]]
