"""What every reader of a corpus takes and gives: names of fields, chunks of columns, and what happens to a bad record."""

import base64
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, NamedTuple, Protocol, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ..sequences import Times
from .times import TimeUnit

TOKEN_JOINT = "|"
"""Between the parts of a token that was several columns."""
OnError = Literal["fail", "skip", "quarantine"]
Chunk_co = TypeVar("Chunk_co", covariant=True)


class EventFields(NamedTuple):
    """Columns or fields of an event; several of tokens are joined to one token by TOKEN_JOINT."""

    entity: str = "entity"
    time: str = "time"
    tokens: tuple[str, ...] = ("token",)


class TextFields(NamedTuple):
    """Columns or fields of a text.

    text is None for a CSV file without header, whose rows are texts: the fields of a row are joined by a space; to other formats
    it is the usual name. In JSON a record may be a string, which is the text. time and entity are not read if None. Under their
    usual names a whole file may lack them; another name was asked for, so it must be there.
    """

    text: str | None = "text"
    time: str | None = "time"
    entity: str | None = "entity"


class EventChunk(NamedTuple):
    """Events in the order of the file.

    entities    n names
    times       (n,) int64 if each one is whole as it is written, else float64, in the unit of the source
    tokens      n texts
    lines       (n,) int64, where each record starts, from 1 (in Parquet the row, from 1)
    bytes_read  bytes of the file on disk that were read for this chunk; over all chunks they add up to the file's size
    """

    entities: list[str]
    times: Times
    tokens: list[str]
    lines: NDArray[np.int64]
    bytes_read: int


class TextChunk(NamedTuple):
    """Texts in the order of the file, each with exactly one `</s>` at its end; otherwise as EventChunk.

    entities and times are None if the texts of this file have none.
    """

    entities: list[str] | None
    times: Times | None
    texts: list[str]
    lines: NDArray[np.int64]
    bytes_read: int


class Source(Protocol[Chunk_co]):
    """One opened file."""

    @property
    def time_unit(self) -> TimeUnit | None:
        """As given, or inferred from the magnitude of the first time; None for texts without times."""

    @property
    def size(self) -> int:
        """Bytes on disk."""

    def chunks(self) -> Iterator[Chunk_co]:
        """All records, once. Raises UserError for what `problems` does not let pass, and for a file that ends too early."""


class Quarantined(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of a quarantine file: the record as it was, in base64 if it is not UTF-8."""

    where: str
    reason: str
    record: str = ""
    record_base64: str = ""


class Problems:
    """What happens to a bad record.

    "fail" raises UserError at the first, "skip" drops and counts it, "quarantine" also writes it with its reason as a line of JSON to
    the file `quarantine`, which is made new with the first bad record. More than max_bad of them raise UserError in any case.
    """

    def __init__(self, policy: OnError = "fail", max_bad: int = 0, quarantine: Path | None = None) -> None:
        if policy == "quarantine" and quarantine is None:
            raise ValueError("Problems: policy is 'quarantine', expected a file for it")
        self.policy, self.max_bad, self.quarantine = policy, max_bad, quarantine
        self.count = 0
        self.file: IO[bytes] | None = None

    def report(self, where: str, reason: str, record: bytes) -> None:
        """A bad record: where is file:line:column or file:line, reason says what came and what was expected."""
        if self.policy == "fail":
            raise UserError(f"{where}: {reason}")
        self.count += 1
        if self.policy == "quarantine":
            self._write(where, reason, record)
        if self.count > self.max_bad:
            raise UserError(f"{where}: {reason}; this is bad record number {self.count}, expected at most {self.max_bad}")

    def close(self) -> None:
        """Close the quarantine file, if there is one."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def __enter__(self) -> "Problems":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _write(self, where: str, reason: str, record: bytes) -> None:
        assert self.quarantine is not None
        try:
            entry = Quarantined(where, reason, record=record.decode())
        except UnicodeDecodeError:
            entry = Quarantined(where, reason, record_base64=base64.b64encode(record).decode())
        if self.file is None:
            self.file = open(self.quarantine, "wb")  # noqa: SIM115  # closed by close()
        self.file.write(msgspec.json.encode(entry) + b"\n")
        self.file.flush()
