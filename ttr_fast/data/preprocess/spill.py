"""Records on disk between reading and writing: one file for each source, in which every block has rows of one partition of the entities.

A block is, as raw arrays: the hashes of entities' names that may not have come up before (u64), the lengths of the names (u32) and the names; the
hash of each row's entity (u64), the times (i64 or f64), and either the code of each row's token (u32), which counts what the file has, or the length
of each row's text (u32) and the texts.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ttr_fast.durable import told

from ..corpus import Counted
from ..sequences import Times
from .hashing import Hashes, Seen, name_hashes, partition_of

ROWS, TEXT_BYTES = 1 << 19, 16 << 20
"""Rows, or bytes of text, that are gathered before they are written."""
NAME_SLOTS = 1 << 22
"""For names that are remembered: 32 MB, in which few of a million names are written again."""
ROWS_FILE, PART_FILE = "rows.bin", "part.json"


class Block(msgspec.Struct, frozen=True, array_like=True):
    """Where a block lies."""

    partition: int
    at: int
    names: int
    name_bytes: int
    rows: int
    text_bytes: int
    float_times: bool


class Part(msgspec.Struct, frozen=True):
    """part.json: what a source held. tokens: those of events, by code, with counts. bad: records that were left out."""

    rows: int
    bytes: int
    bad: int
    with_texts: bool
    with_entities: bool
    tokens: list[Counted]
    blocks: list[Block]


class _Codes(dict[str, int]):
    """Numbers for texts, as they come up."""

    def __missing__(self, text: str) -> int:
        self[text] = code = len(self)
        return code

    def of(self, texts: Sequence[str]) -> NDArray[np.uint32]:
        """(n,) the number of each."""
        return np.fromiter(map(self.__getitem__, texts), np.uint32, len(texts))


class _Waiting(NamedTuple):
    """Rows that are yet to be written, and the names that are new with them."""

    hashes: Hashes
    times: Times
    payload: NDArray[np.uint32]
    texts: Sequence[bytes]
    new: Hashes
    new_names: list[bytes]


class Spill:
    """The writer of ROWS_FILE."""

    def __init__(self, file: IO[bytes], partitions: int) -> None:
        self.file, self.partitions = file, partitions
        self.seen, self.tokens = Seen(NAME_SLOTS), _Codes()
        self.counts = np.zeros(0, np.int64)
        self.waiting: list[_Waiting] = []
        self.waiting_rows = self.waiting_bytes = self.rows = 0
        self.blocks: list[Block] = []

    def add_events(self, entities: Sequence[str], times: Times, tokens: Sequence[str]) -> None:
        """Rows of events."""
        self._add(entities, times, self.tokens.of(tokens), [])

    def add_texts(self, entities: Sequence[str], times: Times, texts: Sequence[bytes]) -> None:
        """Rows of texts in UTF-8."""
        self._add(entities, times, np.fromiter(map(len, texts), np.uint32, len(texts)), texts)

    def flush(self) -> None:
        """Write what is waiting."""
        if not self.waiting:
            return
        columns = list(zip(*self.waiting, strict=True))
        # times have one dtype in a block: integers that stand beside fractions are to be float64 in any case
        hashes, times, payload, new = (np.concatenate(columns[n]) for n in (0, 1, 2, 4))
        texts, new_names = list(chain.from_iterable(columns[3])), list(chain.from_iterable(columns[5]))
        rows_of, new_of = (_by_partition(partition_of(some, self.partitions), self.partitions) for some in (hashes, new))
        for partition, (rows, fresh) in enumerate(zip(rows_of, new_of, strict=True)):
            if rows.size:
                names, these = [new_names[i] for i in fresh.tolist()], [texts[i] for i in rows.tolist()] if texts else []
                self._write(partition, _Waiting(hashes[rows], times[rows], payload[rows], these, new[fresh], names))
        if not texts:
            counts = np.bincount(payload, minlength=len(self.tokens))
            counts[: self.counts.size] += self.counts
            self.counts = counts
        self.rows += hashes.size
        self.waiting, self.waiting_rows, self.waiting_bytes = [], 0, 0

    def token_counts(self) -> list[Counted]:
        """The tokens of events, by code."""
        return [Counted(token, count) for token, count in zip(self.tokens, self.counts.tolist(), strict=True)]

    def _add(self, entities: Sequence[str], times: Times, payload: NDArray[np.uint32], texts: Sequence[bytes]) -> None:
        hashes = name_hashes(entities)
        new = self.seen.new(hashes)
        self.waiting.append(_Waiting(hashes, times, payload, texts, hashes[new], [entities[i].encode() for i in new.tolist()]))
        self.waiting_rows += hashes.size
        self.waiting_bytes += sum(map(len, texts))
        if self.waiting_rows >= ROWS or self.waiting_bytes >= TEXT_BYTES:
            self.flush()

    def _write(self, partition: int, rows: _Waiting) -> None:
        lengths = np.fromiter(map(len, rows.new_names), np.uint32, rows.new.size)
        sizes = (rows.new.size, int(lengths.sum()), rows.hashes.size, sum(map(len, rows.texts)))
        self.blocks.append(Block(partition, self.file.tell(), *sizes, rows.times.dtype == np.float64))
        columns = (rows.hashes.tobytes(), rows.times.tobytes(), rows.payload.tobytes())
        self.file.writelines((rows.new.tobytes(), lengths.tobytes(), *rows.new_names, *columns, *rows.texts))


class Rows(NamedTuple):
    """What is loaded of a block or of a partition.

    names     of the entities, in order
    entities  (n,) int64, index into names
    times     (n,) int64 or float64
    codes     (n,) uint32: of tokens for events, in the numbers of the whole corpus; empty for texts
    texts     n texts; none for events
    sources   (s,) int64, rows of each source
    """

    names: list[str]
    entities: NDArray[np.int64]
    times: Times
    codes: NDArray[np.uint32]
    texts: list[str]
    sources: NDArray[np.int64]


def load_partition(folders: Sequence[Path], parts: Sequence[Part], partition: int, tokens: Sequence[NDArray[np.uint32]]) -> Rows:
    """The rows of a partition in the order of the sources. tokens: for each source of events, the corpus's number of each of its codes."""
    name_of = dict[int, str]()
    hashes, times, codes, texts = [np.empty(0, np.uint64)], list[Times](), [np.empty(0, np.uint32)], list[str]()
    sources = np.zeros(len(parts), np.int64)
    for n, (folder, part) in enumerate(zip(folders, parts, strict=True)):
        with _opened(folder) as file:
            for block in (b for b in part.blocks if b.partition == partition):
                file.seek(block.at)
                new = _array(file, np.uint64, block.names).tolist()
                name_of.update(zip(new, _cut(file, _array(file, np.uint32, block.names)), strict=True))
                hashes.append(_array(file, np.uint64, block.rows))
                times.append(_array(file, np.float64 if block.float_times else np.int64, block.rows))
                payload = _array(file, np.uint32, block.rows)
                sources[n] += block.rows
                if part.with_texts:
                    texts += _cut(file, payload)
                else:
                    codes.append(tokens[n][payload])
    known = sorted(name_of.items(), key=lambda item: item[1])
    by_hash = np.array([number for number, _ in known], np.uint64)
    order = np.argsort(by_hash)
    entities = order[np.searchsorted(by_hash[order], np.concatenate(hashes))]
    joined: Times = np.concatenate(times) if times else np.empty(0, np.int64)  # type: ignore[assignment]  # of one of the two dtypes
    return Rows([name for _, name in known], entities, joined, np.concatenate(codes), texts, sources)


