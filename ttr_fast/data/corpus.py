"""A corpus on disk, made by `ttr preprocess`: shards of sequences, split for training, validation and test, and an index that tells all about them.

    index.json                          what it is, and each shard's counts, times, size and SHA-256
    index.sha256                        the SHA-256 of index.json, as `sha256sum -c` reads it
    vocabulary.json or tokenizer.json   the tokens of events, with counts; or what splits texts into tokens
    train-00000.safetensors …           see shards.py; valid-… and test-… likewise
"""

import hashlib
import resource
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..durable import write_durably
from ..errors import UserError
from .event_files import UNKNOWN
from .sequences import Times
from .shards import Shard, ShardEntry, TimeDType, Tokens, open_shard, verify_shard
from .sources.times import TimeUnit
from .text_tokenizer import TextTokenizer

INDEX, INDEX_SHA, VOCABULARY, TOKENIZER = "index.json", "index.sha256", "vocabulary.json", "tokenizer.json"
SplitName = Literal["train", "valid", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "valid", "test")


class Counted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A token of events, and how often it is there."""

    token: str
    count: int


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The vocabulary's or tokenizer's file; size: how many tokens there are."""

    file: str
    size: int
    bytes: int
    sha256: str


class Fields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the source had what: columns of a CSV, fields of JSON."""

    entity: str | None
    time: str | None
    tokens: tuple[str, ...] = ()
    text: str | None = None


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is true of all shards. tick_seconds: how long one unit of the times is; null, like time_unit, for texts without times."""

    format_version: Literal[1]
    kind: Literal["events", "texts"]
    time_unit: TimeUnit | None
    tick_seconds: float | None
    time_dtype: TimeDType
    vocabulary: FileEntry
    source: Fields


class SplitEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of train, valid, test."""

    sequences: int
    tokens: int
    shards: tuple[ShardEntry, ...]


class Index(Description, frozen=True, forbid_unknown_fields=True):
    """index.json."""

    splits: dict[SplitName, SplitEntry]


class CorpusSplit:
    """The sequences of a split, memory-mapped; satisfies Sequences."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = shards
        counts = [shard.offsets.size - 1 for shard in shards]
        self.starts = [0, *np.cumsum(counts, dtype=np.int64).tolist()]
        """Number of the first sequence of each shard, and the number of all."""

    @property
    def n_sequences(self) -> int:
        """Number of sequences."""
        return self.starts[-1]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) int64, tokens in each sequence."""
        return np.concatenate([np.empty(0, np.int64), *(np.diff(shard.offsets) for shard in self.shards)])

    @property
    def n_tokens(self) -> int:
        """Tokens in all."""
        return sum(shard.tokens.size for shard in self.shards)

    def sequence(self, i: int) -> tuple[Tokens, Times]:
        """Views of the tokens (uint32) and times of sequence i, 0 <= i < n_sequences."""
        n = bisect_right(self.starts, i) - 1
        tokens, times, offsets = self.shards[n]
        k = i - self.starts[n]
        part = slice(offsets[k], offsets[k + 1])
        return tokens[part], times[part]


class Corpus(msgspec.Struct, frozen=True):
    """An open corpus. vocabulary: the tokens of events, by number; empty for texts."""

    folder: Path
    index: Index
    vocabulary: tuple[str, ...]

    def split(self, name: SplitName, verify: bool = False) -> CorpusSplit:
        """One of the three; it may be empty. verify: read every byte first, as whoever gives them to a model should.

        Raises UserError if a shard of it is missing or damaged as far as opening, or reading, shows it.
        """
        entries = self.index.splits[name].shards
        if verify:
            for entry in entries:
                verify_shard(self.folder / entry.file, entry, self.index.time_dtype)
        _allow_more_files(len(entries))
        return CorpusSplit([open_shard(self.folder / entry.file, entry, self.index.time_dtype) for entry in entries])

    def tokenizer(self) -> TextTokenizer | None:
        """That of texts; None for events. Raises UserError if its library is not installed, or it has not the size that the index says."""
        if self.index.kind == "events":
            return None
        tokenizer = read_tokenizer(self.folder / TOKENIZER, _checked(self.folder, self.index.vocabulary))
        check_size(self.folder / TOKENIZER, tokenizer.size, self.index.vocabulary.size, INDEX)
        return tokenizer

    @property
    def vocabulary_size(self) -> int:
        """How many different tokens there can be."""
        return self.index.vocabulary.size

    @property
    def time_unit(self) -> TimeUnit | None:
        """Unit of the times; None for texts without."""
        return self.index.time_unit


def open_corpus(folder: Path) -> Corpus:
    """The corpus in a folder; its shards are opened by split().

    Raises UserError if it is none, or if its index or vocabulary is damaged.
    """
    index = _read_index(folder)
    content = _checked(folder, index.vocabulary)
    vocabulary = tuple(entry.token for entry in read_vocabulary(folder / VOCABULARY, content)) if index.kind == "events" else ()
    if index.kind == "events":
        check_size(folder / VOCABULARY, len(vocabulary), index.vocabulary.size, INDEX)
    return Corpus(folder, index, vocabulary)


def verify_corpus(folder: Path) -> Iterator[ShardEntry]:
    """Read every byte of a corpus; each shard is yielded when it has been found whole. Raises UserError at the first fault."""
    corpus = open_corpus(folder)
    corpus.tokenizer()
    for split in corpus.index.splits.values():
        for entry in split.shards:
            verify_shard(folder / entry.file, entry, corpus.index.time_dtype)
            yield entry


def write_index(folder: Path, index: Index) -> None:
    """index.json and its checksum; the last to be written."""
    content = msgspec.json.format(msgspec.json.encode(index), indent=2) + b"\n"
    write_durably(folder / INDEX, content)
    write_durably(folder / INDEX_SHA, _checksum_line(content))


def split_entry(shards: Sequence[ShardEntry]) -> SplitEntry:
    """The entry of a split with these shards."""
    return SplitEntry(sum(shard.sequences for shard in shards), sum(shard.tokens for shard in shards), tuple(shards))


def shard_name(split: SplitName, number: int) -> str:
    """Its file."""
    return f"{split}-{number:05d}.safetensors"


def read_vocabulary(path: Path, content: bytes) -> list[Counted]:
    """The contents of a vocabulary.json. Raises UserError if it is something else."""
    try:
        entries = msgspec.json.decode(content, type=list[Counted])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a vocabulary, expected a JSON list of tokens with counts: {error}") from error
    if not entries or entries[0].token != UNKNOWN:
        raise UserError(f"{path}: not a vocabulary, expected {UNKNOWN} as its first token")
    if len({entry.token for entry in entries}) < len(entries):
        raise UserError(f"{path}: not a vocabulary, a token is there twice")
    return entries


def read_tokenizer(path: Path, content: bytes) -> TextTokenizer:
    """The contents of a tokenizer.json. Raises UserError if it is something else, or its library is not installed."""
    try:
        return TextTokenizer.from_json(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def check_size(path: Path, found: int, expected: int, said_by: str) -> None:
    """Raises UserError if a vocabulary or tokenizer has not as many tokens as another file says: a model is made for so many."""
    if found != expected:
        raise UserError(f"{path}: {found} tokens, expected {expected} as {said_by} says")


def read_description(path: Path) -> Description:
    """What export wrote about a corpus. Raises UserError if it is something else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Description)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not the description of a corpus: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def read_file(path: Path) -> bytes:
    """All of it. Raises UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def _allow_more_files(count: int) -> None:
    """So many more may be open: a map keeps its file open, a large corpus has thousands, and a process may usually open 1024 unless it asks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        wanted = soft + count if hard == resource.RLIM_INFINITY else min(soft + count, hard)
        with suppress(ValueError, OSError):  # a system may have another limit still; what cannot be opened then is told
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _read_index(folder: Path) -> Index:
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder}: not a corpus, expected a folder with {INDEX} as ttr preprocess makes it")
    content = read_file(folder / INDEX)
    if read_file(folder / INDEX_SHA) != _checksum_line(content):
        raise UserError(f"{folder / INDEX}: damaged: its SHA-256 is not the one in {INDEX_SHA}")
    try:
        index = msgspec.json.decode(content, type=Index)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / INDEX}: not the index of a corpus that this version reads: {error}") from error
    for name in SPLITS:
        if name not in index.splits:
            raise UserError(f"{folder / INDEX}: split {name} is missing")
        split = index.splits[name]
        if split != split_entry(split.shards):
            raise UserError(f"{folder / INDEX}: the counts of split {name} are not the sums of its shards'")
        for entry in split.shards:
            if entry.largest_token >= index.vocabulary.size:
                raise UserError(f"{folder / entry.file}: token {entry.largest_token} is beyond the vocabulary of {index.vocabulary.size}")
    return index


def _checked(folder: Path, entry: FileEntry) -> bytes:
    """The contents of the vocabulary's or tokenizer's file."""
    content = read_file(folder / entry.file)
    if len(content) != entry.bytes:
        raise UserError(f"{folder / entry.file}: damaged: {len(content)} bytes, expected {entry.bytes}")
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise UserError(f"{folder / entry.file}: damaged: its SHA-256 is not the one in {INDEX}")
    return content


def _checksum_line(content: bytes) -> bytes:
    return f"{hashlib.sha256(content).hexdigest()}  {INDEX}\n".encode()
