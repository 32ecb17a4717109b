"""Records on disk between reading and writing: one file for each source, in which every block has rows of one partition of the entities.

A block is, as raw little-endian arrays: the codes of entities that come up for the first time (u32), the lengths of their names (u32) and the
names; the code of each row's entity (u32), the times (i64 or f64), and either the code of each row's token (u32), or the length of each row's text
(u32) and the texts. Codes count what the file has; the same name may come up again under a second code.
"""

from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..corpus import Counted
from ..sequences import Times
from ..split import uniform

ROWS, TEXT_BYTES = 1 << 19, 16 << 20
"""Rows, or bytes of text, that are gathered before they are written."""
MOST_NAMES = 1 << 19
"""Names that are remembered; with more, they are forgotten and get new codes."""
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
    tokens: list[Counted]
    blocks: list[Block]


class Codes(dict[str, int]):
    """Numbers for texts, as they come up."""

    def __init__(self, first: int = 0) -> None:
        super().__init__()
        self.first = first

    def __missing__(self, text: str) -> int:
        self[text] = code = self.first + len(self)
        return code

    def of(self, texts: Sequence[str]) -> NDArray[np.uint32]:
        """(n,) the number of each."""
        return np.fromiter(map(self.__getitem__, texts), np.uint32, len(texts))


class Spill:
    """The writer of ROWS_FILE."""

    def __init__(self, file: IO[bytes], partitions: int) -> None:
        self.file, self.partitions = file, partitions
        self.names, self.tokens = Codes(), Codes()
        self.counts = np.zeros(0, np.int64)
        self.partition_of = array("H")  # of the names
        self.waiting: list[tuple[NDArray[np.uint32], Times, NDArray[np.uint32], list[bytes]]] = []
        self.waiting_rows = self.waiting_bytes = self.rows = 0
        self.blocks: list[Block] = []

    def add_events(self, entities: Sequence[str], times: Times, tokens: Sequence[str]) -> None:
        """Rows of events."""
        self._add(self.names.of(entities), times, self.tokens.of(tokens), [])

    def add_texts(self, entities: Sequence[str], times: Times, texts: Sequence[bytes]) -> None:
        """Rows of texts in UTF-8."""
        lengths = np.fromiter(map(len, texts), np.uint32, len(texts))
        self._add(self.names.of(entities), times, lengths, list(texts))

    def flush(self) -> None:
        """Write what is waiting."""
        if not self.waiting:
            return
        written, first = len(self.partition_of), self.names.first
        new = list(islice(self.names, written, None))
        self.partition_of.extend(int(uniform(name, 0) * self.partitions) for name in new)
        partition_of = np.frombuffer(self.partition_of, np.uint16)
        codes = np.concatenate([w[0] for w in self.waiting])
        # one dtype for all of them: integers that stand beside fractions are to be float64 in any case
        times = np.concatenate([w[1] for w in self.waiting])
        payload = np.concatenate([w[2] for w in self.waiting])
        texts = [text for w in self.waiting for text in w[3]]
        rows_of = _by_partition(partition_of[codes - first], self.partitions)
        names_of = _by_partition(partition_of[written:], self.partitions)
        for partition, (rows, fresh) in enumerate(zip(rows_of, names_of, strict=True)):
            if rows.size:
                self._write(partition, [new[i].encode() for i in fresh.tolist()], fresh + (first + written), codes[rows], times[rows], payload[rows],
                            [texts[i] for i in rows.tolist()] if texts else [])  # fmt: skip
        self._count(payload, bool(texts))
        self.rows += codes.size
        self.waiting, self.waiting_rows, self.waiting_bytes = [], 0, 0
        if len(self.names) > MOST_NAMES:
            self.names, self.partition_of = Codes(first + len(self.names)), array("H")

    def token_counts(self) -> list[Counted]:
        """The tokens of events, by code."""
        return [Counted(token, count) for token, count in zip(self.tokens, self.counts.tolist(), strict=True)]

    def _add(self, codes: NDArray[np.uint32], times: Times, payload: NDArray[np.uint32], texts: list[bytes]) -> None:
        self.waiting.append((codes, times, payload, texts))
        self.waiting_rows += codes.size
        self.waiting_bytes += int(payload.sum(dtype=np.int64)) if texts else 0
        if self.waiting_rows >= ROWS or self.waiting_bytes >= TEXT_BYTES:
            self.flush()

    def _count(self, payload: NDArray[np.uint32], with_texts: bool) -> None:
        if not with_texts:
            counts = np.bincount(payload, minlength=len(self.tokens))
            counts[: self.counts.size] += self.counts
            self.counts = counts

    def _write(self, partition: int, names: list[bytes], fresh: NDArray[np.int64], codes: NDArray[np.uint32], times: Times,
               payload: NDArray[np.uint32], texts: list[bytes]) -> None:  # fmt: skip
        lengths = np.fromiter(map(len, names), np.uint32, len(names))
        block = Block(partition, self.file.tell(), len(names), int(lengths.sum()), codes.size, sum(map(len, texts)), times.dtype == np.float64)
        self.blocks.append(block)
        columns = [codes.tobytes(), times.tobytes(), payload.tobytes()]
        for content in (fresh.astype(np.uint32).tobytes(), lengths.tobytes(), *names, *columns, *texts):
            self.file.write(content)


