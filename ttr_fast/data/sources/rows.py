"""What the reader of a format hands to the checks that all formats share."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from ...errors import UserError

RECORD_LIMIT = 16 << 20
"""Bytes of one record; a longer one is more likely a quote or an array that is never closed."""
ABSENT = UNSET
"""Stands where a record has no such field and need not have it."""


class Fault(NamedTuple):
    """A bad record, with its line for the order of messages."""

    line: int
    where: str
    reason: str
    record: bytes


class Rows(NamedTuple):
    """The records of one block.

    columns  for each wanted field, in their order: what stands in each record (str, int, float, None or ABSENT)
    lines    (n,) int64
    faults   records that are bad by themselves and are not in the columns
    read     bytes on disk that were read for this block
    place    (row, field) → file:line:column
    record   row → its bytes
    """

    columns: list[list[Any]]
    lines: NDArray[np.int64]
    faults: list[Fault]
    read: int
    place: Callable[[int, int], str]
    record: Callable[[int], bytes]


class Wanted(NamedTuple):
    """A field to read: its name, what it holds, and whether the whole file may lack it."""

    name: str
    is_time: bool = False
    optional: bool = False


def not_empty(path: Path, rows: Iterable[Rows], otherwise: str) -> Iterator[Rows]:
    """The rows as they come. Raises UserError at the end, with the sentence `otherwise`, if there was none, good or bad."""
    seen = False
    for block in rows:
        seen = seen or bool(block.lines.size) or bool(block.faults)
        yield block
    if not seen:
        raise UserError(f"{path}: {otherwise}")
