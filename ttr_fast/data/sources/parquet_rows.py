"""Columns of a Parquet file, by the library pyarrow. A place in a message is the row, from 1, because there are no lines."""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ...errors import UserError, quoted
from .files import opened
from .json_members import did_you_mean, listed
from .rows import ABSENT, Rows, Wanted, not_empty
from .times import Clock, TimeUnit

ROWS = 1 << 15


def parquet_rows(path: Path, wanted: Sequence[Wanted], clock: Clock) -> Iterator[Rows]:
    """The wanted columns, ROWS rows at a time. A column of timestamps has a unit of its own, which has to be the clock's if that has one.

    Raises UserError if pyarrow is not installed or cannot read the file, and if a column is missing or of a type that cannot be meant.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path}: Parquet needs the library pyarrow:  pip install 'temporal-transformer[parquet]'") from None
    return not_empty(path, _read(path, wanted, clock, pyarrow, parquet), "the file has no rows, expected some")


def _read(path: Path, wanted: Sequence[Wanted], clock: Clock, pyarrow: Any, parquet: Any) -> Iterator[Rows]:
    with opened(path) as stored:
        size = stored.seek(0, os.SEEK_END)
        try:
            file = parquet.ParquetFile(stored, page_checksum_verification=True, buffer_size=1 << 20)
            names = [_checked(path, file.schema_arrow, field, clock, pyarrow.types) for field in wanted]
            rows = file.metadata.num_rows
            done = read = 0
            for batch in file.iter_batches(ROWS, columns=[name for name in names if name is not None], use_threads=False):
                columns = [[ABSENT] * batch.num_rows if name is None else _values(batch.column(name), pyarrow) for name in names]
                lines = np.arange(done + 1, done + batch.num_rows + 1)
                done += batch.num_rows
                if done > rows:
                    break
                read, before = size * done // rows, read
                yield Rows(columns, lines, [], read - before, partial(_place, path, lines), partial(_record, [f.name for f in wanted], columns))
            if done != rows:  # pyarrow gives what there is
                raise ValueError(f"there are {'more' if done > rows else done} rows where {rows} were written")
        except (pyarrow.ArrowException, OSError, ValueError, UnicodeDecodeError) as error:
            problem = " ".join(str(error).split()).rstrip(".")
            raise UserError(f"{path}: the data are damaged or not Parquet at all ({problem}), expected a whole file") from error


def _checked(path: Path, schema: Any, field: Wanted, clock: Clock, types: Any) -> str | None:
    """The name of the column, if its type will do; None if the file may and does lack it."""
    count = len(schema.get_all_field_indices(field.name))
    if count == 0 and field.optional:
        return None
    if count == 0:
        problem = f"there is no column {quoted(field.name)}{did_you_mean(field.name, schema.names)}"
        raise UserError(f"{path}: {problem}, expected one of {listed(schema.names)}")
    if count > 1:
        raise UserError(f"{path}: column {quoted(field.name)} is there twice, expected one column of that name")
    kind = schema.field(field.name).type
    inner = kind.value_type if types.is_dictionary(kind) else kind
    if field.is_time and types.is_timestamp(kind):
        _check_timestamp(path, field.name, kind, clock)
    elif not (types.is_string(inner) or types.is_large_string(inner) or types.is_integer(inner) or (field.is_time and types.is_floating(inner))):
        expected = "numbers, timestamps or strings" if field.is_time else "strings or whole numbers"
        raise UserError(f"{path}: column {quoted(field.name)} is of type {kind}, expected {expected}")
    return field.name


def _check_timestamp(path: Path, name: str, kind: Any, clock: Clock) -> None:
    unit: TimeUnit = kind.unit
    if kind.tz is None:
        raise UserError(f"{path}: column {quoted(name)} has timestamps without a zone, expected a zone such as UTC, or numbers")
    if clock.unit not in (None, unit):
        raise UserError(f"{path}: column {quoted(name)} has timestamps in {unit}, expected {clock.expected}")
    clock.unit = unit


def _values(column: Any, pyarrow: Any) -> list[Any]:
    if pyarrow.types.is_timestamp(column.type):
        column = column.cast(pyarrow.int64())
    return list(column.to_pylist())


def _place(path: Path, lines: Any, row: int, field: int) -> str:
    return f"{path}:row {lines[row]}"


def _record(names: list[str], columns: list[list[Any]], row: int) -> bytes:
    return msgspec.json.encode({name: column[row] for name, column in zip(names, columns, strict=True) if column[row] is not ABSENT})
