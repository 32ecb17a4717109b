"""The third stage: a partition of the entities is loaded, sorted, tokenized, segmented, split, and written as shards."""

import os
import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ttr_fast.durable import flush, write_durably

from ...errors import UserError
from ..corpus import SPLITS, SplitName, read_file, shard_name
from ..dates import dates
from ..sequences import Times
from ..shards import ShardEntry, Tokens, write_shard
from ..sources.records import Problems
from ..split import uniform
from ..text_tokenizer import TextTokenizer
from .borders import Borders
from .plan import Reading, Segments, Splitting
from .reading import opened
from .segments import Integers, Pieces, new_sequences, pieces, ranges
from .spill import PART_FILE, Part, Rows, load_partition
from .tokens import numbers_of, prefixes
from .workers import Advance

DONE_FILE = "done.json"
ENCODED_AT_ONCE = 1024
"""Texts; the library's results are much larger than the tokens."""


class Done(msgspec.Struct, frozen=True):
    """done.json: the shards that a partition has become."""

    shards: dict[SplitName, list[ShardEntry]]


class Layout(NamedTuple):
    """What is the same for all partitions. paths: of the sources, and parts what was made of them. borders: where the split is by time."""

    paths: tuple[str, ...]
    parts: tuple[Path, ...]
    reading: Reading
    tokens: Path
    segments: Segments
    splitting: Splitting
    borders: Borders
    tick_seconds: float | None
    float_times: bool
    shard_tokens: int


class PartitionJob(NamedTuple):
    """A partition, and the folder for its shards."""

    partition: int
    folder: Path
    layout: Layout


class _Records(NamedTuple):
    """A partition in order: entity, then time, then as it was read. bounds: where each record's tokens start, and the end of the last."""

    entities: Integers
    times: Times
    sides: NDArray[np.int8]
    tokens: Tokens
    bounds: Integers