def each_time(folder: Path, part: Part) -> Iterator[Times]:
    """All times of a source, block by block."""
    with _opened(folder) as file:
        for block in part.blocks:
            file.seek(block.at + 12 * block.names + block.name_bytes + 8 * block.rows)
            yield _array(file, np.float64 if block.float_times else np.int64, block.rows)


def each_text(folder: Path, part: Part) -> Iterator[tuple[list[str], Times]]:
    """All texts of a source with their times, block by block."""
    with _opened(folder) as file:
        for block in part.blocks:
            file.seek(block.at + 12 * block.names + block.name_bytes + 8 * block.rows)
            times: Times = _array(file, np.float64 if block.float_times else np.int64, block.rows)
            yield _cut(file, _array(file, np.uint32, block.rows)), times


@contextmanager
def _opened(folder: Path) -> Iterator[IO[bytes]]:
    """The rows of a source, for the body of a with. Raises UserError if the disk refuses, in the body too."""
    path = folder / ROWS_FILE
    with told(path, "read"), path.open("rb") as file:
        yield file


def _by_partition(partition: NDArray[np.uint16], partitions: int) -> list[NDArray[np.int64]]:
    """For each partition the places where it stands, in order."""
    order = np.argsort(partition, kind="stable")
    return np.split(order, np.cumsum(np.bincount(partition, minlength=partitions))[:-1])


def _array(file: IO[bytes], dtype: Any, count: int) -> NDArray[Any]:
    return np.frombuffer(file.read(count * np.dtype(dtype).itemsize), dtype)


def _cut(file: IO[bytes], lengths: NDArray[np.uint32]) -> list[str]:
    """Texts of these lengths in bytes, which follow each other."""
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    content = file.read(ends[-1] if ends else 0)
    return [content[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]
