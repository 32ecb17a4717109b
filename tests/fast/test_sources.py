"""What was written is read back, in every format and wherever blocks end; units are inferred or contradicted; bad records go where they should."""

import csv
import gzip
import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings, strategies as st
from pyarrow import parquet

from tests.fuzz.inputs import READERS
from tests.fuzz.reading import fuzz
from ttr_fast.data.sources import files
from ttr_fast.data.sources.checks import terminated
from ttr_fast.data.sources.opening import open_events, open_texts
from ttr_fast.data.sources.records import EventFields, Problems, TextFields
from ttr_fast.data.sources.times import Clock
from ttr_fast.errors import UserError

FORMATS = ["jsonl", "json", "csv", "parquet", "jsonl.gz", "json.gz", "csv.gz"]
NAME = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), min_size=1) | st.text('a",\r\n;é\\[]{}:😀\u2028', min_size=1)
TIME = st.integers(-(10**11) + 1, 10**11 - 1)
EVENTS = st.lists(st.tuples(NAME, TIME, NAME), min_size=1, max_size=30)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def encoded(format: str, rows: list[dict[str, Any]], ascii: bool = False, indent: int | None = None, end: str = "\n") -> bytes:
    """A file of the rows, by writers that are not ours."""
    if format.endswith(".gz"):
        return gzip.compress(encoded(format.removesuffix(".gz"), rows, ascii, indent, end), 1)
    if format == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=ascii) + end for row in rows).encode()
    if format == "json":
        return json.dumps(rows, ensure_ascii=ascii, indent=indent).encode()
    if format == "csv":
        text = io.StringIO()
        always = ascii or end == "\n"  # the module leaves \r without quotes if no line ends with it
        writer = csv.writer(text, quoting=csv.QUOTE_ALL if always else csv.QUOTE_MINIMAL, lineterminator=end)
        writer.writerows([rows[0], *(row.values() for row in rows)])
        return text.getvalue().encode()
    file = io.BytesIO()
    parquet.write_table(pyarrow.table({name: [row[name] for row in rows] for name in rows[0]}), file)
    return file.getvalue()


def read(content: bytes | str, name: str, fields: Any = None, block: int = files.BLOCK, **options: Any) -> tuple[Any, Any]:
    """(columns of all chunks put together, source), of texts if `fields` are theirs."""
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    opening: Any = open_texts if isinstance(fields, TextFields) else open_events
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "BLOCK", block)
        source = opening(name, fields or EventFields(), **{"time_unit": None, "sort": True, "problems": Problems(), **options})
        chunks = list(source.chunks())
    assert sum(chunk.bytes_read for chunk in chunks) == source.size == Path(name).stat().st_size
    return [put_together(parts) for parts in zip(*(chunk[:4] for chunk in chunks), strict=True)], source


def put_together(parts: tuple[Any, ...]) -> list[Any] | None:
    """Chunks of a column; None if the file has none of it."""
    if any(part is None for part in parts):
        assert all(part is None for part in parts)
        return None
    return [value for part in parts for value in (part if isinstance(part, list) else part.tolist())]


@settings(max_examples=60)
@given(EVENTS, st.sampled_from(FORMATS), st.booleans(), st.sampled_from([None, 0, 3]), st.sampled_from(["\n", "\r\n"]), st.integers(1, 100))
def test_events_come_back_in_every_format_whatever_the_blocks(events, format, ascii, indent, end, block):
    rows = [{"note": "[", "token": token, "time": time, "entity": entity} for entity, time, token in events]
    content = encoded(format, rows, ascii, indent, end)
    columns, source = read(content, f"e.{format}", block=block, time_unit="s")
    assert columns == read(content, f"e.{format}", time_unit="s")[0]
    assert list(zip(*columns[:3], strict=True)) == events
    assert source.time_unit == "s"


@pytest.mark.parametrize("block", range(1, 24))
def test_an_array_is_split_where_its_elements_end(block):
    texts = ["\\" * n + end for n in range(1, 6) for end in ('"', 'x"', ',"[', "]}", "\n")]
    content = "[" + ",".join("\n" * (n % 3) + " " * (n % 4) + json.dumps(text) for n, text in enumerate(texts)) + "\n]\n"
    lines = [1 + sum(k % 3 for k in range(n + 1)) for n in range(len(texts))]
    columns, _ = read(content, "t.json", TextFields(), block)
    assert columns[2:] == [[text + "</s>" for text in texts], lines]


@pytest.mark.parametrize("block", range(1, 24))
@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_lines_are_counted_wherever_blocks_end(end, block):
    content = end.join(["\ufeffentity,time,token", "a,1,x", "", 'a,2,"x', 'y"', "b,1,é", "b,2,z", ""])
    columns, _ = read(content, "e.csv", block=block)
    assert columns == [["a", "a", "b", "b"], [1, 2, 1, 2], ["x", f"x{end}y", "é", "z"], [2, 4, 6, 7]]