class Rows(NamedTuple):
    """What is loaded of a block or of a partition.

    names     of the entities, distinct
    entities  (n,) int64, index into names
    times     (n,) int64 or float64
    codes     (n,) uint32: of tokens for events, in the numbers of the whole corpus; empty for texts
    texts     n texts; none for events
    """

    names: list[str]
    entities: NDArray[np.int64]
    times: Times
    codes: NDArray[np.uint32]
    texts: list[str]


def load_partition(folders: Sequence[Path], parts: Sequence[Part], partition: int, tokens: Sequence[NDArray[np.uint32]]) -> Rows:
    """The rows of a partition in the order of the sources. tokens: for each source of events, the corpus's number of each of its codes."""
    ids = dict[str, int]()
    entities, times, codes, texts = [np.empty(0, np.int64)], list[Times](), [np.empty(0, np.uint32)], list[str]()
    for n, (folder, part) in enumerate(zip(folders, parts, strict=True)):
        fresh, numbers = [np.empty(0, np.uint32)], list[int]()
        with (folder / ROWS_FILE).open("rb") as file:
            for block in (b for b in part.blocks if b.partition == partition):
                file.seek(block.at)
                fresh.append(_array(file, np.uint32, block.names))
                numbers += [ids.setdefault(name, len(ids)) for name in _cut(file, _array(file, np.uint32, block.names))]
                known = np.concatenate(fresh)
                rows = _array(file, np.uint32, block.rows)
                entities.append(np.array(numbers, np.int64)[np.searchsorted(known, rows)])
                times.append(_array(file, np.float64 if block.float_times else np.int64, block.rows))
                payload = _array(file, np.uint32, block.rows)
                if part.with_texts:
                    texts += _cut(file, payload)
                else:
                    codes.append(tokens[n][payload])
                fresh = [known]
    return Rows(list(ids), np.concatenate(entities), np.concatenate([np.empty(0, np.int64), *times]), np.concatenate(codes), texts)


def each_time(folder: Path, part: Part) -> Iterator[Times]:
    """All times of a source, block by block."""
    with (folder / ROWS_FILE).open("rb") as file:
        for block in part.blocks:
            file.seek(block.at + 8 * block.names + block.name_bytes + 4 * block.rows)
            yield _array(file, np.float64 if block.float_times else np.int64, block.rows)


def each_text(folder: Path, part: Part) -> Iterator[tuple[list[str], Times]]:
    """All texts of a source with their times, block by block."""
    with (folder / ROWS_FILE).open("rb") as file:
        for block in part.blocks:
            file.seek(block.at + 8 * block.names + block.name_bytes + 4 * block.rows)
            times: Times = _array(file, np.float64 if block.float_times else np.int64, block.rows)
            yield _cut(file, _array(file, np.uint32, block.rows)), times


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
