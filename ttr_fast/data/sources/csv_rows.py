"""Rows of a CSV file (RFC 4180, strict) → the columns of the wanted fields.

A block without quotes is split at commas. Where there are quotes, the csv module reads; alone it would take NUL bytes and rows of any width, and
know neither the line of a byte that is not UTF-8 nor the line a record starts on. Lines count from 1, as an editor shows them, and a record with line
breaks in quotes stands on the line it starts on; column is the number of the field in its record, from 1. A fault of the text itself
(encoding, NUL, quotes) belongs to no field, so its place is file:line.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import UserError, quoted
from .files import Lines, line_blocks
from .json_members import did_you_mean, listed
from .rows import ABSENT, RECORD_LIMIT, Fault, Rows, Wanted, not_empty

# how surrogateescape marks a byte that is not UTF-8; valid UTF-8 never decodes to these
ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


class Row(NamedTuple):
    """A record, its line, and its bytes as text."""

    line: int
    fields: list[str]
    written: str


def csv_rows(path: Path, wanted: Sequence[Wanted], header: bool) -> Iterator[Rows]:
    """The rows below the header, which are as wide as it; or without a header all rows, of any width, whose fields joined by a space are the text.

    Raises UserError for a header that lacks a wanted column or has it twice, and for a quote that is never closed.
    """
    csv.field_size_limit(RECORD_LIMIT)  # of the whole process; the module's own would refuse longer documents in quotes and take them without
    reader = _Csv(path, wanted)
    if header:
        rows = reader.below_header()
        return not_empty(path, rows, "the file has a header only, expected rows")
    return not_empty(path, reader.joined(), "the file is empty, expected rows")


class _Csv:
    """The reader of one file."""

    def __init__(self, path: Path, wanted: Sequence[Wanted]) -> None:
        self.path, self.wanted = path, wanted
        self.blocks = line_blocks(path, b"\n\r")
        self.at: list[int | None] = []
        self.width = 0

    def below_header(self) -> Iterator[Rows]:
        """Columns by the names in the header."""
        lines = _Lines(self.path, self.blocks)
        while not self.width:
            if not lines.any_left() and not lines.take_next():
                raise UserError(f"{self.path}: the file is empty, expected a header and rows")
            if not lines.any_left():
                continue
            found = self._record(lines)
            if isinstance(found, Fault):
                raise UserError(f"{found.where}: {found.reason}")
            if found.fields:
                self._header(found)
        yield from self._all_of(lines)
        for block in self.blocks:
            plain = self._plain(block)
            if plain is not None:
                yield plain
            else:
                yield from self._all_of(_Lines(self.path, self.blocks, block))

    def joined(self) -> Iterator[Rows]:
        """One column, of whole rows."""
        for block in self.blocks:
            yield from self._all_of(_Lines(self.path, self.blocks, block))

    def _header(self, row: Row) -> None:
        place = f"{self.path}:{row.line}"
        self.width = len(row.fields)
        for field in self.wanted:
            if field.name not in row.fields:
                if not field.optional:
                    problem = f"there is no column {quoted(field.name)}{did_you_mean(field.name, row.fields)}"
                    raise UserError(f"{place}: {problem}, expected one of {listed(row.fields)}")
                self.at.append(None)
                continue
            first = row.fields.index(field.name)
            if field.name in row.fields[first + 1 :]:
                second = row.fields.index(field.name, first + 1) + 1
                raise UserError(f"{place}:{second}: column {quoted(field.name)} is there twice, expected one column of that name")
            self.at.append(first)

    def _plain(self, block: Lines) -> Rows | None:
        """The columns of a block in which each line is a row, without blank lines, nothing wrong; None if it is not so simple."""
        if b"\0" in block.data or not block.data:
            return None
        try:
            text = block.data.decode()
        except UnicodeDecodeError:
            return None
        columns = self._quoted(text) if '"' in text else self._unquoted(text)
        if columns is None:
            return None
        lines = np.arange(block.first, block.first + len(columns[0]))
        return Rows(columns, lines, [], block.read, partial(self._place, lines.tolist()), block.data.splitlines().__getitem__)

    def _unquoted(self, text: str) -> list[list[Any]] | None:
        text = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
        # a mark after each row stands exactly where a row of the right width ends
        flat = text.replace("\n", ",\n,").split(",")
        step, count = self.width + 1, text.count("\n") + 1
        ends = flat[self.width :: step]
        if len(flat) != count * step - 1 or ends.count("\n") != count - 1 or (self.width == 1 and "" in flat):
            return None
        return [[ABSENT] * count if at is None else flat[at::step] for at in self.at]

    def _quoted(self, text: str) -> list[list[Any]] | None:
        lines = list(io.StringIO(text, newline=""))
        try:
            rows = list(csv.reader(lines, strict=True))
        except csv.Error:
            return None
        if len(rows) != len(lines) or set(map(len, rows)) != {self.width}:
            return None
        return [[ABSENT] * len(rows) if at is None else [row[at] for row in rows] for at in self.at]

    def _all_of(self, lines: "_Lines") -> Iterator[Rows]:
        """By the csv module, until the lines are used up; it may take more blocks if a record does not end with its own."""
        more = True
        while more:
            rows: list[Row] = []
            faults: list[Fault] = []
            taken = lines.blocks_taken
            while lines.any_left() and lines.blocks_taken == taken:
                found = self._record(lines)
                if isinstance(found, Fault):
                    faults.append(found)
                elif found.fields:
                    rows.append(found)
            more = lines.any_left()
            yield self._rows(rows, faults, lines.bytes_read())

    def _record(self, lines: "_Lines") -> Row | Fault:
        """The next record; it has no fields if the line is blank. Raises UserError for a quote that is never closed."""
        line = lines.number
        lines.start_record()
        try:
            fields = next(lines.reader)
        except _BadLine as error:
            return Fault(error.line, f"{self.path}:{error.line}", error.reason, _bytes(lines.written()))
        except csv.Error as error:
            if str(error) == "unexpected end of data":
                raise UserError(f"{self.path}:{line}: a quote opened in this row is never closed, expected a closing quote") from error
            return Fault(line, f"{self.path}:{line}", f"the row is not valid CSV, {error}", _bytes(lines.written()))
        if self.width and fields and len(fields) != self.width:
            where = f"{self.path}:{line}:{min(len(fields), self.width) + 1}"
            return Fault(line, where, f"the row has {_fields(len(fields))}, expected {self.width}", _bytes(lines.written()))
        return Row(line, fields, lines.written())

    def _rows(self, rows: list[Row], faults: list[Fault], read: int) -> Rows:
        columns: list[list[Any]]
        if self.width:
            columns = [[ABSENT if at is None else row.fields[at] for row in rows] for at in self.at]
        else:
            columns = [[" ".join(row.fields) for row in rows], *([ABSENT] * len(rows) for _ in self.wanted[1:])]
        lines = np.array([row.line for row in rows], np.int64)
        return Rows(columns, lines, faults, read, partial(self._place, lines.tolist()), lambda i: _bytes(rows[i].written))

    def _place(self, lines: list[int], row: int, field: int) -> str:
        at = self.at[field] if self.at else None
        return f"{self.path}:{lines[row]}" + ("" if at is None else f":{at + 1}")


class _BadLine(Exception):
    """A line that is no text."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line, self.reason = line, reason