@settings(max_examples=60)
@given(st.lists(NAME.filter(str.strip), min_size=1, max_size=20), st.sampled_from(FORMATS), st.booleans(), st.integers(1, 100))
def test_texts_come_back_with_a_terminator(texts, format, ascii, block):
    rows = [{"text": text} for text in texts]
    (entities, times, found, _), source = read(encoded(format, rows, ascii), f"t.{format}", TextFields(), block)
    assert entities is times is source.time_unit is None
    assert found == [terminated(text) for text in texts]


@given(st.text("ab \n</s>"), st.sampled_from(["", "</s>", "</s> ", "</s>\n</s>", " </s></s>"]))
def test_a_terminator_is_appended_where_it_is_missing_and_never_doubled(text, end):
    found = terminated(text + end)
    assert found.endswith("</s>")
    assert not found.removesuffix("</s>").rstrip().endswith("</s>")
    assert terminated(found) == found
    if text.strip() and not text.rstrip().endswith("</s>"):
        assert found == (text + " " * end.startswith(" ") if end else text) + "</s>"


def test_the_forms_of_the_original():
    strings = '["User: hi Assistant: hello</s>",\n "no end", "end </s>\\n"]'
    assert read(strings, "t.json", TextFields())[0][2:] == [["User: hi Assistant: hello</s>", "no end</s>", "end </s>"], [1, 2, 2]]
    assert read('"one"\n\n"two</s>"\n', "t.jsonl", TextFields())[0][2:] == [["one</s>", "two</s>"], [1, 3]]
    rows = 'User: hi,Assistant: hello</s>\r\n\r\n"quoted, with a\r\nline break"\r\nplain'
    expected = ["User: hi Assistant: hello</s>", "quoted, with a\r\nline break</s>", "plain</s>"]
    assert read(rows, "t.csv", TextFields(text=None))[0][2:] == [expected, [1, 3, 5]]


def test_texts_with_times_and_entities_are_in_order_by_entity():
    lines = ['{"text":"x","time":7,"entity":"a"}', '{"text":"y","time":3,"entity":"b"}', '{"text":"z","time":"5","entity":"a"}']
    columns, source = read("\n".join(lines), "t.jsonl", TextFields())
    assert columns == [["a", "b", "a"], [7, 3, 5], ["x</s>", "y</s>", "z</s>"], [1, 2, 3]]
    assert source.time_unit == "s"
    with pytest.raises(UserError, match=r"t.jsonl:3:20: time '5' of entity 'a' comes after 7, expected records in order of time or --sort"):
        read("\n".join(lines), "t.jsonl", TextFields(), sort=False)
    assert read("\n".join(lines), "t.jsonl", TextFields(entity=None), sort=False)[0][0] is None
    assert read('{"text":"x"}', "t.jsonl", TextFields(), time_unit="s")[1].time_unit is None


def test_a_field_that_was_asked_for_by_name_must_be_there():
    with pytest.raises(UserError, match=r"t.jsonl:1:1: there is no field 'when', expected it beside 'text'"):
        read('{"text":"x"}', "t.jsonl", TextFields(time="when"))
    with pytest.raises(UserError, match=r"t.json:1:2: the record is a string, expected an object"):
        read('["x"]', "t.json", TextFields(entity="who"))
    with pytest.raises(UserError, match=r"t.csv:1: there is no column 'when', expected one of 'text'"):
        read("text\nx\n", "t.csv", TextFields(time="when"))
    with pytest.raises(UserError, match="e.csv: 'time' was named for two fields, expected a name of its own for each"):
        read("", "e.csv", EventFields(entity="time"))
    with pytest.raises(UserError, match="e.csv: no field was named for tokens, expected one at least"):
        read("", "e.csv", EventFields(tokens=()))
    with pytest.raises(UserError, match="e.json: a field cannot be called 'a\"' in JSON"):
        read("[]", "e.json", EventFields(entity='a"'))


def test_several_columns_make_one_token():
    fields = EventFields(tokens=("token", "to"))
    assert read("token,time,to,entity\nJFK,1,LAX,a\nLAX,2,SFO,a\n", "e.csv", fields)[0][2] == ["JFK|LAX", "LAX|SFO"]
    with pytest.raises(UserError, match=r"e.csv:2:3: the token 'L\|A' has a '\|', expected none where several columns are joined by it"):
        read("token,time,to,entity\nJFK,1,L|A,a\n", "e.csv", fields)
    assert read("token,time,entity\nJ|K,1,a\n", "e.csv")[0][2] == ["J|K"]


