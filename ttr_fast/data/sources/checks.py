"""From the columns of a block to a chunk of events or texts: what holds for every format. Bad records are left out and told."""

import math
from collections.abc import Container, Iterable, Mapping, Sequence, Set
from typing import Any

from ...errors import quoted
from ..sequences import Times
from ..text_tokenizer import TERMINATOR
from .records import TOKEN_JOINT, EventChunk, TextChunk
from .rows import ABSENT, Fault, Rows
from .times import Clock

Bad = dict[int, tuple[int, str]]
"""Of each bad row, which field is wrong and how."""


class EventCheck:
    """Of one file: the entity, the time and the parts of the token stand in columns 0, 1 and 2 to the end."""

    def __init__(self, clock: Clock, sort: bool, known: Set[str] | None) -> None:
        self.clock, self.known = clock, known
        self.order = None if sort else Order(clock)

    def __call__(self, rows: Rows) -> tuple[EventChunk, list[Fault]]:
        """The good events, and all faults by line."""
        bad: Bad = {}
        entities = strings(rows.columns[0], 0, "entity", bad)
        times, wrong = self.clock.column(rows.columns[1])
        for i, reason in wrong.items():
            bad.setdefault(i, (1, reason))
        parts = [strings(column, k, "token", bad) for k, column in enumerate(rows.columns[2:], 2)]
        tokens = parts[0] if len(parts) == 1 else _joined(parts, bad)
        if self.known is not None and not self.known >= set(tokens):
            for i, token in enumerate(tokens):
                if token not in self.known:
                    bad.setdefault(i, (2, f"token {quoted(token)} is unknown, expected one of the {len(self.known)} in the vocabulary"))
        if self.order is not None:
            self.order.check(entities, times, rows.columns[1], bad, 1)
        lines = rows.lines
        if bad:
            kept = _kept(len(entities), bad)
            entities, tokens = [entities[i] for i in kept], [tokens[i] for i in kept]
            times, lines = times[kept], lines[kept]
        return EventChunk(entities, times, tokens, lines, rows.read), faults(rows, bad)


class TextCheck:
    """Of one file: the text stands in column 0, the time and the entity in columns at[...], if they are wanted at all."""

    def __init__(self, clock: Clock, sort: bool, at: Mapping[str, int]) -> None:
        self.clock, self.at = clock, at
        self.order = None if sort else Order(clock)
        self.present: dict[str, bool] = {}

    def __call__(self, rows: Rows) -> tuple[TextChunk, list[Fault]]:
        """The good texts, and all faults by line."""
        bad: Bad = {}
        texts = [terminated(text) for text in strings(rows.columns[0], 0, "text", bad)]
        if TERMINATOR in texts:
            for i, text in enumerate(texts):
                if text == TERMINATOR:
                    bad.setdefault(i, (0, f"the text is nothing but white space and {TERMINATOR}, expected text"))
        written, named = (self._optional(rows, name, bad) for name in ("time", "entity"))
        times = entities = None
        if written is not None:
            times, wrong = self.clock.column(written)
            for i, reason in wrong.items():
                bad.setdefault(i, (self.at["time"], reason))
        if named is not None:
            entities = strings(named, self.at["entity"], "entity", bad)
        if self.order is not None and written is not None and times is not None and entities is not None:
            self.order.check(entities, times, written, bad, self.at["time"])
        lines = rows.lines
        if bad:
            kept = _kept(len(texts), bad)
            texts, lines = [texts[i] for i in kept], lines[kept]
            times = None if times is None else times[kept]
            entities = None if entities is None else [entities[i] for i in kept]
        return TextChunk(entities, times, texts, lines, rows.read), faults(rows, bad)

    def _optional(self, rows: Rows, name: str, bad: Bad) -> list[Any] | None:
        """The column, null in bad rows; None if this file has none. The first record decides, and the others have to be like it."""
        if name not in self.at:
            return None
        column = rows.columns[self.at[name]]
        present = self.present.setdefault(name, column[0] is not ABSENT) if column else self.present.get(name, False)
        if any((value is ABSENT) == present for value in column):
            for i, value in enumerate(column):
                if present and value is ABSENT:
                    bad.setdefault(i, (0, f"there is no {name}, expected one as in the first record"))
                elif not present and value is not ABSENT:
                    bad.setdefault(i, (self.at[name], f"this record has the field {name}, expected none as in the first record"))
        if not present:
            return None
        return [None if i in bad else value for i, value in enumerate(column)] if bad else column


