"""A file of events or of texts → a source of chunks. The format is told by the name's ending."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import Generic, TypeVar

from ...errors import UserError, quoted
from .checks import EventCheck, TextCheck
from .csv_rows import csv_rows
from .files import format_of, opened
from .frames import elements_of, lines_of
from .json_rows import JsonRows
from .records import EventChunk, EventFields, Problems, Source, TextChunk, TextFields
from .rows import Fault, Rows, Wanted, not_empty
from .times import Clock, TimeUnit

Piece = TypeVar("Piece", EventChunk, TextChunk)


def open_events(
    path: str | Path,
    fields: EventFields,
    *,
    time_unit: TimeUnit | None,
    sort: bool,
    problems: Problems,
    known: Set[str] | None = None,
) -> Source[EventChunk]:
    """Open a .jsonl, .json (an array), .csv (each also .gz) or .parquet file of events and read its first block.

    Chunks keep the order of the file: sort only lets times of an entity decrease, and sorting is the caller's. Without it each entity's records have
    to stand in order of time. time_unit None infers it from the first time. Tokens that are not among `known` are bad records.

    Raises UserError for a file that is none of these or ends too early, or if `problems` says so; ValueError for an unknown time_unit.
    """
    path = Path(path)
    if not fields.tokens:
        raise UserError(f"{path}: no field was named for tokens, expected one at least")
    wanted = [Wanted(fields.entity), Wanted(fields.time, is_time=True), *map(Wanted, fields.tokens)]
    clock = Clock(time_unit)
    return _Source(path, _rows(path, wanted, clock, header=True), EventCheck(clock, sort, known), clock, problems)


def open_texts(
    path: str | Path, fields: TextFields, *, time_unit: TimeUnit | None, sort: bool, problems: Problems
) -> Source[TextChunk]:
    """As open_events, for texts. Only those with both a time and an entity have to be in order."""
    path = Path(path)
    wanted, at = [Wanted(fields.text or "text")], {}
    for kind, name in (("time", fields.time), ("entity", fields.entity)):
        if name is not None:
            at[kind] = len(wanted)
            wanted.append(Wanted(name, is_time=kind == "time", optional=name == kind))
    clock = Clock(time_unit)
    rows = _rows(path, wanted, clock, header=fields.text is not None, text=wanted[0].name)
    return _Source(path, rows, TextCheck(clock, sort, at), clock, problems)


def _rows(path: Path, wanted: Sequence[Wanted], clock: Clock, header: bool, text: str | None = None) -> Iterator[Rows]:
    names = [field.name for field in wanted]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise UserError(f"{path}: {quoted(twice)} was named for two fields, expected a name of its own for each")
    match format_of(path):
        case ".csv":
            return csv_rows(path, wanted, header)
        case ".parquet":
            from .parquet_rows import parquet_rows

            return parquet_rows(path, wanted, clock)
        case ".jsonl":
            frames, otherwise = lines_of(path), "the file is empty, expected a record on each line"
        case _:
            frames, otherwise = elements_of(path), "the array is empty, expected records"
    alone = text if all(field.optional for field in wanted[1:]) else None
    return not_empty(path, JsonRows(path, wanted, alone).rows(frames), otherwise)


class _Source(Generic[Piece]):
    """A file whose first good records are read already, so that the unit of its times is known."""

    def __init__(
        self, path: Path, rows: Iterator[Rows], check: Callable[[Rows], tuple[Piece, list[Fault]]], clock: Clock, problems: Problems
    ) -> None:
        self.problems = problems
        self.check: Callable[[Rows], tuple[Piece, list[Fault]]] = check
        with opened(path) as stored:
            self.size = os.fstat(stored.fileno()).st_size
        self.waiting: list[Piece] = []
        self.first_fault: Fault | None = None
        self.remaining: Iterator[Piece] = self._checked(rows)
        for chunk in self.remaining:
            self.waiting.append(chunk)
            if chunk.lines.size:
                self.time_unit: TimeUnit | None = None if chunk.times is None else clock.unit
                break
        else:
            first = "" if self.first_fault is None else f"; the first: {self.first_fault.where}: {self.first_fault.reason}"
            raise UserError(f"{path}: none of its records is good, expected one at least{first}")

    def chunks(self) -> Iterator[Piece]:
        """All records, once."""
        while self.waiting:
            yield self.waiting.pop(0)
        yield from self.remaining

    def _checked(self, rows: Iterable[Rows]) -> Iterator[Piece]:
        for block in rows:
            chunk, faults = self.check(block)
            for fault in faults:
                self.first_fault = self.first_fault or fault
                self.problems.report(fault.where, fault.reason, fault.record)
            yield chunk
