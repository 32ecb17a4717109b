"""The system calls that a piece of work makes through `os`, in order; one of them can be made to fail, or to be the process's last."""

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

from ttr_fast.durable import TEMPORARY

from .forks import DIED

Fault = Literal["ENOSPC", "EIO", "EROFS", "dies before", "dies after", "short", "half, then ENOSPC", "half, then dies"]
REFUSALS: tuple[Fault, ...] = ("ENOSPC", "EIO", "EROFS", "half, then ENOSPC")
DEATHS: tuple[Fault, ...] = ("dies before", "dies after", "half, then dies")
OF_WRITING: tuple[Fault, ...] = ("short", "half, then ENOSPC", "half, then dies")
"""Those that only a write can have."""
FUNCTIONS = ("open", "write", "fsync", "close", "mkdir", "rename", "replace", "unlink", "rmdir", "scandir", "stat", "lstat")


class Call(NamedTuple):
    """One call."""

    name: str
    path: str
    """Of a call on an open file, that of the file."""
    to: str = ""
    """The new name, of a rename."""
    writes: bool = False
    """Whether an open is for writing."""


class Recorder:
    """Within `with`, calls below a folder are recorded; the one of number `at` has the fault."""

    def __init__(self, folder: Path, at: int | None = None, fault: Fault | None = None) -> None:
        self.folder, self.at, self.fault = str(folder), at, fault
        self.calls: list[Call] = []
        self.open_files: dict[int, str] = {}
        self.real: list[tuple[Any, str, Callable[..., Any]]] = []

    def __enter__(self) -> "Recorder":
        for owner, name in (*((os, name) for name in FUNCTIONS), (io, "open")):
            real = getattr(owner, name)
            self.real.append((owner, name, real))
            setattr(owner, name, self.patched(name if owner is os else "io.open", real))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for owner, name, real in self.real:
            setattr(owner, name, real)

    def path_of(self, first: Any, named: dict[str, Any]) -> str:
        """What a call is about."""
        if isinstance(first, int):
            return self.open_files.get(first, "")
        above = self.open_files.get(named.get("dir_fd") or -1)
        return os.fspath(first) if above is None else f"{above}/{os.fspath(first)}"

    def patched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """The function, recording itself."""

        def call(*arguments: Any, **named: Any) -> Any:
            path = self.path_of(arguments[0] if arguments else named["path"], named)
            if not path.startswith(self.folder):
                return real(*arguments, **named)
            to = os.fspath(arguments[1]) if name in ("rename", "replace") else ""
            mode = arguments[1] if len(arguments) > 1 else named.get("mode", "r")
            writes = bool(mode & os.O_WRONLY) if name == "open" else name == "io.open" and "r" not in mode
            self.calls.append(Call(name, path, to, writes))
            here = len(self.calls) - 1 == self.at
            result = self.faulty(name, real, arguments, named) if here else real(*arguments, **named)
            if name == "open":
                self.open_files[result] = path
            if name == "close":
                self.open_files.pop(arguments[0], None)
            return result

        return call

    def faulty(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """The call with its fault."""
        if self.fault in OF_WRITING:
            descriptor, content = arguments
            written = real(descriptor, content[: len(content) // 2])
            if self.fault == "short":
                return written
        try:
            if self.fault == "dies after":
                real(*arguments, **named)
        finally:
            if self.fault in DEATHS:
                os._exit(DIED)
        if name == "close":
            real(*arguments)  # the kernel has let go of it even if it reports an error
        code = getattr(errno, (self.fault or "").rpartition(" ")[2])
        raise OSError(code, os.strerror(code))


def disorder(calls: list[Call]) -> list[str]:
    """What a power cut could undo at the wrong moment, told by the order of calls.

    Contents are on the disk once their file is flushed, names once their folder is. Nothing may get its final name before its contents and its
    names are there; nothing may be removed, and the work not end, before all final names are there.
    """
    unflushed: set[str] = set()  # files with contents, and folders with names, that a power cut would take
    final: set[str] = set()  # folders with a final name that a power cut would take
    wrong = []
    for name, path, to, writes in calls:
        folder = os.path.dirname(path)
        if writes or name == "write":
            unflushed.add(path)
        if writes or name == "mkdir":
            unflushed.add(folder)
        elif name == "fsync":
            unflushed.discard(path)
            final.discard(path)
        elif name in ("rename", "replace") and not is_temporary(to):
            below = sorted(p for p in unflushed if p == path or p.startswith(f"{path}/"))
            wrong += [f"{to} had its name before {os.path.basename(p)} was flushed" for p in below]
            final.add(os.path.dirname(to))
        elif name in ("rename", "unlink", "rmdir") and final:
            wrong += [f"{path} was removed before the names in {p} were flushed" for p in sorted(final)]
    return wrong + [f"it ended before the names in {p} were flushed" for p in sorted(final)]


def is_temporary(path: str) -> bool:
    """Whether the name is one that is swept."""
    return os.path.basename(path).startswith(TEMPORARY)
