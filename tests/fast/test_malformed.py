"""Malformed files, each with the one sentence that it gets: where, what came, what was expected."""

import gzip
import io
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

import pyarrow
import pytest
from pyarrow import parquet

from ttr_fast import cli
from ttr_fast.data.sources.opening import open_events, open_texts
from ttr_fast.data.sources.records import EventChunk, EventFields, Problems, TextChunk, TextFields
from ttr_fast.errors import UserError

SECONDS = "expected UNIX seconds such as 1700000000 or 1700000000.5"
FILES = r"expected a .csv, .json, .jsonl \(each also .gz\) or .parquet file"
HEADER = b"entity,time,token\n"
GOOD_CSV = HEADER + b"a,1700000000,x\n"
GOOD = b'{"entity":"a","time":1700000000,"token":"x"}'
PACKED = gzip.compress(GOOD * 100 + b"\n", mtime=0)
ROWS = {"entity": ["a", "b"], "time": [1700000000, 1700000060], "token": ["x", "y"]}


class Malformed(NamedTuple):
    """A file and what is said of it. `skippable`: --on-error skip leaves the record out; otherwise it is the file that is bad."""

    name: str
    content: bytes
    sentence: str
    skippable: bool = False


def bad_line(content: bytes, sentence: str) -> Malformed:
    """A record of JSONL between two good ones."""
    return Malformed("bad.jsonl", GOOD + b"\n" + content + b"\n" + GOOD + b"\n", rf"bad.jsonl:2{sentence}", skippable=True)


def bad_row(content: bytes, sentence: str) -> Malformed:
    """A row of CSV between two good ones."""
    return Malformed("bad.csv", GOOD_CSV + content + b"\na,1700000000,x\n", rf"bad.csv:3{sentence}", skippable=True)


def bad_element(content: bytes, sentence: str) -> Malformed:
    """An element of an array between two good ones."""
    return Malformed("bad.json", b"[" + GOOD + b",\n" + content + b",\n" + GOOD + b"]", rf"bad.json:2{sentence}", skippable=True)


def bad_table(sentence: str, **columns: object) -> Malformed:
    """A Parquet file with some columns other than good ones; None leaves a column out."""
    table = {name: column for name, column in {**ROWS, **columns}.items() if column is not None}
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(table), file)
    return Malformed("bad.parquet", file.getvalue(), sentence)


def skippable(malformed: Malformed) -> Malformed:
    return malformed._replace(skippable=True)


def record(entity: object = "a", time: object = 1700000000, token: object = "x") -> bytes:
    return json.dumps({"entity": entity, "time": time, "token": token}).encode()


def written(time: bytes) -> bytes:
    return b'{"entity":"a","time":%b,"token":"x"}' % time


