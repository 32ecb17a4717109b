"""The first stage: each file's records, checked, on disk by partition."""

import os
import re
import shutil
import sys
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from ttr_fast.durable import flush, write_durably

from ...errors import UserError
from ..sources.files import blocks, format_of
from ..sources.opening import open_events, open_texts
from ..sources.records import EventChunk, EventFields, Problems, Source, TextChunk
from ..sources.times import TimeUnit
from .plan import Kind, Reading
from .spill import PART_FILE, ROWS_FILE, Part, Spill
from .workers import Advance

TEXT_FIELD, STRINGS = re.compile(rb'"text"\s*:'), re.compile(rb'\s*\[?\s*"')
TOLD: dict[TimeUnit | None, str] = {
    "s": "times are UNIX seconds",
    "ms": "times are UNIX milliseconds",
    "us": "times are UNIX microseconds",
    "ns": "times are UNIX nanoseconds",
    "iso8601": "times are ISO 8601",
    None: "there are no times",
}


class PartJob(NamedTuple):
    """A file, and the folder for what is made of it."""

    path: str
    folder: Path
    quarantine: Path
    reading: Reading
    partitions: int


def opened(path: str, reading: Reading, problems: Problems) -> Source[EventChunk] | Source[TextChunk]:
    """The file's reader."""
    if isinstance(reading.fields, EventFields):
        return open_events(Path(path), reading.fields, time_unit=reading.time_unit, sort=reading.sort, problems=problems)
    return open_texts(Path(path), reading.fields, time_unit=reading.time_unit, sort=reading.sort, problems=problems)


def with_unit(paths: Sequence[str], reading: Reading) -> Reading:
    """The same with the unit of the files' times, which is inferred and told on stderr where it is not given.

    Raises UserError if files have different units, or some have times and others none.
    """
    units = [opened(path, reading, Problems("skip", max_bad=sys.maxsize)).time_unit for path in paths]
    for path, unit in zip(paths, units, strict=True):
        if unit != units[0]:
            raise UserError(f"{path}: {TOLD[unit]}, but in {paths[0]} {TOLD[units[0]]}; expected the same in all files, or --time-unit")
    if units[0] is None:
        print("the texts have no times: each token's time is 0, and there is no time unit", file=sys.stderr)
    elif reading.time_unit is None:
        print(f"{TOLD[units[0]]}, by the look of the first (--time-unit names another)", file=sys.stderr)
    return msgspec.structs.replace(reading, time_unit=units[0])


def kind_of(path: str) -> Kind:
    """What a file looks like at its beginning: texts if there is a column or field `text`, or an array of strings; otherwise events.

    Raises UserError if it cannot be read.
    """
    suffix = format_of(Path(path))
    if suffix == ".parquet":
        return "texts" if "text" in _parquet_names(path) else "events"
    head = next(blocks(Path(path))).data
    if suffix == ".csv":
        return "texts" if b"text" in (name.strip(b'" \r') for name in head.partition(b"\n")[0].split(b",")) else "events"
    return "texts" if TEXT_FIELD.search(head) or STRINGS.match(head) else "events"


def _parquet_names(path: str) -> list[str]:
    """Of the columns; none if it cannot be read, which its reader will tell."""
    try:
        from pyarrow.parquet import read_schema

        return list(read_schema(path).names)
    except Exception:  # whatever the library has against it
        return []


def spill_part(job: PartJob, advance: Advance) -> None:
    """Read a file and make its folder, which appears when it is whole. Raises UserError for what is wrong with the file."""
    temporary = job.folder.with_name(f".{job.folder.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        reading = job.reading
        with Problems(reading.on_error, reading.max_bad, job.quarantine) as problems, (temporary / ROWS_FILE).open("wb") as file:
            source = opened(job.path, reading, problems)
            spill = Spill(file, job.partitions)
            with_entities = True
            for chunk in source.chunks():
                with_entities &= chunk.entities is not None
                _add(spill, chunk)
                advance(chunk.bytes_read, chunk.lines.size)
            spill.flush()
            file.flush()
            os.fsync(file.fileno())
        part = Part(spill.rows, source.size, problems.count, reading.kind == "texts", with_entities, spill.token_counts(), spill.blocks)
        write_durably(temporary / PART_FILE, msgspec.json.encode(part))
        flush(temporary)
        temporary.rename(job.folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _add(spill: Spill, chunk: EventChunk | TextChunk) -> None:
    if isinstance(chunk, EventChunk):
        spill.add_events(chunk.entities, chunk.times, chunk.tokens)
        return
    texts = [text.encode() for text in chunk.texts]
    # texts without entities are split by what they say, so that the same text never stands on both sides
    entities = [blake2b(text, digest_size=16).hexdigest() for text in texts] if chunk.entities is None else chunk.entities
    spill.add_texts(entities, np.zeros(len(texts), np.int64) if chunk.times is None else chunk.times, texts)