def write_partition(job: PartitionJob, advance: Advance) -> Done:
    """Make the folder, which appears when it is whole."""
    temporary = job.folder.with_name(f".{job.folder.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        done = Done(_shards(job, temporary))
        write_durably(temporary / DONE_FILE, msgspec.json.encode(done))
        flush(temporary)
        temporary.rename(job.folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    advance(1, 0)
    return done


def read_part(folder: Path) -> Part:
    """What is known of a file that was read. Raises UserError if the disk refuses."""
    return msgspec.json.decode(read_file(folder / PART_FILE), type=Part)


def _shards(job: PartitionJob, folder: Path) -> dict[SplitName, list[ShardEntry]]:
    layout = job.layout
    parts, tokenizer, numbers = _known(layout.parts, layout.tokens)
    rows = load_partition(layout.parts, parts, job.partition, numbers)
    records = _sorted(rows, layout, tokenizer)
    cuts, ticks = layout.segments, 1 if layout.tick_seconds is None else round(1 / layout.tick_seconds)
    gap = None if cuts.gap is None else cuts.gap * ticks
    begins = new_sequences(records.entities, records.times, records.sides, cuts.by == "document", gap)
    found = pieces(records.bounds, begins, cuts.length, cuts.overlap)
    sides = records.sides[found.records]
    starting = _prefix_tokens(records, found, tokenizer, layout) if tokenizer is not None and cuts.prefix else None
    written = dict[SplitName, list[ShardEntry]]()
    for side, name in enumerate(SPLITS):
        chosen = np.flatnonzero(sides == side)
        sizes = found.stops[chosen] - found.starts[chosen]
        written[name] = []
        for n, some in enumerate(_groups(chosen, sizes, layout.shard_tokens)):
            before = None if starting is None else [starting[i] for i in some.tolist()]
            written[name].append(_write(folder / shard_name(name, n), records, Pieces(*(column[some] for column in found)), before))
    return written


@lru_cache(maxsize=1)
def _known(folders: tuple[Path, ...], tokens: Path) -> tuple[list[Part], TextTokenizer | None, list[NDArray[np.uint32]]]:
    """What each partition needs, once in each process."""
    parts, content = [read_part(folder) for folder in folders], read_file(tokens)
    if any(part.with_texts for part in parts):
        return parts, TextTokenizer.from_json(content), []
    return parts, None, numbers_of(parts, content)


def _sorted(rows: Rows, layout: Layout, tokenizer: TextTokenizer | None) -> _Records:
    times = rows.times.astype(np.float64, copy=False) if layout.float_times else rows.times
    order, in_order = _order(rows.entities, times)
    if not in_order and not layout.reading.sort:
        _check_order(rows, layout)
    entities, times = rows.entities[order], times[order]
    if layout.splitting.by == "time":
        sides = sum((times >= border).astype(np.int8) for border in layout.borders if border is not None) + np.zeros(times.size, np.int8)
    else:
        sides = np.array([_side(name, layout.splitting.shares) for name in rows.names], np.int8)[entities]
    if tokenizer is None:
        return _Records(entities, times, sides, rows.codes[order], np.arange(order.size + 1))
    encoded = list[NDArray[np.int32]]()
    for start in range(0, order.size, ENCODED_AT_ONCE):
        encoded += tokenizer.encode_many([rows.texts[i] for i in order[start : start + ENCODED_AT_ONCE].tolist()])
    return _Records(entities, times, sides, _joined(encoded), np.cumsum([0, *map(len, encoded)]))


def _order(entities: Integers, times: Times) -> tuple[Integers, bool]:
    """By entity, then time; equal ones as they stand. And whether each entity's times stood in order."""
    if entities.size and entities.max() < 1 << 16:
        entities = entities.astype(np.uint16)  # which is sorted by its digits, ten times as fast
    order = np.argsort(entities, kind="stable")
    back = np.diff(times[order]) < 0
    inside = entities[order][1:] == entities[order][:-1]
    in_order = not (back & inside).any()
    return order if in_order else np.lexsort((times, entities)), in_order


def _check_order(rows: Rows, layout: Layout) -> None:
    """Raises UserError, with the place, if an entity's times go back within one of the sources; between them they may."""
    reading = layout.reading
    if reading == reading.by_reader:
        return  # the reader has looked
    ends = np.cumsum(rows.sources)
    for path, start, end in zip(layout.paths, ends - rows.sources, ends, strict=True):
        if not _order(rows.entities[start:end], rows.times[start:end])[1]:
            for _ in opened(path, reading, Problems()).chunks():
                pass
            raise UserError(f"{path}: changed while it was read")


def _side(name: str, shares: tuple[float, float, float]) -> int:
    """0 train, 1 valid, 2 test. A larger share of the last two only adds entities to them."""
    u = uniform(name, 0)
    return 2 if u < shares[2] else 1 if u < shares[1] + shares[2] else 0


def _joined(arrays: Sequence[NDArray[np.int32]]) -> Tokens:
    return np.concatenate([np.empty(0, np.int32), *arrays]).astype(np.uint32)


def _prefix_tokens(records: _Records, found: Pieces, tokenizer: TextTokenizer, layout: Layout) -> list[NDArray[np.int32]]:
    """Of the date of each piece."""
    assert layout.tick_seconds is not None
    texts = prefixes(dates(records.times[found.records], layout.tick_seconds))
    encoded = list[NDArray[np.int32]]()
    for start in range(0, len(texts), ENCODED_AT_ONCE):
        encoded += tokenizer.encode_many(texts[start : start + ENCODED_AT_ONCE])
    return encoded


def _groups(chosen: Integers, sizes: Integers, shard_tokens: int) -> list[Integers]:
    """The pieces of each shard: as many as fit, at least one."""
    groups, ends, start = list[Integers](), np.cumsum(sizes), 0
    while start < chosen.size:
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + shard_tokens, side="right")))
        groups.append(chosen[start:stop])
        start = stop
    return groups


def _write(path: Path, records: _Records, some: Pieces, starting: list[NDArray[np.int32]] | None) -> ShardEntry:
    """A shard of these pieces, each after its date's tokens if there are any."""
    sizes = some.stops - some.starts
    before = np.zeros(sizes.size, np.int64) if starting is None else np.array([prefix.size for prefix in starting])
    offsets = np.concatenate([[0], np.cumsum(before + sizes)])
    tokens, times = np.empty(offsets[-1], np.uint32), np.empty(offsets[-1], records.times.dtype)
    source, target = ranges(some.starts, sizes), ranges(offsets[:-1] + before, sizes)
    tokens[target] = records.tokens[source]
    records_of = source if records.tokens.size == records.times.size else np.searchsorted(records.bounds, source, side="right") - 1
    times[target] = records.times[records_of]
    if starting is not None:
        target = ranges(offsets[:-1], before)
        tokens[target] = _joined(starting)
        times[target] = np.repeat(records.times[some.records], before)
    return write_shard(path, tokens, times, offsets)