EVENTS = [
    # JSONL: syntax
    bad_line(b'{"entity":"a","time":1700000000,"token":"x"', r":44: the record ends too early, expected a whole object"),
    bad_line(b'{"entity":"a" "time":1700000000,"token":"x"}', r":15: the record is not valid JSON \(expected ',' or '}'\), expected an object"),
    bad_line(b'{"entity":"a","time":1700000000,"token":"x",}', r":45: the record is not valid JSON \(.*trailing comma.*\), expected an object"),
    bad_line(GOOD + GOOD, r":46: the record is not valid JSON \(trailing characters\), expected an object"),
    bad_line(b"{'entity':'a'}", r":2: the record is not valid JSON \(.*\), expected an object"),
    bad_line(written(b"NaN"), r":22: the record is not valid JSON \(invalid character\), expected an object"),
    bad_line(written(b"Infinity"), r":22: the record is not valid JSON \(invalid character\), expected an object"),
    bad_line(written(b"-Infinity"), r":23: the record is not valid JSON \(invalid .*\), expected an object"),
    bad_line(written(b"017"), r":23: the record is not valid JSON \(invalid number\), expected an object"),
    bad_line(written(b"1700000000.") , r":33: the record is not valid JSON \(invalid number\), expected an object"),
    bad_line(b'{"entity":"a\\q","time":1,"token":"x"}', r":14: the record is not valid JSON \(invalid escaped character\), expected an object"),
    bad_line(b'{"entity":"a\tb","time":1,"token":"x"}', r":13: the record is not valid JSON \(invalid character\), expected an object"),
    bad_line(b'{"entity":"a", /* who */ "time":1,"token":"x"}', r":16: the record is not valid JSON \(.*\), expected an object"),
    bad_line(b"entity,time,token", r":1: the record is not valid JSON \(invalid character\), expected an object"),
    # JSONL: text
    bad_line(b'{"entity":"\xff","time":1,"token":"x"}', r":12: the record is not UTF-8, expected UTF-8 text"),
    bad_line(b'{"entity":"a","time":1700000000,"token":"x","note":"\xe9"}', r":53: the record is not UTF-8, expected UTF-8 text"),
    bad_line(b'{"entity":"\xed\xa0\x80","time":1,"token":"x"}', r":12: the record is not UTF-8, expected UTF-8 text"),
    bad_line(b'{"entity":"\\ud800","time":1,"token":"x"}', r":12: the record has one half of a surrogate pair, expected both or none"),
    bad_line(b'{"entity":"\\udc00x","time":1,"token":"x"}', r":12: the record has one half of a surrogate pair, expected both or none"),
    bad_line(b'{"entity":"a\0","time":1,"token":"x"}', r":13: the record has a NUL byte, expected text"),
    bad_line(b'{"entity":"a\\u0000","time":1700000000,"token":"x"}', r":11: the entity 'a\\x00' has a NUL character, expected text without"),
    bad_line(b"\xef\xbb\xbf" + GOOD, r":1: the record is not valid JSON \(invalid character\), expected an object"),
    # JSONL: structure
    bad_line(b"[1,2]", r":1: the record is an array, expected an object"),
    bad_line(b'"text"', r":1: the record is a string, expected an object"),
    bad_line(b"null", r":1: the record is null, expected an object"),
    bad_line(b"3", r":1: the record is a number, expected an object"),
    bad_line(b"[" * 5000 + b"]" * 5000, r":65: the record is nested deeper than 64 brackets, expected a flatter one"),
    bad_line(GOOD[:-1] + b',"u":' + b"[" * 64 + b"]" * 64 + b"}", r":112: the record is nested deeper than 64 brackets, expected a flatter one"),
    bad_line(b'{"time":1,"token":"x"}', r":1: there is no field 'entity', expected it beside 'time', 'token'"),
    bad_line(b'{"Entity":"a","time":1,"token":"x"}', r":1: there is no field 'entity' \(did you mean 'Entity'\?\), expected it beside 'Entity', .*"),
    bad_line(b"{}", r":1: there is no field 'entity', expected it beside no other"),
    bad_line(GOOD[:-1] + b',"time":1700000001}', r":45: field 'time' is there twice, expected it once"),
    bad_line(GOOD[:-1] + b',"ti\\u006de":1700000001}', r":45: field 'time' is there twice, expected it once"),
    # JSONL: values
    bad_line(record(entity=""), r":12: the entity is empty, expected text"),
    bad_line(record(token=""), r":\d+: the token is empty, expected text"),
    bad_line(record(time=""), rf":25: the time is empty, {SECONDS}"),
    bad_line(record(entity=None), r":12: field 'entity' is null, expected text"),
    bad_line(record(entity=True), r":12: field 'entity' is true, expected text"),
    bad_line(record(token=1.5), r":\d+: field 'token' is the number '1.5', expected text or a whole number"),
    bad_line(record(token=["x"]), r":\d+: field 'token' is an array, expected text"),
    bad_line(record(token={"is": "x"}), r":\d+: field 'token' is an object, expected text"),
    bad_line(record(entity=2**63), r":\d+: the entity is a number beyond int64, expected text or a whole number"),
    bad_line(record(time=None), r":\d+: the time is null, expected a number or text"),
    bad_line(record(time=False), r":\d+: the time is false, expected a number or text"),
    bad_line(record(time=[1]), r":\d+: the time is an array, expected a number or text"),
    bad_line(record(time="soon"), rf":\d+: time 'soon' is not a number, {SECONDS}"),
    bad_line(record(time="2023-11-14T22:13:20Z"), rf":\d+: time '2023-11-14T22:13:20Z' looks like a date, {SECONDS}"),
    bad_line(written(b"1e999"), rf":22: time '1e999' is not finite, {SECONDS}"),
    bad_line(written(b"9" * 30), rf":22: time '9{{30}}' is beyond int64, {SECONDS}"),
    bad_line(written(b"9" * 5000), rf":22: time '9{{40}}'… is beyond int64, {SECONDS}"),
    bad_line(record(time="nan"), rf":\d+: time 'nan' is not finite, {SECONDS}"),
    bad_line(record(time=1700000000000), rf":\d+: time '1700000000000' looks like milliseconds, {SECONDS}"),
    bad_line(record(time=1699999999), r":\d+: time '1699999999' of entity 'a' comes after 1700000000, expected records in order of time or --sort"),
    # JSONL: the whole file
    Malformed("bad.jsonl", b"", "bad.jsonl: the file is empty, expected a record on each line"),
    Malformed("bad.jsonl", b"\n \n\r\n", "bad.jsonl: the file is empty, expected a record on each line"),
    Malformed("bad.jsonl", GOOD + b"\n" + b" " * (17 << 20), "bad.jsonl:2: the line is longer than 16777216 bytes, expected a shorter one"),
    Malformed("bad.jsonl", GOOD.decode().encode("utf-16"), "bad.jsonl:1:1: the record is not UTF-8, expected UTF-8 text"),
    # an array
    bad_element(b'{"entity":"a"}', r":1: there is no field 'time', expected it beside 'entity'"),
    skippable(Malformed("bad.json", b'[{"entity":"a",\n  "time":null,\n "token":"x"},' + GOOD + b"]", "bad.json:2:10: the time is null, .*")),
    bad_element(b"", r":1: there is nothing between two commas or brackets, expected a record"),
    bad_element(b"NaN", r":1: the record is not valid JSON \(invalid character\), expected an object"),
    bad_element(b'{"entity":"a" 3}', r":15: the record is not valid JSON \(.*\), expected an object"),
    skippable(Malformed("bad.json", b"[" + GOOD + b",]", r"bad.json:1:47: there is nothing between two commas or brackets, expected a record")),
    skippable(Malformed("bad.json", b"[\n " + GOOD + b", " + written(b"true") + b"]", r"bad.json:2:69: the time is true, expected a number or text")),
    Malformed("bad.json", b"", "bad.json: the file is empty, expected an array of records"),
    Malformed("bad.json", b" \n ", "bad.json: the file is empty, expected an array of records"),
    Malformed("bad.json", b"[ \n]", "bad.json: the array is empty, expected records"),
    Malformed("bad.json", GOOD, r"bad.json:1:1: the file starts with '{', expected '\[' \(one record a line is a .jsonl file\)"),
    Malformed("bad.json", b"\n  \xff", r"bad.json:2:3: the file starts with .*, expected '\['.*"),
    Malformed("bad.json", b"[" + GOOD + b",\n" + GOOD, r"bad.json:2: the file ends inside the array, expected a closing bracket .*"),
    Malformed("bad.json", b'[{"entity":"a\n\n', r"bad.json:1: the file ends inside the array, expected a closing bracket \(or a quote before it\)"),
    Malformed("bad.json", b"[\n" + GOOD + b"\n} ", r"bad.json:3:1: the array is closed by '}', expected '\]'"),
    Malformed("bad.json", b"[" + GOOD + b"]\n[" + GOOD + b"]", "bad.json:1:47: there is more after the array, expected nothing"),
    Malformed("bad.json", b"[" + b"[" * 100_000, r"bad.json:1: the file ends inside the array.*"),
    Malformed("bad.json", b"[" + GOOD + b',\n"' + b"x" * (17 << 20), "bad.json:2: an element of the array is longer than 16777216 bytes, .*"),
    # CSV
    bad_row(b"a,1700000000", ":3: the row has 2 fields, expected 3"),
    bad_row(b"a", ":2: the row has 1 field, expected 3"),
    bad_row(b"a,1700000000,x,y", ":4: the row has 4 fields, expected 3"),
    bad_row(b'a,1700000000,"x"y', r": the row is not valid CSV, ',' expected after '\"'"),
    bad_row(b"a,1700000000,\0", ": the line has a NUL byte, expected text"),
    bad_row(b"a,1700000000,\xff", ": the line is not UTF-8, expected UTF-8 text"),
    bad_row(b",1700000000,x", ":1: the entity is empty, expected text"),
    bad_row(b'"",1700000000,x', ":1: the entity is empty, expected text"),
    bad_row(b"a,,x", f":2: the time is empty, {SECONDS}"),
    bad_row(b"a,1700000000,", ":3: the token is empty, expected text"),
    bad_row(b"a,1_700_000_000,x", f":2: time '1_700_000_000' is not a number, {SECONDS}"),
    bad_row(b"a, 1700000000,x", f":2: time ' 1700000000' is not a number, {SECONDS}"),
    bad_row(b"a,1e999,x", f":2: time '1e999' is not finite, {SECONDS}"),
    bad_row(b"a,true,x", f":2: time 'true' is not a number, {SECONDS}"),
    bad_row(b"a,1699999999.5,x", ":2: time '1699999999.5' of entity 'a' comes after 1700000000, expected .*"),
    bad_row(b"a,1700000000000,x", f":2: time '1700000000000' looks like milliseconds, {SECONDS}"),
    bad_row(HEADER.strip(), f":2: time 'time' is not a number, {SECONDS}"),
    bad_row(b"\xef\xbb\xbfa,1700000000,x", r":1: the entity '\\ufeffa' has a byte order mark, expected text without"),
    Malformed("bad.csv", b"", "bad.csv: the file is empty, expected a header and rows"),
    Malformed("bad.csv", HEADER, "bad.csv: the file has a header only, expected rows"),
    Malformed("bad.csv", b"a,1700000000,x\na,1700000001,y\n", "bad.csv:1: there is no column 'entity', expected one of 'a', '1700000000', 'x'"),
    Malformed("bad.csv", b"entity;time;token\na;1;x\n", "bad.csv:1: there is no column 'entity'.*, expected one of 'entity;time;token'"),
    Malformed("bad.csv", b"entity,tine,token\na,1,x\n", r"bad.csv:1: there is no column 'time' \(did you mean 'tine'\?\), expected one of .*"),
    Malformed("bad.csv", b"entity,time,token,time\na,1,x,1\n", "bad.csv:1:4: column 'time' is there twice, expected one column of that name"),
    Malformed("bad.csv", GOOD_CSV + b'a,1700000000,"x\n' * 3, "bad.csv:.*"),
    Malformed("bad.csv", GOOD_CSV + b'a,1700000000,"x\na,1,y\n', "bad.csv:3: a quote opened in this row is never closed, expected a closing quote"),
    Malformed("bad.csv", b'entity,time,"token\n', "bad.csv:1: a quote opened in this row is never closed, expected a closing quote"),
    # gzip
    Malformed("bad.jsonl.gz", GOOD, "bad.jsonl.gz: the data are damaged or not gzip at all, expected a .gz file"),
    Malformed("bad.jsonl.gz", PACKED[:-9], "bad.jsonl.gz: the gzip data end too early, expected a whole file"),
    Malformed("bad.csv.gz", PACKED[:5], "bad.csv.gz: the gzip data end too early, expected a whole file"),
    Malformed("bad.json.gz", PACKED[:-8] + bytes(4) + PACKED[-4:], "bad.json.gz: the data are damaged or not gzip at all, expected a .gz file"),
    Malformed("bad.jsonl.gz", PACKED + b"more", "bad.jsonl.gz: the data are damaged or not gzip at all, expected a .gz file"),
    Malformed("bad.jsonl.gz", gzip.compress((b" " * 4095 + b"\n") * (20 << 10)), "bad.jsonl.gz: the gzip data unpack to more than 300 times .*"),
    Malformed("bad.csv.gz", gzip.compress(b" " * (80 << 20)), "bad.csv.gz:1: the line is longer than 16777216 bytes, expected a shorter one"),
    Malformed("bad.json.gz", gzip.compress(b"[" + b" " * (80 << 20)), "bad.json.gz:1: an element of the array is longer than 16777216 bytes, .*"),
    Malformed("bad.jsonl", gzip.compress(GOOD, mtime=0), "bad.jsonl:1:2: the record is not UTF-8, expected UTF-8 text"),
    # names
    Malformed("bad.txt", GOOD, f"bad.txt: the name ends in '.txt', {FILES}"),
    Malformed("bad", GOOD, f"bad: the name has no ending, {FILES}"),
    Malformed("bad.gz", GOOD, f"bad.gz: the name has no ending, {FILES}"),
    Malformed("bad.parquet.gz", GOOD, f"bad.parquet.gz: the name ends in '.parquet.gz', {FILES}"),
    # Parquet
    Malformed("bad.parquet", b"", "bad.parquet: the data are damaged or not Parquet at all .*, expected a whole file"),
    Malformed("bad.parquet", GOOD_CSV, "bad.parquet: the data are damaged or not Parquet at all .*, expected a whole file"),
    bad_table("bad.parquet: there is no column 'token', expected one of 'entity', 'time'", token=None),
    bad_table("bad.parquet: column 'time' is of type bool, expected numbers, timestamps or strings", time=[True, False]),
    bad_table("bad.parquet: column 'entity' is of type double, expected strings or whole numbers", entity=[1.5, 2.5]),
    bad_table("bad.parquet: column 'time' has timestamps without a zone, .*", time=pyarrow.array([1, 2], pyarrow.timestamp("s"))),
    bad_table("bad.parquet: column 'time' has timestamps in ms, expected UNIX seconds.*", time=pyarrow.array([1, 2], pyarrow.timestamp("ms", "UTC"))),
    bad_table("bad.parquet: the file has no rows, expected some", **{name: pyarrow.array([], "string") for name in ROWS}),
    skippable(bad_table("bad.parquet:row 2: the entity is null, expected text or a whole number", entity=["a", None])),
    skippable(bad_table(f"bad.parquet:row 2: the time is null, {SECONDS}", time=[1700000000, None])),
    skippable(bad_table(f"bad.parquet:row 2: time 'nan' is not finite, {SECONDS}", time=[1.7e9, float("nan")])),
    skippable(bad_table("bad.parquet:row 2: time '18446744073709551615' is beyond int64, .*", time=pyarrow.array([1, 2**64 - 1], "uint64"))),
    skippable(bad_table("bad.parquet:row 2: time '1699999999' of entity 'a' comes after .*", entity=["a", "a"], time=[1700000000, 1699999999])),
]  # fmt: skip