class _Lines:
    """The lines of a block for the csv module, and of the blocks after it if a record goes on there.

    Raises _BadLine, and UserError for a record that is too long.
    """

    def __init__(self, path: Path, blocks: Iterator[Lines], block: Lines | None = None) -> None:
        self.path, self.blocks = path, blocks
        self.reader = csv.reader(self, strict=True)
        self.blocks_taken = self.read = 0
        self.number = 1
        self.following = ""
        self._take(block if block is not None else next(blocks))

    def any_left(self) -> bool:
        """Whether there is a line in the blocks taken so far."""
        return self.following != ""

    def take_next(self) -> bool:
        """Go on with the next block, if there is one."""
        block = next(self.blocks, None)
        if block is not None:
            self._take(block)
        return block is not None

    def bytes_read(self) -> int:
        """On disk, since this was asked last."""
        read, self.read = self.read, 0
        return read

    def start_record(self) -> None:
        """From here on lines are of a new record."""
        self.record: list[str] = []
        self.record_size = 0
        self.record_line = self.number

    def written(self) -> str:
        """The lines of the record so far."""
        return "".join(self.record)

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if not self.following:  # a record goes on after its block
            self._take(next(self.blocks))
        line, self.following = self.following, self.text.readline()
        self.record.append(line)
        self.record_size += len(line)
        self.number += 1
        if self.record_size > RECORD_LIMIT:
            problem = f"the row is longer than {RECORD_LIMIT} characters"
            raise UserError(f"{self.path}:{self.record_line}: {problem}, expected a shorter one or a closing quote")
        if not line.isascii() and ESCAPED_BYTE.search(line):
            raise _BadLine(self.number - 1, "the line is not UTF-8, expected UTF-8 text")
        if "\0" in line:
            raise _BadLine(self.number - 1, "the line has a NUL byte, expected text")
        return line

    def _take(self, block: Lines) -> None:
        self.text = io.StringIO(block.data.decode("utf-8", "surrogateescape"), newline="")
        self.following = self.text.readline()
        self.number = block.first
        self.read += block.read
        self.blocks_taken += 1


def _bytes(text: str) -> bytes:
    return text.rstrip("\r\n").encode("utf-8", "surrogateescape")


def _fields(count: int) -> str:
    return "1 field" if count == 1 else f"{count} fields"
