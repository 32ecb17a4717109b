"""What is read is what was written, and each fault of a file has one sentence that names its place."""

import csv
import errno
import gzip
import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from ttr_fast.data.event_files import read_events
from ttr_fast.data.sequences import EventSequences
from ttr_fast.errors import UserError

# any text a file can hold: no NUL, no byte order mark, no half of a surrogate pair
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), min_size=1)
AWKWARD = st.text('a",\r\n;é\u2028', min_size=1)
SECONDS = "UNIX seconds such as 1700000000 or 1700000000.5"
MILLISECONDS = "UNIX milliseconds such as 1700000000000 or 1700000000000.5"
FILES = "a .csv, .json, .jsonl (each also .gz) or .parquet file"
ISO8601 = "ISO 8601 with a zone such as 2023-11-14T22:13:20Z"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(content: str | bytes, name: str = "e.csv", time_unit: str = "s", **options) -> EventSequences:
    content = content.encode() if isinstance(content, str) else content
    Path(name).write_bytes(content)
    return read_events(name, entity="who", time="when", token="what", time_unit=time_unit, **options)


def complaint(*args, **options) -> str:
    with pytest.raises(UserError) as caught:
        read(*args, **options)
    return str(caught.value)


def written(rows: list[tuple[object, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([("who", "when", "what"), *rows])
    return text.getvalue()


def as_rows(events: EventSequences) -> list[tuple[str, int | float, str]]:
    names = np.repeat(np.array(events.entities, object), events.lengths)
    return [(who, t, events.vocabulary[k]) for who, t, k in zip(names, events.times, events.tokens, strict=True)]


def test_the_arrays_of_a_small_file():
    events = read("note,what,who,when\n,go,b,3\n,stop,a,5\n\n,go,a,5\n,halt,b,9\n")
    assert events.entities == ("a", "b")
    assert events.vocabulary == ("go", "halt", "stop")
    for array, expected, dtype in [
        (events.tokens, [2, 0, 0, 1], np.int32),
        (events.times, [5, 5, 3, 9], np.int64),
        (events.offsets, [0, 2, 4], np.int64),
        (events.lengths, [2, 2], np.int64),
    ]:
        assert array.tolist() == expected
        assert array.dtype == dtype


@settings(deadline=None)
@given(st.lists(st.tuples(TEXT | AWKWARD, st.integers(-(10**11) + 1, 10**11 - 1), TEXT | AWKWARD), min_size=1))
def test_whole_times_come_back(rows):
    events = read(written(rows), sort=True)
    assert events.times.dtype == np.int64
    assert as_rows(events) == sorted(rows, key=lambda row: row[:2])


@settings(deadline=None)
@given(st.lists(st.tuples(TEXT, st.floats(-1e10, 1e10), TEXT), min_size=1))
def test_fractions_come_back(rows):
    events = read(written(rows), sort=True)
    assert events.times.dtype == np.float64
    assert as_rows(events) == sorted(rows, key=lambda row: row[:2])


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.datetimes(timezones=st.timezones()), TEXT), min_size=1))
def test_iso_times_come_back_whatever_their_zone(rows):
    events = read(written([(who, when.isoformat(), what) for who, when, what in rows]), time_unit="iso8601", sort=True)
    expected = [(who, when.timestamp(), what) for who, when, what in rows]
    assert as_rows(events) == sorted(expected, key=lambda row: row[:2])
    assert events.times.dtype == (np.float64 if any(when.microsecond for _, when, _ in rows) else np.int64)


@settings(deadline=None)
@given(st.data(), st.lists(st.tuples(TEXT | AWKWARD, st.integers(0, 9), TEXT | AWKWARD), min_size=1))
def test_the_line_in_a_message_is_where_the_row_starts(data, rows):
    text = written([*rows, ("b\n\nc", "never", "x")])
    start = text.index('"b\n\nc","never"')
    line = 1 + len(re.findall("\r\n|\r|\n", text[:start]))
    text = data.draw(st.sampled_from(["", "\ufeff"])) + text
    assert complaint(text, sort=True) == f"e.csv:{line}:2: time 'never' is not a number, expected {SECONDS}"


