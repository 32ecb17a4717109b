"""What is to be made, in a form that can be hashed: a finished part of the work is used again if nothing that it depends on has changed."""

import hashlib
import math
import os
from pathlib import Path
from typing import Any, Literal

import msgspec

from ttr_fast.durable import told

from ...errors import UserError
from ..sources.records import EventFields, OnError, TextFields
from ..sources.times import TimeUnit

Kind = Literal["events", "texts"]

FORMAT = 1
"""Of what lies in the work folder."""
BYTES_PER_PARTITION: dict[Kind, int] = {"events": 32 << 20, "texts": 8 << 20}
"""Of the sources: about half a million events, which take 50 MB while they are sorted; or three million tokens of texts, which take 150 MB."""
UNPACKED = {".gz": 8, ".parquet": 4}
"""How much larger the data of such a file usually are."""


class Reading(msgspec.Struct, frozen=True):
    """How files are read. time_unit is resolved: None for texts without times."""

    kind: Kind
    fields: EventFields | TextFields
    time_unit: TimeUnit | None
    sort: bool
    on_error: OnError
    max_bad: int

    @property
    def by_reader(self) -> "Reading":
        """As the reader is to do it. Whether the events of an entity are in order is seen for nothing when they are sorted; only then, to tell where
        they are not, and where records out of order are to be left out, does the reader look, which more than doubles its time.
        """
        looks_later = self.kind == "events" and self.on_error == "fail"
        return msgspec.structs.replace(self, sort=self.sort or looks_later)


class Segments(msgspec.Struct, frozen=True):
    """Where sequences end: with each entity or each document, where a gap is longer than so many seconds, after `length` tokens.

    A piece begins `overlap` tokens before the end of the one before it. prefix: whether each piece of texts starts with its date.
    """

    by: Literal["entity", "document"]
    gap: float | None = None
    length: int | None = None
    overlap: int = 0
    prefix: bool = False

    def check(self) -> None:
        """Raises UserError for bounds that do not fit together."""
        if self.length is not None and self.length < 1:
            raise UserError(f"--length must be at least 1, got {self.length}")
        if not 0 <= self.overlap < (self.length or 1):
            raise UserError(f"--overlap must be at least 0 and below --length, got {self.overlap}")
        if self.gap is not None and not 0 <= self.gap < math.inf:
            raise UserError(f"--gap must be a number of seconds, got {self.gap}")
        if self.gap is not None and self.by == "document":
            raise UserError("--gap cuts between the texts of an entity, so it wants --segment entity")


class Splitting(msgspec.Struct, frozen=True):
    """Shares of train, valid and test; whole entities by a hash of their names, or by time: the earliest events for training."""

    shares: tuple[float, float, float]
    by: Literal["entity", "time"]

    def check(self) -> None:
        """Raises UserError for shares that are none."""
        if not all(0 <= share <= 1 for share in self.shares) or abs(sum(self.shares) - 1) > 1e-9 or not self.shares[0]:
            told = " ".join(map(str, self.shares))
            raise UserError(f"--split is {told}, expected three shares for train, valid and test that add up to 1, the first above 0")


class Tokenizing(msgspec.Struct, frozen=True):
    """Of events: min_count, below which a token is <unk>. Of texts: size of the vocabulary, markers. loaded: the file of either, if it is given."""

    min_count: int
    vocabulary_size: int
    markers: tuple[str, ...]
    loaded_sha256: str | None


class Plan(msgspec.Struct, frozen=True):
    """All of it. paths are sorted, so their order does not matter."""

    paths: tuple[str, ...]
    reading: Reading
    segments: Segments
    splitting: Splitting
    tokenizing: Tokenizing
    shard_tokens: int
    partitions: int

    def part_key(self, path: str) -> str:
        """Name of what is made of one file."""
        state = state_of(path)
        return key(FORMAT, str(Path(path).resolve()), state.st_size, state.st_mtime_ns, self.reading.by_reader, self.partitions)


def state_of(path: str) -> os.stat_result:
    """Size and time of a file. Raises UserError if the disk refuses."""
    with told(Path(path), "read"):
        return os.stat(path)


def key(*parts: Any) -> str:
    """A short name of everything in it."""
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:20]


def partitions_for(paths: tuple[str, ...], kind: Kind) -> int:
    """How many partitions keep each at about BYTES_PER_PARTITION: a power of two, which seldom changes when a file grows."""
    size = sum(state_of(path).st_size * UNPACKED.get(Path(path).suffix.lower(), 1) for path in paths)
    return min(1 << max(0, math.ceil(math.log2(max(1.0, size / BYTES_PER_PARTITION[kind])))), 1 << 14)
