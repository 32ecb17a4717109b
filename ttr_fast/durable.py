"""Files and folders that are on the disk when a call returns, whole or not at all, whenever the process or the machine stops.

What is written has a temporary name first, its contents are flushed, it is renamed, and the folder that holds the name is flushed. All of it goes
through functions of `os`, one call each, so that tests can let each of them fail.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ttr_fast.errors import UserError

TEMPORARY = ".tmp-"


@contextmanager
def told(path: Path, what: str = "written") -> Iterator[None]:
    """A disk that refuses is a UserError with the path: a call on an open file knows none."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be {what}: {error.strerror}") from error


def write_durably(path: Path, *contents: bytes | memoryview) -> None:
    """A file of these bytes, new or written over, that is on the disk when this returns; its name is not until its folder is flushed.

    A memoryview is one of bytes. Raises OSError.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        for content in contents:
            write_all(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append(path: Path, content: bytes) -> None:
    """At the end of the file, which is made if it is not there; on the disk when it is flushed. A part may be there if the disk refuses.

    Raises OSError.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        write_all(descriptor, content)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, content: bytes | memoryview) -> None:
    """All of it, though a disk may take a part and say so."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def flush(path: Path) -> None:
    """Of a file, what was written to it, of a folder, the names in it are on the disk when this returns. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """The folder and those above it, on the disk when this returns. One that is there already is left as it is. Raises OSError."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    os.mkdir(folder)
    flush(folder.parent)


def replace_file(path: Path, content: bytes) -> None:
    """The file appears whole, in the place of what was there, or not at all.

    Raises UserError if the disk refuses; nothing half-made is left then.
    """
    temporary = temporary_name(path)
    with told(path):
        try:
            write_durably(temporary, content)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        flush(path.parent)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill with files that are written durably; at the end of the `with` it appears as `folder`, which must not hold anything yet.

    Raises UserError if the disk refuses; after an error nothing half-made is left.
    """
    temporary = temporary_name(folder)
    with told(folder):
        try:
            make_folder(folder.parent)
            os.mkdir(temporary)
            yield temporary
            flush(temporary)
            os.rename(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        flush(folder.parent)


def retire(path: Path) -> None:
    """Out of sight at once, so that a folder is never seen half removed; the next sweep takes it away. Raises UserError if the disk refuses."""
    with told(path, "removed"):
        os.rename(path, temporary_name(path))


def sweep(folder: Path) -> None:
    """Away with what was retired, or never finished. Raises UserError if the disk refuses."""
    for path in found(folder, f"{TEMPORARY}*"):
        with told(path, "removed"):
            shutil.rmtree(path) if path.is_dir() else os.unlink(path)


def found(folder: Path, pattern: str) -> list[Path]:
    """What is in the folder under such a name. Raises UserError if the disk refuses."""
    with told(folder, "read"):
        return sorted(folder.glob(pattern))


def temporary_name(path: Path) -> Path:
    """Beside the path, of this process alone."""
    return path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