@pytest.mark.parametrize(
    ("unit", "text", "value"),
    [
        ("s", "1700000000", 1_700_000_000),
        ("s", "1700000060", 1_700_000_060),  # float32 has both at 1700000000
        ("s", "-99999999999", -99_999_999_999),
        ("s", "+0012", 12),
        ("s", "1700000000.123456", 1_700_000_000.123456),
        ("s", "1.7e9", 1.7e9),
        ("s", ".5", 0.5),
        ("s", "5.", 5.0),
        ("ms", "99999999999999", 99_999_999_999_999),
        ("ms", "1700000000000", 1_700_000_000_000),
        ("ms", "-1", -1),
        ("ms", "499999999", 499_999_999),
        ("iso8601", "2023-11-14T22:13:20Z", 1_700_000_000),
        ("iso8601", "2023-11-14 23:43:20+0130", 1_700_000_000),
        ("iso8601", "20231114T171320-05", 1_700_000_000),
        ("iso8601", "2023-11-14T22:13:20.5Z", 1_700_000_000.5),
        ("iso8601", "2023-11-14T22:13:20,000Z", 1_700_000_000.0),
        ("iso8601", "1969-12-31T23:59:59Z", -1),
        ("iso8601", "0001-01-01T00:00:00+05:00", -62_135_614_800),
        ("iso8601", "9999-12-31T23:59:59-05:00", 253_402_318_799),
    ],
)
def test_one_time(unit, text, value):
    times = read(f'who,when,what\na,"{text}",x\n', time_unit=unit).times
    assert times.tolist() == [value]
    assert times.dtype == (np.int64 if isinstance(value, int) else np.float64)


@pytest.mark.parametrize(
    ("unit", "text", "problem", "expected"),
    [
        ("s", "abc", "is not a number", SECONDS),
        ("s", " 12", "is not a number", SECONDS),
        ("s", "1_000", "is not a number", SECONDS),
        ("s", "١٢", "is not a number", SECONDS),
        ("s", "1,5", "is not a number", SECONDS),
        ("s", "2023-11-14T22:13:20Z", "looks like a date", SECONDS),
        ("s", "nan", "is not finite", SECONDS),
        ("s", "-Infinity", "is not finite", SECONDS),
        ("s", "1e999", "is not finite", SECONDS),
        ("s", "9223372036854775808", "is beyond int64", SECONDS),
        ("ms", "-9223372036854775809", "is beyond int64", MILLISECONDS),
        ("s", "9223372036854775807", "looks like nanoseconds", SECONDS),
        ("s", "-9223372036854775808", "looks like nanoseconds", SECONDS),
        ("s", "100000000000", "looks like milliseconds", SECONDS),
        ("s", "1.7e12", "looks like milliseconds", SECONDS),
        ("s", "-1700000000000", "looks like milliseconds", SECONDS),
        ("s", "1700000000000000", "looks like microseconds", SECONDS),
        ("ms", "1700000000000000", "looks like microseconds", MILLISECONDS),
        ("ms", "1700000000000000000", "looks like nanoseconds", MILLISECONDS),
        ("ms", "1e30", "is too large for a time", MILLISECONDS),
        ("iso8601", "2023-11-14T22:13:20", "has no zone", ISO8601),
        ("iso8601", "2023-11-14", "has no zone", ISO8601),
        ("iso8601", "2023-02-29T00:00:00Z", "is not a valid date", ISO8601),
        ("iso8601", "2023-11-14T25:00:00Z", "is not a valid date", ISO8601),
        ("iso8601", "2023-11-14T22:13:20+24:00", "is not a valid date", ISO8601),
        ("iso8601", "yesterday", "is not a date", ISO8601),
        ("iso8601", "14.11.2023 22:13", "is not a date", ISO8601),
        ("iso8601", "1700000000", "looks like a number", ISO8601),
    ],
)
def test_a_bad_time(unit, text, problem, expected):
    assert complaint(f'who,when,what\na,"{text}",x\n', time_unit=unit) == (
        f"e.csv:2:2: time '{text}' {problem}, expected {expected}"
    )