@pytest.mark.parametrize(
    "first, unit",
    [
        ("0", "s"), ("-3600", "s"), ("1700000000", "s"), ("1700000000.5", "s"), ("99999999999", "s"), ("100000000000", "ms"), ("1700000000000", "ms"),
        ("1.7e12", "ms"), ("1700000000000000", "us"), ("1700000000000000000", "ns"), ("9223372036854775807", "ns"),
        ("2023-11-14T22:13:20Z", "iso8601"), ("20231114T221320Z", "iso8601"),
    ],
)  # fmt: skip
def test_the_unit_is_inferred_from_the_first_time(first, unit):
    for name, content in [("e.csv", f"entity,time,token\na,{first},x\n"), ("e.jsonl", json.dumps({"entity": "a", "time": first, "token": "x"}))]:
        columns, source = read(content, name)
        assert source.time_unit == unit
        assert columns == read(content, name, time_unit=unit)[0]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_timestamps_of_parquet_have_their_unit(unit):
    file = io.BytesIO()
    parquet.write_table(pyarrow.table({"entity": ["a"], "time": pyarrow.array([5], pyarrow.timestamp(unit, "UTC")), "token": ["x"]}), file)
    columns, source = read(file.getvalue(), "e.parquet")
    assert (columns[1], source.time_unit) == ([5], unit)


@pytest.mark.parametrize(
    "times, unit, sentence",
    [
        (["1700000000", "1700000060000"], None, "time '1700000060000' looks like milliseconds, expected UNIX seconds"),
        (["1700000000000", "1700000060"], None, "time '1700000060' looks like seconds, expected UNIX milliseconds"),
        (["1700000000000000", "1700000060000"], None, "time '1700000060000' looks like milliseconds, expected UNIX microseconds"),
        (["1700000000000000000", "1700000060000000"], None, "time '1700000060000000' looks like microseconds, expected UNIX nanoseconds"),
        (["2023-11-14T22:13:20Z", "1700000060"], None, "time '1700000060' looks like a number, expected ISO 8601"),
        (["1700000000", "2023-11-14T22:13:20Z"], None, "time '2023-11-14T22:13:20Z' looks like a date, expected UNIX seconds"),
        (["1700000000000", "1700000060000"], "s", "time '1700000000000' looks like milliseconds, expected UNIX seconds"),
        (["1700000000", "1700000060"], "ms", "time '1700000000' looks like seconds, expected UNIX milliseconds"),
        (["1700000000", "1700000060"], "ns", "time '1700000000' looks like seconds, expected UNIX nanoseconds"),
        (["yesterday"], None, "time 'yesterday' is neither a number nor a date, expected a UNIX time such as 1700000000, or ISO 8601"),
        (["nan"], None, "time 'nan' is not finite, expected a UNIX time"),
        ([""], None, "the time is empty, expected a UNIX time"),
    ],
)
@pytest.mark.parametrize("block", [8, files.BLOCK])
def test_a_contradiction(times, unit, sentence, block):
    content = "entity,time,token\n" + "".join(f"a,{time},x\n" for time in times)
    line = len(times) + 1 if unit is None else 2
    with pytest.raises(UserError, match=f"^e.csv:{line}:2: {sentence}"):
        read(content, "e.csv", block=block, time_unit=unit)


def test_a_clock_that_starts_near_zero_may_pass_where_seconds_are_of_our_days():
    assert read("entity,time,token\na,0,x\na,1700000000,x\n", "e.csv", time_unit="ms")[0][1] == [0, 1700000000]


@given(st.lists(st.integers(10**10, 2 * 10**14) | st.integers(-(10**9), 10**13) | st.floats(-1e9, 1e13), min_size=1), st.integers(1, 50))
def test_a_column_of_times_is_its_times_one_by_one(values, size):
    at_once, one_by_one = Clock("ms"), Clock("ms")
    for start in range(0, len(values), size):
        part = values[start : start + size]
        times, bad = at_once.column(part)
        for i, value in enumerate(part):
            if i in bad:
                with pytest.raises(ValueError, match="expected UNIX milliseconds") as caught:
                    one_by_one.time(value)
                assert str(caught.value) == bad[i]
            else:
                assert one_by_one.time(value) == times[i]