TEXTS = [
    skippable(Malformed("t.json", b'["one",""]', r"t.json:1:8: the text is empty, expected text")),
    skippable(Malformed("t.json", b'["one"," </s> \\n"]', r"t.json:1:8: the text is nothing but white space and </s>, expected text")),
    skippable(Malformed("t.json", b'["one",3]', r"t.json:1:8: the record is a number, expected an object or a string")),
    skippable(Malformed("t.json", b'["one",["two"]]', r"t.json:1:8: the record is an array, expected an object or a string")),
    skippable(Malformed("t.jsonl", b'{"text":"one"}\n{"txt":"two"}', r"t.jsonl:2:1: there is no field 'text' \(did you mean 'txt'\?\), .*")),
    skippable(Malformed("t.jsonl", b'{"text":"one"}\n{"text":"two","time":1}', r"t.jsonl:2:22: this record has the field time, expected none .*")),
    skippable(Malformed("t.jsonl", b'{"text":"one","time":1}\n{"text":"two"}', r"t.jsonl:2:9: there is no time, expected one .*")),
    skippable(Malformed("t.jsonl", b'{"text":"one","entity":"a"}\n"two"', r"t.jsonl:2:1: there is no entity, expected one .*")),
    skippable(Malformed("t.jsonl", b'{"text":"one","time":1}\n{"text":"two","time":"x"}', rf"t.jsonl:2:22: time 'x' is not a number, {SECONDS}")),
    Malformed("t.jsonl", b'{"text":"a\\u0000"}', r"t.jsonl:1:9: the text 'a\\x00' has a NUL character, expected text without"),
    Malformed("bad.csv", b"Text,time\none,1\n", r"bad.csv:1: there is no column 'text' \(did you mean 'Text'\?\), expected one of 'Text', 'time'"),
    Malformed("bad.csv", b"text,time\n,1\n", r"bad.csv:2:1: the text is empty, expected text"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def events_of(name: str, problems: Problems, **options: object) -> list[EventChunk]:
    return list(open_events(name, EventFields(), time_unit="s", sort=False, problems=problems, **options).chunks())


def texts_of(name: str, problems: Problems) -> list[TextChunk]:
    return list(open_texts(name, TextFields(), time_unit="s", sort=False, problems=problems).chunks())


@pytest.mark.parametrize("read, malformed", [(events_of, m) for m in EVENTS] + [(texts_of, m) for m in TEXTS])
def test_one_sentence_and_exit_code_2_or_the_record_is_put_aside(read, malformed, monkeypatch, capsys):
    Path(malformed.name).write_bytes(malformed.content)
    monkeypatch.setattr(cli, "run", lambda _: read(malformed.name, Problems()))
    monkeypatch.setattr(sys, "argv", ["ttr"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    output, complaint = capsys.readouterr()
    assert output == ""
    assert re.fullmatch(f"ttr: {malformed.sentence}\n", complaint), complaint
    quarantine = Path("quarantine.jsonl")
    with Problems("quarantine", max_bad=1, quarantine=quarantine) as problems:
        if malformed.skippable:
            assert sum(chunk.lines.size for chunk in read(malformed.name, problems)) in (1, 2)
            entry = json.loads(quarantine.read_bytes())
            assert f"ttr: {entry['where']}: {entry['reason']}\n" == complaint
        else:
            with pytest.raises(UserError):
                read(malformed.name, problems)


def test_there_are_many():
    assert len(EVENTS) + len(TEXTS) >= 60
    assert len({(m.name, m.content) for m in [*EVENTS, *TEXTS]}) == len(EVENTS) + len(TEXTS)


@pytest.mark.parametrize("name", ["none.csv", "none.json.gz", "none.jsonl", "none.parquet"])
def test_a_file_that_is_none(name):
    with pytest.raises(UserError, match=f"{name}: there is no such file, {FILES}"):
        events_of(name, Problems())
    Path(name).mkdir()
    with pytest.raises(UserError, match=f"{name}: this is a directory, {FILES}"):
        events_of(name, Problems())