@pytest.mark.parametrize("digits", ["9" * 5000, "0" * 5000 + "x", "1" * 100_000 + "x"])
def test_a_very_long_time_is_shown_in_part_and_refused_at_once(digits):
    problem = "is not a number" if digits.endswith("x") else "is beyond int64"
    assert complaint(f"who,when,what\na,{digits},x\n") == (
        f"e.csv:2:2: time '{digits[:40]}'… {problem}, expected {SECONDS}"
    )


def test_milliseconds_that_are_seconds():
    assert complaint("who,when,what\na,1356998400,x\na,1388534340,x\n", time_unit="ms") == (
        f"e.csv:2:2: time '1356998400' looks like seconds, expected {MILLISECONDS}"
    )


def test_one_fraction_makes_every_time_float64_even_before_it():
    events = read("who,when,what\na,1700000000,x\na,1700000000.5,x\na,1700000001,x\n")
    assert events.times.dtype == np.float64
    assert events.times.tolist() == [1_700_000_000, 1_700_000_000.5, 1_700_000_001]


def test_sorting_is_stable_and_by_entity():
    events = read("who,when,what\na,7,x\nb,1,x\na,3,y\na,7,w\na,3,x\n", sort=True)
    assert as_rows(events) == [("a", 3, "y"), ("a", 3, "x"), ("a", 7, "x"), ("a", 7, "w"), ("b", 1, "x")]


def test_time_goes_backwards():
    assert complaint("who,when,what\na,7,x\nb,1,x\na,07,x\na,3,x\n") == (
        "e.csv:5:2: time '3' of entity 'a' comes after 7, expected records in order of time or --sort"
    )


def test_the_vocabulary_of_a_model():
    vocabulary = ("y", "unused", "x")
    events = read("who,when,what\na,1,x\na,2,y\n", vocabulary=vocabulary)
    assert events.vocabulary == vocabulary
    assert events.tokens.tolist() == [2, 0]
    assert complaint("who,when,what\na,1,x\na,2,z\n", vocabulary=vocabulary) == (
        "e.csv:3:3: token 'z' is unknown, expected one of the 3 in the vocabulary"
    )


HEADER = "who,when,what\n"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "e.csv: the file is empty, expected a header and rows"),
        ("\n\r\n", "e.csv: the file is empty, expected a header and rows"),
        ("\ufeff" + HEADER, "e.csv: the file has a header only, expected rows"),
        (
            "\nwhom,When,what\n",
            "e.csv:2: there is no column 'who' (did you mean 'whom'?), expected one of 'whom', 'When', 'what'",
        ),
        (
            "who,WHEN,what\n",
            "e.csv:1: there is no column 'when' (did you mean 'WHEN'?), expected one of 'who', 'WHEN', 'what'",
        ),
        ("who;when;what\n", "e.csv:1: there is no column 'who', expected one of 'who;when;what'"),
        ("who,when,what,when\n", "e.csv:1:4: column 'when' is there twice, expected one column of that name"),
        (HEADER + "a,1\n", "e.csv:2:3: the row has 2 fields, expected 3"),
        (HEADER + "a,1,x\n \n", "e.csv:3:2: the row has 1 field, expected 3"),
        (HEADER + "a,1,x,y,z\n", "e.csv:2:4: the row has 5 fields, expected 3"),
        (HEADER + ",1,x\n", "e.csv:2:1: the entity is empty, expected text"),
        (HEADER + "a,,x\n", f"e.csv:2:2: the time is empty, expected {SECONDS}"),
        (HEADER + "a,1,\n", "e.csv:2:3: the token is empty, expected text"),
        (HEADER + '"a\nb",1,x\n"a\n', "e.csv:4: a quote opened in this row is never closed, expected a closing quote"),
        (HEADER + 'a,1,"x"y\n', "e.csv:2: the row is not valid CSV, ',' expected after '\"'"),
        (HEADER + "a,1,x\na,2,\0\n", "e.csv:3: the line has a NUL byte, expected text"),
        (
            HEADER + 'a,1,"' + ("x" * 4095 + "\n") * (4 << 10),
            "e.csv:2: the row is longer than 16777216 characters, expected a shorter one or a closing quote",
        ),
        (HEADER.encode() + b"a,1,\xc3\xa9\n\na,2,\xe9\n", "e.csv:4: the line is not UTF-8, expected UTF-8 text"),
        (HEADER.encode() + b"a,1,\xc3", "e.csv:2: the line is not UTF-8, expected UTF-8 text"),
        (HEADER.encode("utf-16"), "e.csv:1: the line is not UTF-8, expected UTF-8 text"),
        (gzip.compress(HEADER.encode(), mtime=0), "e.csv:1: the line is not UTF-8, expected UTF-8 text"),
    ],
)
def test_a_bad_file(content, sentence):
    assert complaint(content) == sentence