@pytest.mark.parametrize("block", [7, files.BLOCK])
def test_bad_records_are_left_out_counted_and_kept(block):
    content = b'entity,time,token\na,1,x\na,,y\n\na,2,\xff\na,1,"late"\n"a",3,z\na,4,"x"y\n'
    (entities, times, tokens, lines), _ = read(content, "e.csv", block=block, sort=False, problems=Problems("skip", max_bad=9))
    assert (entities, times, tokens, lines) == (["a"] * 3, [1, 1, 3], ["x", "late", "z"], [2, 6, 7])
    with Problems("quarantine", max_bad=3, quarantine=Path("bad.jsonl")) as problems:
        read(content, "e.csv", block=block, sort=False, problems=problems)
    assert problems.count == 3
    assert [json.loads(line) for line in Path("bad.jsonl").read_bytes().splitlines()] == [
        {"where": "e.csv:3:2", "reason": "the time is empty, expected UNIX seconds such as 1700000000 or 1700000000.5", "record": "a,,y"},
        {"where": "e.csv:5", "reason": "the line is not UTF-8, expected UTF-8 text", "record_base64": "YSwyLP8="},
        {"where": "e.csv:8", "reason": "the row is not valid CSV, ',' expected after '\"'", "record": 'a,4,"x"y'},
    ]
    with pytest.raises(UserError, match="e.csv:8: the row is not valid CSV.*; this is bad record number 3, expected at most 2"):
        read(content, "e.csv", block=block, sort=False, problems=Problems("skip", max_bad=2))


def test_rows_too_narrow_and_too_wide_do_not_make_up_for_each_other():
    header, rows = "entity,time,token\n", "a,1\na,1,x,y\na,1,x\n"
    with Problems("skip", max_bad=2) as problems:
        assert read(header + rows, "e.csv", block=len(header), problems=problems)[0] == [["a"], [1], ["x"], [4]]
    assert problems.count == 2


def test_chunks_stay_small_where_rows_cross_every_block(monkeypatch):
    Path("e.csv").write_text("entity,time,token\n" + 'a,1,"x\ny\nz"\n' * 500)
    monkeypatch.setattr(files, "BLOCK", 64)
    chunks = list(open_events("e.csv", EventFields(), time_unit="s", sort=False, problems=Problems()).chunks())
    assert sum(chunk.lines.size for chunk in chunks) == 500
    assert max(chunk.lines.size for chunk in chunks) <= 64 // len('a,1,"x\ny\nz"\n') + 2


def test_a_header_after_blocks_of_blank_lines():
    assert read("\n" * 50 + "entity,time,token\na,1,x\n", "e.csv", block=7)[0] == [["a"], [1], ["x"], [52]]
    assert read(" \n\t\n" * 20 + '{"entity":"a","time":1,"token":"x"}\r\n\r\n', "e.jsonl", block=7)[0] == [["a"], [1], ["x"], [41]]


def test_no_good_record():
    with pytest.raises(UserError, match="e.jsonl: none of its records is good, expected one at least; the first: e.jsonl:1"):
        read("{}\n{}\n", "e.jsonl", problems=Problems("skip", max_bad=2))


def test_quarantine_wants_a_file():
    with pytest.raises(ValueError, match="expected a file for it"):
        Problems("quarantine")


MEMORY = """
import resource, sys
from ttr_fast.data.sources.opening import open_events
from ttr_fast.data.sources.records import EventFields, Problems
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
chunks = open_events(sys.argv[1], EventFields(), time_unit=None, sort=True, problems=Problems()).chunks()
events = sum(next(chunks).lines.size for _ in range(20))
before = peak()
events += sum(chunk.lines.size for chunk in chunks)
print(events, peak() - before)
"""


@pytest.mark.parametrize("format", ["jsonl.gz", "json.gz", "csv.gz", "parquet"])
def test_memory_does_not_grow_with_the_file(format):
    rng = np.random.default_rng(5)
    n, repeats = 20_000, 15
    rows = [{"entity": f"N{k}", "time": 1_700_000_000 + k, "token": f"to {k % 97}"} for k in rng.integers(0, 10**6, n).tolist()]
    if format == "parquet":
        table, repeats = pyarrow.Table.from_pylist(rows), 4 * repeats
        with parquet.ParquetWriter("e.parquet", table.schema) as writer:
            for _ in range(repeats):
                writer.write_table(table)
    else:
        plain = encoded(format.removesuffix(".gz"), rows, end="\r\n")
        head, body, joint, tail = {"jsonl.gz": (b"", plain, b"", b""), "json.gz": (b"[", plain[1:-1], b",", b"]"),
                                   "csv.gz": (plain[:19], plain[19:], b"", b"")}[format]  # fmt: skip
        Path(f"e.{format}").write_bytes(gzip.compress(head + joint.join([body] * repeats) + tail, 1))
    environment = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", MEMORY, f"e.{format}"], capture_output=True, text=True, check=True, env=environment)
    events, kilobytes = map(int, done.stdout.split())
    assert events == n * repeats
    assert kilobytes < 8 << 10  # the file unpacked is 7 MB or more, its columns several times that


@pytest.mark.parametrize("reader", READERS)
def test_fuzzed_files(reader, tmp_path):
    counts: Counter[str] = Counter()
    for number in range(150):
        fuzz(reader, number, 4, tmp_path / f"fuzzed.{reader}", counts)
    assert counts["accepted"] > 0
    assert counts["refused"] > 0
