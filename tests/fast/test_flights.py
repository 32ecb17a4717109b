"""The embedded departures are what flights.md says."""

import csv
import gzip
import hashlib
from collections import Counter
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from ttr_fast.data.event_files import read_events
from ttr_fast.data.flights import flights_path
from ttr_fast.data.sequences import EventSequences

NEW_YORK = ZoneInfo("America/New_York")


@pytest.fixture(scope="module")
def flights() -> EventSequences:
    return read_events(flights_path(), entity="tail", time="time", token="destination", time_unit="s")


@pytest.fixture(scope="module")
def rows() -> list[list[str]]:
    with gzip.open(flights_path(), "rt", encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_counts(flights):
    assert flights.n_sequences == 400
    assert flights.tokens.size == 55_521
    assert len(flights.vocabulary) == 101
    assert (flights.lengths.min(), np.median(flights.lengths), flights.lengths.max()) == (50, 110, 480)


def test_times_increase_and_stay_in_2013(flights):
    assert flights.times.dtype == np.int64
    gaps = np.concatenate([np.diff(flights.sequence(i)[1]) for i in range(flights.n_sequences)])
    assert gaps.min() == 120
    assert np.sum(gaps < 1800) == 4
    assert np.median(gaps) / 3600 == pytest.approx(22.1, abs=0.05)
    assert datetime.fromtimestamp(flights.times.min(), UTC) == datetime(2013, 1, 1, 10, 33, tzinfo=UTC)
    assert datetime.fromtimestamp(flights.times.max(), UTC) == datetime(2014, 1, 1, 5, 26, tzinfo=UTC)


@pytest.mark.parametrize(
    ("tail", "clock", "origin", "destination"),
    [
        ("N504MQ", (2013, 1, 1, 18, 3), "LGA", "BNA"),  # winter time, 103 minutes late
        ("N487AA", (2013, 7, 4, 11, 10), "LGA", "ORD"),  # summer time, 85 minutes late
        ("N374JB", (2014, 1, 1, 0, 26), "JFK", "PWM"),  # planned for 22:45 of the day before
    ],
)
def test_rows_looked_up_in_the_source(rows, tail, clock, origin, destination):
    assert [tail, f"{datetime(*clock, tzinfo=NEW_YORK).timestamp():.0f}", origin, destination] in rows


def test_columns_and_origins(rows):
    assert rows[0] == ["tail", "time", "origin", "destination"]
    assert Counter(row[2] for row in rows[1:]) == {"EWR": 20_610, "JFK": 17_982, "LGA": 16_929}
    assert rows[1:] == sorted(rows[1:], key=lambda row: (row[0], int(row[1])))


def test_the_file_is_small_and_names_neither_a_file_nor_a_date():
    packed = flights_path().read_bytes()
    assert len(packed) < 700_000
    assert packed[3:8] == bytes(5)
    text = hashlib.sha256(gzip.decompress(packed)).hexdigest()
    assert text in flights_path().with_name("flights.md").read_text(encoding="utf-8")
