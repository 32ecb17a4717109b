"""Records of JSON → the columns of the wanted fields. Fields that nobody asked for are ignored."""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec

from ...errors import UserError, quoted
from .frames import SPACE, Frame
from .json_members import MAX_DEPTH, Bad, examined, members
from .rows import ABSENT, Fault, Rows, Wanted

ESCAPE_IN_KEY = re.compile(rb'\\u[^"]*+"\s*+:')


class JsonRows:
    """The reader. `text` is the field that a record stands for that is a string; None if each has to be an object.

    Raises UserError if a field cannot be called so in JSON.
    """

    def __init__(self, path: Path, wanted: Sequence[Wanted], text: str | None) -> None:
        self.path, self.wanted, self.text = path, wanted, text
        self.keys = [b'"' + field.name.encode() + b'"' for field in wanted]
        self.values = [attrgetter(f"f{k}") for k in range(len(wanted))]
        self.decode = msgspec.json.Decoder(_record_type(path, wanted, text)).decode

    def rows(self, frames: Iterable[Frame]) -> Iterator[Rows]:
        """One for each frame."""
        for frame in frames:
            columns = self._all_at_once(frame.records)
            yield self._rows(frame, columns, []) if columns is not None else self._one_by_one(frame)

    def _all_at_once(self, records: list[bytes]) -> list[list[Any]] | None:
        """The columns; None if a record may be bad."""
        joined = b"\n".join(records)
        if joined.count(b"{") + joined.count(b"[") > len(records) + MAX_DEPTH - 1:  # one of them may be nested too deep
            return None
        try:
            joined.decode()
            columns = self._columns(list(map(self.decode, records)))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return None if self._maybe_twice(joined, columns) else columns

    def _one_by_one(self, frame: Frame) -> Rows:
        good: list[int] = []
        values: list[list[Any]] = []
        faults: list[Fault] = []
        for i, record in enumerate(frame.records):
            if frame.blank_is_none and not record.strip(SPACE):
                continue
            columns = self._all_at_once([record])
            try:
                values.append([column[0] for column in columns] if columns else examined(record, self.wanted, self.text))
                good.append(i)
            except Bad as bad:
                line, where = self._place(frame, i, bad.at)
                faults.append(Fault(line, where, bad.reason, record))
        kept = frame._replace(records=[frame.records[i] for i in good], lines=frame.lines[good], columns=frame.columns[good])
        return self._rows(kept, [[row[k] for row in values] for k in range(len(self.wanted))], faults)

    def _maybe_twice(self, joined: bytes, columns: list[list[Any]]) -> bool:
        """Whether one of these records may have a wanted key twice."""
        for key, field, column in zip(self.keys, self.wanted, columns, strict=True):
            if joined.count(key) > len(column) - (column.count(ABSENT) if field.optional else 0):
                return True
        return b"\\u" in joined and ESCAPE_IN_KEY.search(joined) is not None

    def _columns(self, found: list[Any]) -> list[list[Any]]:
        if str in set(map(type, found)):
            return [[self._of_any(row, k) for row in found] for k in range(len(self.wanted))]
        return [list(map(value_of, found)) for value_of in self.values]

    def _of_any(self, row: Any, k: int) -> Any:
        if type(row) is str:
            return row if self.wanted[k].name == self.text else ABSENT
        return self.values[k](row)

    def _rows(self, frame: Frame, columns: list[list[Any]], faults: list[Fault]) -> Rows:
        return Rows(columns, frame.lines, faults, frame.read, partial(self._field_place, frame), frame.records.__getitem__)

    def _field_place(self, frame: Frame, row: int, field: int) -> str:
        name = self.wanted[field].name
        at = next((member.at for member in members(frame.records[row]) if member.key == name), 0)
        return self._place(frame, row, at)[1]

    def _place(self, frame: Frame, row: int, at: int) -> tuple[int, str]:
        """(line, file:line:column) of a byte of a record; columns count bytes, from 1."""
        before = frame.records[row][:at]
        newlines = before.count(b"\n")
        line = int(frame.lines[row]) + newlines
        column = len(before) - before.rfind(b"\n") if newlines else int(frame.columns[row]) + len(before) + 1
        return line, f"{self.path}:{line}:{column}"


def _record_type(path: Path, wanted: Sequence[Wanted], text: str | None) -> Any:
    kinds: list[Any] = []
    for k, field in enumerate(wanted):
        kind: Any = int | float | str if field.is_time else int | str
        kinds.append((f"f{k}", kind | msgspec.UnsetType, ABSENT) if field.optional else (f"f{k}", kind))
    names = {f"f{k}": field.name for k, field in enumerate(wanted)}
    try:
        record = msgspec.defstruct("Record", sorted(kinds, key=len), rename=names, gc=False)
        msgspec.json.Decoder(record)
    except ValueError:
        bad = next((name for name in names.values() if re.search(r'[\x00-\x1f"\\]', name)), next(iter(names.values()), ""))
        raise UserError(f"{path}: a field cannot be called {quoted(bad)} in JSON, expected a name without quotes and backslashes") from None
    return record if text is None else str | record
