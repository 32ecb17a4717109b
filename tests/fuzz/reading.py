"""One fuzzed file, read twice: nothing but UserError may come of it, in one line, and where its blocks end must not matter."""

import re
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np

from ttr_fast.data.sources import files
from ttr_fast.data.sources.opening import open_events, open_texts
from ttr_fast.data.sources.records import EventFields, Problems, TextFields
from ttr_fast.errors import UserError

from .inputs import READERS, damaged

UNITS = [*[None] * 6, *["s"] * 6, "ms", "us", "ns", "iso8601"]
EVENT_FIELDS = [*[EventFields()] * 3, EventFields(tokens=("token", "text")), EventFields(entity="token", tokens=("entity",))]
TEXT_FIELDS = [*[TextFields()] * 3, TextFields(text=None), TextFields(time=None), TextFields(entity="token"), TextFields(text="token", entity=None)]


class Way(NamedTuple):
    """How a file is read."""

    open: Any
    fields: EventFields | TextFields
    time_unit: Any
    sort: bool
    policy: Any

    def read(self, path: Path, block: int) -> tuple[list[Any], int]:
        """All that is in it, and how many records were left out. Raises UserError."""
        usual, files.BLOCK = files.BLOCK, block
        try:
            problems = Problems(self.policy, max_bad=3)
            source = self.open(path, self.fields, time_unit=self.time_unit, sort=self.sort, problems=problems)
            columns: list[list[Any]] = [[], [], [], []]
            size = 0
            for chunk in source.chunks():
                size += chunk.bytes_read
                for column, part in zip(columns, chunk, strict=False):
                    column.extend(part if isinstance(part, list) else [] if part is None else part.tolist())
                check(chunk)
            assert size == source.size == path.stat().st_size
            return [*columns, source.time_unit], problems.count
        finally:
            files.BLOCK = usual


def check(chunk: Any) -> None:
    """What a chunk promises."""
    lengths = {len(part) for part in chunk[:4] if part is not None}
    assert len(lengths) == 1
    for part in chunk[:4]:
        if isinstance(part, list):
            assert all(type(text) is str and text and "\0" not in text for text in part)
        elif part is not None:
            assert part.dtype in (np.int64, np.float64)
            assert np.isfinite(part).all()


def outcome(way: Way, path: Path, block: int) -> tuple[Any, str]:
    """What was read, or the sentence."""
    try:
        return way.read(path, block), ""
    except UserError as error:
        sentence = str(error)
        assert sentence.startswith(str(path))
        assert len(sentence.splitlines()) == 1
        return None, sentence.removeprefix(str(path))


def fuzz(reader: str, number: int, seed: int, path: Path, counts: Counter[str]) -> None:
    """File `number` of this seed, written to the path and read. Raises whatever should not have happened."""
    random = Random(f"{seed} {reader} {number}")
    make = READERS[reader]
    content = make(random)
    if random.random() < (0.2 if reader.endswith(".gz") else 0.95):  # a checksum finds nearly all
        content = damaged(content, random, make)
    path.write_bytes(content)
    events = random.random() < 0.6
    way = Way(
        open_events if events else open_texts,
        random.choice(EVENT_FIELDS if events else TEXT_FIELDS),
        random.choice(UNITS),
        random.random() < 0.5,
        random.choice(["fail", "skip"]),
    )
    found, sentence = outcome(way, path, 1 << 17)
    again, _ = outcome(way, path, 1 + len(content) // random.randrange(1, 20))
    assert found == again, f"{way}: in one block {found}, in smaller ones {again}"
    counts["accepted" if not sentence and found[1] == 0 else "skipped some" if not sentence else "refused"] += 1
    if sentence:
        counts["sentence: " + re.sub(r"'.*'…?|\".*\"|[0-9]+|\(.*\)", "*", sentence)] += 1