class Order:
    """That the times of an entity never decrease. Remembers one time for each entity."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.latest: dict[str, int | float] = {}
        self.newest: int | float = -math.inf

    def check(self, entities: Sequence[str], times: Times, written: Sequence[Any], bad: Bad, field: int) -> None:
        """Adds rows that come too late to the bad ones."""
        latest, before, values = self.latest, self.latest.get, times.tolist()
        if not values:
            return
        newest, self.newest = self.newest, max(self.newest, *values)
        if not bad and values[0] >= newest and (times[1:] >= times[:-1]).all():  # a log: whoever it is, nothing is earlier than anything before
            latest.update(zip(entities, values, strict=True))
            return
        rows: Iterable[tuple[int, str, int | float]] = zip(range(len(entities)), entities, values, strict=True)
        for i, entity, time in [row for row in rows if row[0] not in bad] if bad else rows:
            if time < before(entity, time):
                problem = f"time {quoted(str(written[i]))} of entity {quoted(entity)} comes after {self.clock.text(latest[entity])}"
                bad[i] = field, f"{problem}, expected records in order of time or --sort"
            else:
                latest[entity] = time


def strings(column: list[Any], field: int, name: str, bad: Bad) -> list[str]:
    """Texts, with whole numbers as they are written; rows that are empty, null, or have a NUL are added to the bad ones."""
    if set(map(type, column)) != {str}:
        column = [_text(value, i, field, name, bad) for i, value in enumerate(column)]
    if "" in column:
        for i, text in enumerate(column):
            if text == "":
                bad.setdefault(i, (field, f"the {name} is empty, expected text"))
    joined = "".join(column)
    for mark, what in (("\0", "a NUL character"), ("\ufeff", "a byte order mark")):
        if mark in joined and not (mark == "\ufeff" and name == "text"):  # where names are compared, this is one that nobody sees
            for i, text in enumerate(column):
                if mark in text:
                    bad.setdefault(i, (field, f"the {name} {quoted(text)} has {what}, expected text without"))
    return column


def _text(value: Any, row: int, field: int, name: str, bad: Bad) -> str:
    if type(value) is str:
        return value
    if type(value) is int and -(2**63) <= value < 2**63:
        return str(value)
    problem = "is a number beyond int64" if type(value) is int else "is null"
    bad.setdefault(row, (field, f"the {name} {problem}, expected text or a whole number"))
    return "-"


def _joined(parts: list[list[str]], bad: Bad) -> list[str]:
    """One token of several columns, none of which may hold what joins them."""
    for k, part in enumerate(parts, 2):
        if TOKEN_JOINT in "".join(part):
            for i, text in enumerate(part):
                if TOKEN_JOINT in text:
                    bad.setdefault(i, (k, f"the token {quoted(text)} has a {TOKEN_JOINT!r}, expected none where several columns are joined by it"))
    return list(map(TOKEN_JOINT.join, zip(*parts, strict=True)))


def terminated(text: str) -> str:
    """The text with one terminator at its end: appended where it is missing; white space after one that is there, and more of them, are dropped."""
    bare = text
    while (stripped := bare.rstrip()).endswith(TERMINATOR):
        bare = stripped.removesuffix(TERMINATOR)
    return (bare if bare and not bare.isspace() else "") + TERMINATOR


def faults(rows: Rows, bad: Bad) -> list[Fault]:
    """Those of the reader and those found here, by line."""
    found = [Fault(int(rows.lines[i]), rows.place(i, field), reason, rows.record(i)) for i, (field, reason) in bad.items()]
    return sorted([*rows.faults, *found], key=lambda fault: fault.line)


def _kept(count: int, bad: Container[int]) -> list[int]:
    return [i for i in range(count) if i not in bad]
