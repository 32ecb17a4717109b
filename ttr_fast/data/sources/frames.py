"""The records of a JSON file as bytes with their places: the lines of JSONL, or the elements of the one array of a .json file.

An array is split without decoding it. In a block, quotes that no backslash escapes say which bytes are text; outside text, brackets give each byte
its depth, and commas at depth 1 separate the elements. All of it is NumPy over the block's bytes; between blocks only the state, the bytes
of an element that has not ended, and its place are kept.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError, quoted
from .files import Block, blocks, line_blocks
from .rows import RECORD_LIMIT

Positions = NDArray[np.int64]
SPACE = b" \t\r\n"
IS_SPACE = np.isin(np.arange(256), list(SPACE))
DEPTH_CHANGE = np.zeros(256, np.int8)
DEPTH_CHANGE[list(b"[{")] = 1
DEPTH_CHANGE[list(b"]}")] = -1


class Frame(NamedTuple):
    """Records of one block, the line on which each starts, and how many bytes stand before it in this line.

    blank_is_none: one of white space alone is no record; otherwise it is a bad one.
    """

    records: list[bytes]
    lines: Positions
    columns: Positions
    read: int
    blank_is_none: bool = False


def lines_of(path: Path) -> Iterator[Frame]:
    """The lines of a file, without empty ones; whether there is white space alone is not looked at."""
    for block in line_blocks(path, b"\n"):
        records = block.data.split(b"\n")
        if not records[-1]:
            records.pop()
        lines = np.arange(block.first, block.first + len(records))
        if not all(records):
            kept = [i for i, record in enumerate(records) if record.strip(SPACE)]
            records, lines = [records[i] for i in kept], lines[kept]
        yield Frame(records, lines, np.zeros(len(records), np.int64), block.read, blank_is_none=True)


def elements_of(path: Path) -> Iterator[Frame]:
    """The elements of the one array that the file is. Raises UserError if it is none, is not closed, or has more after it."""
    array = _Array(path)
    for block in blocks(path):
        yield array.frame(block)
    array.finish()


class _Array:
    """Where the scan of a file stands."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started = self.ended = self.has_elements = False
        self.in_text = self.escaped = False
        self.depth = 1
        self.pending: list[bytes] = []
        self.pending_size = 0
        self.pending_place: tuple[int, int] | None = None
        self.line, self.column = 1, 0

    def frame(self, block: Block) -> Frame:
        """The elements that end in this block."""
        data = block.data
        if not self.started:
            data = self._opening(data)
        if self.ended or not self.started:
            self._check_blank(data)
            return Frame([], np.zeros(0, np.int64), np.zeros(0, np.int64), block.read)
        return self._elements(data, block.read)

    def finish(self) -> None:
        """After the last block."""
        if not self.started:
            raise UserError(f"{self.path}: the file is empty, expected an array of records")
        if not self.ended:
            where = f"{self.path}:{self.pending_place[0]}" if self.pending_place else f"{self.path}:{self.line}"
            raise UserError(f"{where}: the file ends inside the array, expected a closing bracket (or a quote before it)")

    def _opening(self, data: bytes) -> bytes:
        rest = data.lstrip(SPACE)
        self._advance(data[: len(data) - len(rest)])
        if not rest:
            return b""
        if rest[:1] != b"[":
            found = quoted(rest[:1].decode("utf-8", "backslashreplace"))
            where = f"{self.path}:{self.line}:{self.column + 1}"
            raise UserError(f"{where}: the file starts with {found}, expected '[' (one record a line is a .jsonl file)")
        self.started = True
        self._advance(rest[:1])
        return rest[1:]

    def _elements(self, data: bytes, read: int) -> Frame:
        byte = np.frombuffer(data, np.uint8)
        outside = self._outside_text(byte)
        depth = self.depth + np.cumsum(DEPTH_CHANGE[byte] * outside, dtype=np.int32)
        ends = np.flatnonzero(outside & (((byte == ord(",")) & (depth == 1)) | (depth == 0)))
        closing = ends[depth[ends] == 0][:1]  # all after it is no part of the array
        if closing.size:
            ends = ends[ends <= closing[0]]
        self.depth = int(depth[-1]) if depth.size else self.depth
        content = byte[: closing[0]] if closing.size else byte
        starts = np.concatenate([[0], ends + 1])[: ends.size + (not closing.size)]
        lines, columns = self._places(byte, _first_not_blank(content, starts, ends, len(data)))
        first = self.pending_place
        self.pending.append(data[: ends[0]] if ends.size else data)
        self.pending_size += len(self.pending[-1])
        if self.pending_size > RECORD_LIMIT:
            line = first[0] if first else self.line
            raise UserError(f"{self.path}:{line}: an element of the array is longer than {RECORD_LIMIT} bytes, expected a shorter one")
        if first is None and self.pending[-1].strip(SPACE):
            self.pending_place = first = int(lines[0]), int(columns[0])
        if not ends.size:
            self._advance(data)
            return Frame([], lines[:0], columns[:0], read)
        records = [b"".join(self.pending), *(data[a:b] for a, b in zip((ends[:-1] + 1).tolist(), ends[1:].tolist(), strict=True))]
        if first is not None:
            lines[0], columns[0] = first
        frame = self._completed(Frame(records, lines[: ends.size], columns[: ends.size], read), data, closing)
        rest = b"" if closing.size else data[ends[-1] + 1 :]
        self.pending, self.pending_size, self.pending_place = [rest], len(rest), None
        if rest.strip(SPACE):
            self.pending_place = int(lines[-1]), int(columns[-1])
        self._advance(data)
        return frame

    def _completed(self, frame: Frame, data: bytes, closing: Positions) -> Frame:
        """Without white space around records; at the end of an array without elements there is none."""
        records = [record.strip(SPACE) for record in frame.records]
        if closing.size:
            self.ended = True
            line, column = self._places(np.frombuffer(data, np.uint8), closing)
            if data[closing[0]] != ord("]"):
                raise UserError(f"{self.path}:{line[0]}:{column[0] + 1}: the array is closed by '}}', expected ']'")
            if not records[-1] and len(records) == 1 and not self.has_elements:
                records, frame = [], frame._replace(lines=frame.lines[:0], columns=frame.columns[:0])
            after = data[closing[0] + 1 :]
            if after.strip(SPACE):
                raise UserError(f"{self.path}:{line[0]}:{column[0] + 2}: there is more after the array, expected nothing")
        self.has_elements = self.has_elements or bool(records)
        return frame._replace(records=records)

    def _outside_text(self, byte: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which bytes are no part of a string (its quotes are neither here nor there)."""
        quote = byte == ord('"')
        backslash = np.flatnonzero(byte == ord("\\"))
        if backslash.size or self.escaped:
            quote &= ~self._escaped(backslash, byte.size)
        inside = np.logical_xor(np.bitwise_xor.accumulate(quote.view(np.uint8)), self.in_text)
        if byte.size:
            self.in_text = bool(inside[-1])
        outside: NDArray[np.bool_] = ~(inside | quote)
        return outside

    def _escaped(self, backslash: Positions, size: int) -> NDArray[np.bool_]:
        """Which bytes a backslash stands before that is not itself escaped: in each run of them, every second escapes what follows."""
        escaped = np.zeros(size + 1, bool)
        escaped[0] = self.escaped
        if backslash.size:
            new_run = np.concatenate([[True], np.diff(backslash) > 1])
            run_start = np.maximum.accumulate(np.where(new_run, backslash, 0))
            skipped = (run_start == 0) & self.escaped & (backslash[0] == 0)  # the first of this run is escaped by the block before
            escaped[backslash[(backslash - run_start - skipped) % 2 == 0] + 1] = True
        self.escaped = bool(escaped[size])
        return escaped[:size]

    def _places(self, byte: NDArray[np.uint8], at: Positions) -> tuple[Positions, Positions]:
        """(line, bytes before in the line) of these positions."""
        newlines = np.flatnonzero(byte == ord("\n"))
        count = np.searchsorted(newlines, at)
        line_starts = np.concatenate([[-self.column], newlines + 1])
        return self.line + count, at - line_starts[count]

    def _advance(self, data: bytes) -> None:
        self.line += data.count(b"\n")
        self.column = len(data) - data.rfind(b"\n") - 1 + (self.column if b"\n" not in data else 0)

    def _check_blank(self, data: bytes) -> None:
        rest = data.lstrip(SPACE)
        if rest:
            self._advance(data[: len(data) - len(rest)])
            raise UserError(f"{self.path}:{self.line}:{self.column + 1}: there is more after the array, expected nothing")
        self._advance(data)


def _first_not_blank(content: NDArray[np.uint8], starts: Positions, ends: Positions, size: int) -> Positions:
    """Of each part that starts there, the first byte that is no white space; its end if all is."""
    solid = np.append(np.flatnonzero(~IS_SPACE[content]), size)
    last = np.append(ends, size)[: starts.size]
    return np.minimum(solid[np.searchsorted(solid, starts)], last)