def test_a_column_asked_for_in_capitals():
    Path("e.csv").write_text(HEADER)
    with pytest.raises(UserError) as caught:
        read_events("e.csv", entity="who", time="WHEN", token="what", time_unit="s")
    assert str(caught.value) == (
        "e.csv:1: there is no column 'WHEN' (did you mean 'when'?), expected one of 'who', 'when', 'what'"
    )


def test_a_field_may_be_long_and_quoted_and_tokens_may_be_blank():
    assert as_rows(read(HEADER + 'a,1," "\na,2,"""quoted"", and so on"\na,3,' + "x" * 131_072 + "\n")) == [
        ("a", 1, " "),
        ("a", 2, '"quoted", and so on'),
        ("a", 3, "x" * 131_072),
    ]


def test_gzip():
    rows = [("a", str(i), f"token {i * i % 97}") for i in range(5000)]
    packed = gzip.compress(written(rows).encode(), mtime=0)
    assert as_rows(read(packed, "e.csv.gz")) == [(who, int(when), what) for who, when, what in rows]
    damaged = "e.csv.gz: the data are damaged or not gzip at all, expected a .gz file"
    assert complaint(HEADER, "e.csv.gz") == damaged
    assert complaint(packed[:-8] + b"\0\0\0\0" + packed[-4:], "e.csv.gz") == damaged
    assert complaint(packed[:10] + b"\xff" * 20 + packed[30:], "e.csv.gz") == damaged
    assert complaint(b"", "e.csv.gz") == "e.csv.gz: the file is empty, expected a header and rows"
    for cut in (5, len(packed) // 2, len(packed) - 1):
        assert complaint(packed[:cut], "e.csv.gz") == "e.csv.gz: the gzip data end too early, expected a whole file"


@pytest.mark.parametrize("name", ["e.csv", "e.csv.gz"])
def test_a_file_that_cannot_be_opened(name):
    def opening() -> str:
        with pytest.raises(UserError) as caught:
            read_events(name, entity="who", time="when", token="what", time_unit="s")
        return str(caught.value)

    assert opening() == f"{name}: there is no such file, expected {FILES}"
    Path(name).mkdir()
    assert opening() == f"{name}: this is a directory, expected {FILES}"
    Path(name).rmdir()
    Path(name).symlink_to(name)
    loop = os.strerror(errno.ELOOP)
    assert opening() == f"{name}: the file cannot be read ({loop}), expected a readable file"


def test_an_unknown_unit_is_the_programmers_error():
    with pytest.raises(ValueError, match="Clock: unit is 'h', expected one of 's', 'ms', 'us', 'ns', 'iso8601'"):
        read(HEADER + "a,1,x\n", time_unit="h")


def test_selecting_sequences():
    events = read(HEADER + "a,1,x\nb,2,y\nb,3,z\nc,4,x\n")
    part = events.select([1, 2])
    assert part.entities == ("b", "c")
    assert part.n_sequences == 2
    assert as_rows(part) == [("b", 2, "y"), ("b", 3, "z"), ("c", 4, "x")]
    assert part.vocabulary == events.vocabulary
    assert events.select([]).offsets.tolist() == [0]
    assert [array.dtype for array in events.select([])[1:4]] == [np.int32, np.int64, np.int64]
