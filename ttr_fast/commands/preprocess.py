"""`ttr preprocess`: files of events or texts in, a corpus of shards out."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
import tyro

from ttr_fast.commands.options import check_unused
from ttr_fast.commands.shards import corpus_text
from ttr_fast.data.corpus import read_file
from ttr_fast.data.preprocess.make import Summary, make_corpus, sweep_work_of
from ttr_fast.data.preprocess.plan import Kind, Plan, Reading, Segments, Splitting, Tokenizing, partitions_for
from ttr_fast.data.preprocess.reading import kind_of, with_unit
from ttr_fast.data.sources.records import EventFields, OnError, TextFields
from ttr_fast.data.sources.times import TimeUnit
from ttr_fast.errors import UserError


@dataclass(frozen=True)
class CorpusColumns:
    """Which columns of a CSV or fields of JSON are read. Naming a token says that the files hold events, naming a text that they hold texts."""

    entity: str = "entity"
    """Whose event or text it is; texts may have none."""
    time: str = "time"
    """When it was; texts may have none."""
    token: tuple[str, ...] = ("token",)
    """What happened; several columns are joined to one token with a |."""
    text: str = "text"
    """The text."""
    header: bool = True
    """Without a header, the rows of a CSV are texts, their fields joined."""


@dataclass(frozen=True)
class Command:
    """Make a corpus of events or texts: a folder of shards with an index, for ttr train.

    Files are JSON (an array), JSONL, CSV, each also .gz, or Parquet. Each is read once, memory does not grow with them, only with the
    longest entity, and a run that was killed goes on from the files it had finished.
    The corpus appears whole or not at all, with the same bytes whatever the number of workers.

    Events become a sequence for each entity, in order of time. Texts become one for each document or entity, each starting with its date.

    Examples:

        ttr preprocess flights.csv.gz --columns.entity tail --columns.token destination --out flights

        ttr preprocess visits-*.jsonl --length 512 --overlap 64 --gap 86400 --min-count 5 --on-error quarantine --out visits

        ttr preprocess commits.jsonl --vocab-size 2000 --split-by time --out commits

        ttr preprocess chats.json --markers User: Assistant: --out chats
    """

    files: tyro.conf.Positional[tuple[Path, ...]]
    """What to read, in any order."""
    out: Path
    """Folder for the corpus, new or empty."""
    kind: Kind | None = None
    """What the files hold; if not given, the columns that are named or there say it."""
    columns: CorpusColumns = field(default_factory=CorpusColumns)
    time_unit: TimeUnit | None = None
    """Of the times; inferred from the first if not given."""
    sort: bool = False
    """Sort the records of each entity by time; without it, times that go backwards in a file are an error."""
    on_error: OnError = "fail"
    """What to do with a bad record: stop, leave it out, or leave it out and keep it with the reason in OUT.quarantine.jsonl."""
    max_bad: int = 1000
    """With more bad records than this, stop in any case."""
    segment: Literal["entity", "document"] | None = None
    """What becomes a sequence: all of an entity (as events do), or each text by itself (as texts do)."""
    gap: float | None = None
    """Cut where nothing happened for more than so many seconds."""
    length: int | None = None
    """Cut what has more tokens."""
    overlap: int = 0
    """Tokens that the piece after such a cut repeats."""
    prefix: bool = True
    """Start each sequence of texts with its date, as in <2023-11-14T22:13:20Z>; --length does not count it."""
    min_count: int = 1
    """Tokens of events that are rarer become <unk>."""
    vocabulary: Path | None = None
    """Of events: the vocabulary.json of another corpus, to have its tokens; others become <unk>."""
    vocab_size: int = 4096
    """Of texts: how many tokens are made."""
    markers: tuple[str, ...] = ()
    """Of texts: strings such as User: that are to be one token each."""
    tokenizer: Path | None = None
    """Of texts: the tokenizer.json of another corpus."""
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares for training, validation and test."""
    split_by: Literal["entity", "time"] = "entity"
    """Whole entities by a hash of the name (texts without one by a hash of the text), or the earliest for training and the latest for testing."""
    shard_tokens: int = 1 << 23
    """Tokens in a shard at most, if no sequence is longer."""
    workers: int = field(default_factory=lambda: min(os.cpu_count() or 1, 4))
    """Processes that read and write; each takes 100 to 200 MB."""
    json: bool = False
    """Print what came of it as JSON."""

    def run(self) -> None:
        """Plan, read, write."""
        sweep_work_of(self.out)
        check_unused(self.out)
        for name, least in (("workers", 1), ("shard_tokens", 1), ("min_count", 1), ("vocab_size", 1), ("max_bad", 0)):
            if (value := getattr(self, name)) < least:
                raise UserError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
        if not self.files:
            raise UserError("nothing to read: name one file or more, as in  ttr preprocess events.csv --out corpus")
        paths = tuple(sorted(str(path) for path in self.files))
        for path in paths:
            if not Path(path).is_file():
                raise UserError(f"{path}: {'this is a folder' if Path(path).is_dir() else 'there is no such file'}, expected a file to read")
        if len({Path(path).resolve() for path in paths}) < len(paths):
            raise UserError("a file is named twice, expected each once")
        kind = self._kind(paths[0])
        loaded = self.vocabulary if kind == "events" else self.tokenizer
        digest = None if loaded is None else hashlib.sha256(read_file(loaded)).hexdigest()
        splitting = Splitting(self.split, self.split_by)
        splitting.check()
        self._segments(kind, self.time_unit)  # what does not fit together is told before anything is read
        reading = self._reading(kind, paths)
        plan = Plan(paths, reading, self._segments(kind, reading.time_unit), splitting,
                    Tokenizing(self.min_count, self.vocab_size, self.markers, digest), self.shard_tokens, partitions_for(paths, kind))  # fmt: skip
        print(self._told(make_corpus(plan, self.out, loaded, self.workers)))

    def _kind(self, path: str) -> Kind:
        """As given, as the columns say, or as the first file looks."""
        usual = CorpusColumns()
        says_events, says_texts = self.columns.token != usual.token, self.columns.text != usual.text or not self.columns.header
        if says_events and says_texts:
            raise UserError("--columns.token is for events and --columns.text or --columns.no-header for texts, expected one kind")
        kind = self.kind or ("events" if says_events else "texts" if says_texts else kind_of(path))
        if (kind == "texts" and says_events) or (kind == "events" and says_texts):
            raise UserError(f"--kind is {kind}, but the columns that are named are of {'events' if says_events else 'texts'}")
        if kind == "events" and (self.tokenizer or self.markers or self.segment == "document"):
            raise UserError("--tokenizer, --markers and --segment document are for texts, but these are events")
        if kind == "texts" and (self.vocabulary or self.min_count != 1):
            raise UserError("--vocabulary and --min-count are for events, but these are texts")
        return kind

    def _reading(self, kind: Kind, paths: tuple[str, ...]) -> Reading:
        c = self.columns
        fields = EventFields(c.entity, c.time, c.token) if kind == "events" else TextFields(c.text if c.header else None, c.time, c.entity)
        return with_unit(paths, Reading(kind, fields, self.time_unit, self.sort, self.on_error, self.max_bad))

    def _segments(self, kind: Kind, time_unit: TimeUnit | None) -> Segments:
        by = self.segment or ("entity" if kind == "events" else "document")
        segments = Segments(by, self.gap, self.length, self.overlap, self.prefix and kind == "texts" and time_unit is not None)
        segments.check()
        return segments

    def _told(self, summary: Summary) -> str:
        if self.json:
            return msgspec.json.encode(summary, enc_hook=str).decode()
        speed = f"{summary.bytes / 1e6 / summary.seconds:,.0f} MB/s, {summary.records / summary.seconds:,.0f} records/s"
        lines = [f"{summary.records:,} records of {summary.bytes / 1e6:,.2f} MB in {summary.seconds:.1f} s ({speed})"]
        if summary.bad:
            lines.append(f"{summary.bad:,} bad records left out" + (f", they are in {summary.quarantine}" if summary.quarantine else ""))
        if summary.unknown:
            lines.append(f"{summary.unknown:,} events have the token <unk>")
        return "\n".join([*lines, corpus_text(summary.index), f"the corpus is {self.out}"])
