"""Valid files of every format, and what a seeded generator makes of them."""

import gzip
import io
import json
from collections.abc import Callable
from random import Random

import pyarrow
from pyarrow import parquet

TIMES = [1700000000, 1700000000.5, "1700000001", "1700000002.25"]
NAMES = ["a", "N14228", "é", "漢字", "line\nbreak", 'a "quote"', "comma, and\ttab", "😀", 7]
TOKENS = [
    b'"', b"\\", b"\\u0000", b"\\ud800", b"\\udc00", b"\\u00e9", b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\r", b"\r\n", b"\0", b"\t", b" ",
    b"\xef\xbb\xbf", b"\xff", b"\xed\xa0\x80", b"\xc3", b"\xe2\x80\xa8", b"NaN", b"Infinity", b"-", b"1e999", b"9" * 30, b"9" * 5000, b"1e-999",
    b"null", b"true", b"-1", b"0", b"1700000000000", b"2023-11-14T22:13:20Z", b'"time":1,', b'"entity":"a",', b'"ti\\u006de":1,', b"[" * 70,
    b'{"a":' * 70, b"</s>", b"|", b'""', b"{}", b"[]", b"\x1f\x8b\x08\x00", b"PAR1", b"\x00\x00\x00\x80", b"\xff\xff\xff\x7f",
]  # fmt: skip


def rows(random: Random, dates: bool) -> list[dict[str, object]]:
    """A few records in order of time."""
    entity = random.choice(NAMES)
    many = [random.choice(NAMES) if random.random() < 0.3 else entity for _ in range(random.randrange(1, 9))]
    times = [f"2023-11-14T22:13:{n:02}Z" if dates else 1700000000 + n if random.random() < 0.7 else TIMES[n % 4] for n in range(len(many))]
    return [
        {"entity": who, "time": when, "token": random.choice(NAMES), "text": f"User: {who} Assistant: {n}" + "</s>" * (n % 2), "more": {"of": [1]}}
        for n, (who, when) in enumerate(zip(many, times, strict=True))
    ]


def jsonl(random: Random) -> bytes:
    """Objects, now and then strings or blank lines."""
    records: list[object] = [*rows(random, random.random() < 0.2)]
    if random.random() < 0.2:
        records = [str(row) for row in records]
    end = random.choice(["\n", "\r\n", "\n\n"])
    return (end.join(json.dumps(row, ensure_ascii=random.random() < 0.5) for row in records) + random.choice(["", end])).encode()


def array(random: Random) -> bytes:
    """Objects or strings, with or without indentation."""
    records: list[object] = [*rows(random, random.random() < 0.2)]
    if random.random() < 0.3:
        records = [str(row) for row in records]
    return json.dumps(records, ensure_ascii=random.random() < 0.5, indent=random.choice([None, 0, 2])).encode()


def csv(random: Random) -> bytes:
    """Quoted where it has to be, or everywhere."""
    always, end = random.random() < 0.3, random.choice(["\n", "\r\n", "\r"])
    quoted = '"{}"'.format
    table = [["entity", "time", "token", "text"]] + [[str(row[k]) for k in ("entity", "time", "token", "text")] for row in rows(random, False)]
    lines = [",".join(quoted(f.replace('"', '""')) if always or set(f) & set('",\n\r') else f for f in fields) for fields in table]
    return (end.join(lines) + end).encode()


def table(random: Random) -> bytes:
    """Parquet with numbers, strings, dictionaries or timestamps."""
    records = [{**row, "entity": str(row["entity"]), "token": str(row["token"])} for row in rows(random, False)]
    times: object = [1700000000 + n for n in range(len(records))]
    match random.randrange(4):
        case 0:
            times = pyarrow.array(times, pyarrow.timestamp("s", "UTC"))
        case 1:
            times = [str(n) for n in range(len(records))]
        case 2:
            times = pyarrow.array(times, pyarrow.float64())
    columns = {name: pyarrow.array([row[name] for row in records]) for name in ("entity", "token", "text")}
    file = io.BytesIO()
    parquet.write_table(
        pyarrow.table({**columns, "time": times}), file, compression=random.choice(["none", "snappy", "zstd"]),
        use_dictionary=random.random() < 0.5, write_page_checksum=random.random() < 0.5,
    )  # fmt: skip
    return file.getvalue()


def packed(plain: Callable[[Random], bytes]) -> Callable[[Random], bytes]:
    """The same in gzip, mostly damaged before it is packed."""

    def made(random: Random) -> bytes:
        content = plain(random)
        return gzip.compress(damaged(content, random, plain) if random.random() < 0.9 else content, mtime=0)

    return made


def damaged(content: bytes, random: Random, make: Callable[[Random], bytes]) -> bytes:
    """One to four changes, often one: bits, bytes, cuts, repetitions, pieces of another file, tokens that have a meaning somewhere."""
    data = bytearray(content)
    for _ in range(random.choice([1, 1, 1, 2, 3, 4])):
        at = random.randrange(len(data) + 1)
        end = min(len(data), at + random.randrange(1, 20))
        match random.randrange(7):
            case 0 if at < len(data):
                data[at] ^= 1 << random.randrange(8)
            case 1 if at < len(data):
                data[at] = random.randrange(256)
            case 2:
                del data[at : len(data) if random.random() < 0.3 else end]
            case 3:
                data[at:at] = data[at:end] * random.randrange(1, 4)
            case 4:
                other = make(random)
                start = random.randrange(len(other) + 1)
                data[at:end] = other[start : start + random.randrange(1, 60)]
            case _:
                data[at:at] = random.choice(TOKENS)
    return bytes(data)


READERS: dict[str, Callable[[Random], bytes]] = {
    "jsonl": jsonl,
    "json": array,
    "csv": csv,
    "parquet": table,
    "jsonl.gz": packed(jsonl),
    "json.gz": packed(array),
    "csv.gz": packed(csv),
}
