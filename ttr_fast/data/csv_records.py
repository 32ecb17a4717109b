"""Records of a CSV file with the lines they start on; whatever is not a whole, clean text file is refused.

The csv module alone takes NUL bytes and rows of any width, and knows neither the line of a byte that is not UTF-8 nor
the line a record starts on. A place in a message is file:line:column. Lines count from 1, as an editor shows them, and
a record with line breaks in quotes stands on the line it starts on; column is the number of the field in its record,
from 1. A fault of the text itself (encoding, NUL, quotes) belongs to no field, so its place is file:line.
"""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ..errors import UserError

# how surrogateescape marks a byte that is not UTF-8; valid UTF-8 never decodes to these
ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """The text of a UTF-8 file (with or without BOM), unpacked if its name ends in .gz, for the body of a with.

    A byte that is not UTF-8 stands in it as an escape, for records() to find. Raises UserError if the file cannot be
    opened or, in the body, read to its end.
    """
    try:
        with open(path, "rb") as stored:
            plain = gzip.GzipFile(fileobj=stored) if path.suffix.lower() == ".gz" else stored
            with io.TextIOWrapper(plain, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                yield file
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file, expected a .csv or .csv.gz file") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: this is a directory, expected a .csv or .csv.gz file") from error
    except EOFError as error:
        raise UserError(f"{path}: the gzip data end too early, expected a whole file") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: the data are damaged or not gzip at all, expected a .csv.gz file") from error
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read ({error.strerror}), expected a readable file") from error


def records(path: Path, file: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """(line, fields) of each record, without blank lines; the first is the header and the others are as wide as it.

    Raises UserError with the place of what is not UTF-8, not strict CSV, or of the first missing or surplus field.
    """
    line, width = 1, 0
    reader = csv.reader(_clean_lines(path, file), strict=True)
    try:
        for fields in reader:
            if fields:
                width = width or len(fields)
                if len(fields) != width:
                    column = min(len(fields), width) + 1
                    raise UserError(f"{path}:{line}:{column}: the row has {_fields(len(fields))}, expected {width}")
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{line}: {_csv_complaint(error)}") from error


def _clean_lines(path: Path, file: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if not line.isascii() and ESCAPED_BYTE.search(line):
            raise UserError(f"{path}:{number}: the line is not UTF-8, expected UTF-8 text")
        if "\0" in line:
            raise UserError(f"{path}:{number}: the line has a NUL byte, expected text")
        yield line


def _csv_complaint(error: csv.Error) -> str:
    problem = str(error)
    if problem == "unexpected end of data":
        return "a quote opened in this row is never closed, expected a closing quote"
    if problem.startswith("field larger"):
        limit = csv.field_size_limit()
        return f"a field of this row is longer than {limit} characters, expected a shorter one or a closing quote"
    return f"the row is not valid CSV, {problem}"


def _fields(count: int) -> str:
    return "1 field" if count == 1 else f"{count} fields"
