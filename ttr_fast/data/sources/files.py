"""Bytes of a file in blocks, unpacked if its name ends in .gz; whole lines if so wanted. Memory is bounded by a block and a record."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from ...errors import UserError, quoted
from .rows import RECORD_LIMIT

BLOCK = 1 << 17  # what is made of one fits the caches
EXPECTED_FILE = "a .csv, .json, .jsonl (each also .gz) or .parquet file"
# deflate packs at most 1032 to 1; logs are packed 5 to 30 to 1, so what unpacks to this much more is there to fill memories
UNPACKED_FREELY, MOST_PER_BYTE = 64 << 20, 300
BOM = b"\xef\xbb\xbf"


class Block(NamedTuple):
    """Bytes; `read` says how many on disk they took, and adds up to the size of the file; `last` that no more come."""

    data: bytes
    read: int
    last: bool


class Lines(NamedTuple):
    """Whole lines, each with its end; only the last line of a file may have none."""

    data: bytes
    first: int
    read: int


def format_of(path: Path) -> str:
    """The suffix without .gz, in small letters. Raises UserError if there is no reader for it."""
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in (".csv", ".json", ".jsonl", ".parquet") or (suffix == ".parquet" and name.endswith(".gz")):
        ending = f"the name ends in {quoted(''.join(Path(name).suffixes[-2:]))}" if suffix else "the name has no ending"
        found = ending if path.exists() else "there is no such file"
        raise UserError(f"{path}: {found}, expected {EXPECTED_FILE}")
    return suffix


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The stored bytes, for the body of a with. Raises UserError if the file cannot be opened or, in the body, read."""
    try:
        with open(path, "rb") as stored:
            yield stored
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file, expected {EXPECTED_FILE}") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: this is a directory, expected {EXPECTED_FILE}") from error
    except EOFError as error:
        raise UserError(f"{path}: the gzip data end too early, expected a whole file") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: the data are damaged or not gzip at all, expected a .gz file") from error
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read ({error.strerror or error}), expected a readable file") from error


def blocks(path: Path) -> Iterator[Block]:
    """The content without BOM in blocks of BLOCK bytes, at least one. Raises UserError."""
    with opened(path) as stored:
        plain = gzip.GzipFile(fileobj=stored) if path.name.lower().endswith(".gz") else stored
        unpacked = read = 0
        following = plain.read(max(BLOCK, len(BOM))).removeprefix(BOM)
        while True:
            data, following = following, plain.read(BLOCK)
            unpacked += len(data)
            if plain is not stored and unpacked > max(UNPACKED_FREELY, MOST_PER_BYTE * stored.tell()):
                raise UserError(f"{path}: the gzip data unpack to more than {MOST_PER_BYTE} times their size, expected packed text")
            before, read = read, stored.tell()
            yield Block(data, read - before, not following)
            if not following:
                return


def line_blocks(path: Path, ends: bytes) -> Iterator[Lines]:
    """Whole lines that end in one of the bytes `ends`, blocks of them, at least one. Raises UserError, for a line that is too long too."""
    pending: list[bytes] = []
    pending_size, number, read = 0, 1, 0
    for block in blocks(path):
        read += block.read
        # a carriage return at the end of a block may be the first half of a line's end
        cut = len(block.data) if block.last else max(block.data.rfind(end, 0, None if end == 10 else -1) for end in ends) + 1
        if cut == 0 and not block.last:
            pending.append(block.data)
            pending_size += len(block.data)
        else:
            data = b"".join([*pending, block.data[:cut]])
            yield Lines(data, number, read)
            number += _line_ends(data, ends)
            pending, pending_size, read = [block.data[cut:]], len(block.data) - cut, 0
        if pending_size > RECORD_LIMIT:
            raise UserError(f"{path}:{number}: the line is longer than {RECORD_LIMIT} bytes, expected a shorter one")


def _line_ends(data: bytes, ends: bytes) -> int:
    count = data.count(b"\n")
    return count + data.count(b"\r") - data.count(b"\r\n") if b"\r" in ends else count
