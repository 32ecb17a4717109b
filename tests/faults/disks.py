"""Disks that really refuse, under the whole of `ttr train`: one sentence with the path and exit code 2, earlier saves whole, nothing half-made.

Then there is room again, the run goes on, and its end is that of one that was never stopped. Full and read-only disks are small ones in memory,
mounted for a process of their own where the system allows it.
"""

import ctypes
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ttr_fast import cli
from ttr_fast.training.saves import Saves

from .forks import run_forked, warm
from .kills import look_at_run, training
from .resume import stopped_by
from .states import leftovers, outcome
from .tables import Findings
from .writing import write_slice

STEPS, STOPPED = 12, 6
NEW_MOUNTS, PRIVATE, REMOUNT, READ_ONLY = 0x20000, 0x44000, 0x20, 0x1
"""CLONE_NEWNS, MS_REC | MS_PRIVATE, MS_REMOUNT, MS_RDONLY."""
PAGE = 4096
SIGTERM = 15


def command(arguments: list[str]) -> None:
    """As the script `ttr` does."""
    sys.argv = ["ttr", *arguments]
    cli.main()


def stop(arguments: list[str]) -> None:
    """Half a run."""
    with stopped_by(SIGTERM, STOPPED):
        command(arguments)


def mount(folder: Path, flags: int = 0) -> None:
    """A disk in memory of 4 MB; with flags, the one that is there is changed. Raises OSError if the system does not allow it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, b"size=4m"):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def own_mounts() -> None:
    """This process's mounts are its own. Raises OSError if the system does not allow it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "unshare") or libc.unshare(NEW_MOUNTS) or libc.mount(b"none", b"/", None, PRIVATE, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextmanager
def full(disk: Path, pages: int) -> Iterator[None]:
    """Only so many pages are free."""
    filler = disk / "filler"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    filler.write_bytes(bytes(free - pages * PAGE))
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    """Nothing can be changed."""
    mount(disk, REMOUNT | READ_ONLY)
    try:
        yield
    finally:
        mount(disk, REMOUNT)


def with_limit(most: int, arguments: list[str]) -> None:
    """No file may be longer."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    command(arguments)


def half(arguments: list[str], log: Path) -> None:
    """Half a run. Raises RuntimeError if it fails."""
    end = run_forked(partial(stop, arguments), log)
    if end.code:
        raise RuntimeError(f"half a run fails: {end.said}")


@dataclass(frozen=True)
class Attempt:
    """Half a run lies in a folder, and somebody goes on with it."""

    folder: Path
    log: Path
    expected: dict[str, str]
    """What is there at the end of a run that was never stopped."""

    def goes_through(self, meaning: str = "", run: Callable[[list[str]], object] = command) -> bool:
        """Whether `run` came to the end, which is the expected one; if not, it was refused as it has to be, with this meaning."""
        saves = Saves(self.folder / "saves")
        before = max(saves.steps())
        end = run_forked(partial(run, ["train", "--resume", str(self.folder)]), self.log)
        sentence = end.said.strip().splitlines()[-1]
        if end.code == 0:
            assert outcome(self.folder) == self.expected, "the end differs from that of a run that was never stopped"
            return True
        assert end.code == 2, f"exit code {end.code}: {end.said[-2000:]}"
        assert sentence.startswith(f"ttr: {self.folder}"), f"told: {sentence}"
        assert sentence.endswith(meaning), f"told: {sentence}"
        assert look_at_run(self.folder).acknowledged >= before, f"of step {before} there is no more than {saves.steps()}"
        assert not leftovers(self.folder), f"left: {leftovers(self.folder)}"
        return False


def on_small_disk(first: Callable[[Path], list[str]], disk: Path, log: Path, expected: dict[str, str], told: Path) -> None:
    """In a process of its own; what was found goes into the file `told`."""
    findings, attempt = Findings(), Attempt(disk / "run", log, expected)
    try:
        own_mounts()
        mount(disk)
    except OSError as error:
        findings.rows.append({"disk": "small", "refusals": 0, "then": f"not allowed here: {error.strerror}"})
    else:
        half(first(attempt.folder), log)
        shutil.copytree(attempt.folder, kept := disk / "kept")
        through, pages = False, 0
        while not through and not findings.wrong:
            with findings.expecting(f"full but for {pages} pages"), full(disk, pages):
                through = attempt.goes_through("No space left on device")
            pages += 1
        findings.rows.append({"disk": "full", "refusals": pages - 1, "then": "equal" if through else "WRONG"})
        shutil.rmtree(attempt.folder)
        shutil.copytree(kept, attempt.folder)
        with findings.expecting("read-only"):
            with read_only(disk):
                assert not attempt.goes_through("Read-only file system"), "a read-only disk was written to"
            assert attempt.goes_through(), "it does not go on when the disk can be written"
            findings.rows.append({"disk": "read-only", "refusals": 1, "then": "equal"})
    told.write_text(json.dumps({"rows": findings.rows, "wrong": findings.wrong}))


def report(seed: int, folder: Path, json_path: Path | None) -> int:
    """The command; nothing is drawn."""
    start, findings = time.perf_counter(), Findings()
    warm()
    job = training(write_slice(folder / "flights.csv", 12), STEPS)
    log, straight, limited, disk = (folder / name for name in ("log.txt", "straight", "limited", "disk"))
    end = run_forked(partial(command, job.first(straight)), log)
    if end.code:
        raise RuntimeError(f"training fails: {end.said}")
    expected = outcome(straight)
    sizes = sorted(path.stat().st_size for path in Saves(straight / "saves").path(STEPS).iterdir())
    half(job.first(limited), log)
    attempt = Attempt(limited, log, expected)
    for size in sizes[1:]:  # what a process says is longer than the shortest
        with findings.expecting(f"no file over {size - 1} bytes"):
            assert not attempt.goes_through("File too large", partial(with_limit, size - 1)), "a file is longer than it may be"
    with findings.expecting("no limit again"):
        assert attempt.goes_through(), "it does not go on without the limit"
        findings.rows.append({"disk": "no long files", "refusals": len(sizes) - 1, "then": "equal"})
    disk.mkdir()
    end = run_forked(partial(on_small_disk, job.first, disk, log, expected, folder / "told.json"), folder / "small.txt")
    if end.code:
        raise RuntimeError(f"the small disk: {end.said}")
    found = json.loads((folder / "told.json").read_bytes())
    findings.rows += found["rows"]
    findings.wrong += found["wrong"]
    return findings.finish(f"{sum(row['refusals'] for row in findings.rows)} refusals in {time.perf_counter() - start:.0f} s", json_path)
