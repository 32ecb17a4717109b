"""Events from a CSV file: one row is one event of one entity, with a time and a token.

Each row is checked as it is read, so that a message can name its place (see csv_records.py) and a bad file is refused
at its first fault, however long it is. Rows of different entities may be mixed in any way.
"""

import difflib
from array import array
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError, quoted
from .csv_records import open_text, records
from .sequences import EventSequences
from .sources.times import TimeUnit, time_parser, unit_complaint


def read_events(
    path: str | Path,
    *,
    entity: str,
    time: str,
    token: str,
    time_unit: TimeUnit,
    sort: bool = False,
    vocabulary: tuple[str, ...] | None = None,
) -> EventSequences:
    """Read a .csv or .csv.gz file whose header names the columns entity, time and token; other columns are ignored.

    time_unit "s" and "ms" are UNIX times and keep their unit, "iso8601" wants a zone in each time and gives UNIX
    seconds. Times are int64 if every one is whole in the text, otherwise all are float64. sort orders the rows of each
    entity by time and leaves equal times in the order of the file; without it the rows have to stand in order. Tokens
    are numbered in the order of their text, or by the vocabulary of a trained model if one is given.

    Raises UserError for whatever is wrong with the file, ValueError for an unknown time_unit.
    """
    path = Path(path)
    with open_text(path) as file:
        table = records(path, file)
        line, header = next(table, (1, []))
        if not header:
            raise UserError(f"{path}: the file is empty, expected a header and rows")
        columns = _Columns(*(_column(f"{path}:{line}", header, name) for name in (entity, time, token)))
        rows = _Rows(path, columns, time_unit, sort, vocabulary)
        for line, fields in table:
            rows.add(line, fields)
    return rows.sequences()


class _Columns(NamedTuple):
    """Where each of them stands in a record, from 0."""

    entity: int
    time: int
    token: int


class _Rows:
    """The rows read so far: entities and tokens numbered as they appear, times int64 until the first fraction."""

    def __init__(
        self, path: Path, columns: _Columns, time_unit: TimeUnit, sort: bool, vocabulary: tuple[str, ...] | None
    ) -> None:
        self.path, self.columns, self.time_unit, self.sort = path, columns, time_unit, sort
        self.parse_time = time_parser(time_unit)
        self.vocabulary = vocabulary
        self.known = None if vocabulary is None else frozenset(vocabulary)
        self.entity_ids: dict[str, int] = {}
        self.token_ids: dict[str, int] = {}
        self.entities, self.tokens = array("q"), array("q")
        self.times: array[float] = array("q")  # type: ignore[assignment]  # int64 is one of its two types
        self.latest: dict[str, tuple[int | float, str]] = {}

    def add(self, line: int, fields: list[str]) -> None:
        at = self.columns
        entity, when, token = fields[at.entity], fields[at.time], fields[at.token]
        if not (entity and when and token):
            kind = "entity" if not entity else "time" if not when else "token"
            raise self._error(line, getattr(at, kind), f"the {kind} is empty, expected text")
        try:
            time = self.parse_time(when)
        except ValueError as error:
            raise self._error(line, at.time, str(error)) from None
        if not self.sort:
            self._check_order(line, entity, time, when)
        if token not in self.token_ids and self.known is not None and token not in self.known:
            problem = f"token {quoted(token)} is unknown, expected one of the {len(self.known)} in the vocabulary"
            raise self._error(line, at.token, problem)
        if type(time) is float and self.times.typecode == "q":
            self.times = array("d", self.times)
        self.times.append(time)
        self.entities.append(self.entity_ids.setdefault(entity, len(self.entity_ids)))
        self.tokens.append(self.token_ids.setdefault(token, len(self.token_ids)))

    def sequences(self) -> EventSequences:
        if not self.times:
            raise UserError(f"{self.path}: the file has a header only, expected rows")
        problem = unit_complaint(min(self.times), max(self.times), self.time_unit)
        if problem:
            raise UserError(f"{self.path}: {problem}")
        names = tuple(sorted(self.entity_ids))
        vocabulary = tuple(sorted(self.token_ids)) if self.vocabulary is None else self.vocabulary
        entities = _renumbered(self.entities, self.entity_ids, names)
        # the type is named because np.array alone makes `long long` of it, which is not the same to everyone
        times = np.array(self.times, np.float64) if self.times.typecode == "d" else np.array(self.times, np.int64)
        order = np.lexsort((times, entities))
        tokens = _renumbered(self.tokens, self.token_ids, vocabulary)[order].astype(np.int32)
        offsets = np.concatenate([[0], np.cumsum(np.bincount(entities))])
        return EventSequences(names, tokens, times[order], offsets, vocabulary)

    def _check_order(self, line: int, entity: str, time: int | float, when: str) -> None:
        before = self.latest.get(entity)
        if before is not None and time < before[0]:
            problem = f"time {quoted(when)} of entity {quoted(entity)} comes after {quoted(before[1])}"
            raise self._error(line, self.columns.time, f"{problem}, expected rows in order of time or --sort")
        self.latest[entity] = time, when

    def _error(self, line: int, column: int, problem: str) -> UserError:
        return UserError(f"{self.path}:{line}:{column + 1}: {problem}")


def _column(place: str, header: list[str], name: str) -> int:
    """Index of the one column of this name."""
    if name not in header:
        there = ", ".join(map(quoted, header))
        by_lower = {column.lower(): column for column in header}
        close = difflib.get_close_matches(name.lower(), by_lower, n=1)
        hint = f" (did you mean {quoted(by_lower[close[0]])}?)" if close else ""
        raise UserError(f"{place}: there is no column {quoted(name)}{hint}, expected one of {there}")
    first = header.index(name)
    if name in header[first + 1 :]:
        second = header.index(name, first + 1)
        raise UserError(f"{place}:{second + 1}: column {quoted(name)} is there twice, expected one column of that name")
    return first


def _renumbered(ids: "array[int]", texts: dict[str, int], names: tuple[str, ...]) -> NDArray[np.int64]:
    """ids in order of appearance → positions in names."""
    position = {name: i for i, name in enumerate(names)}
    renumber: NDArray[np.int64] = np.array([position[text] for text in texts])
    return renumber[np.array(ids, np.int64)]
