"""Disks that really refuse, under the whole of `ttr train`: one sentence with the path and exit code 2, earlier saves whole, nothing half-made.

Then there is room again, the run goes on, and its end is that of one that was never stopped. Full and read-only disks are small ones in memory,
mounted for a process of their own where the system allows it.
"""

import ctypes
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


def refused(folder: Path, log: Path, run: Callable[[list[str]], object], meaning: str) -> None:
    """Half a run lies there; `run` tries to go on with it and is refused."""
    before = Saves(folder / "saves").steps()
    end = run_forked(partial(run, ["train", "--resume", str(folder)]), log)
    sentence = end.said.strip().splitlines()[-1]
    assert end.code == 2, f"exit code {end.code}: {sentence}"
    assert "Traceback" not in end.said, end.said
    assert sentence.startswith(f"ttr: {folder}"), f"told: {sentence}"
    assert sentence.endswith(meaning), f"told: {sentence}"
    look_at_run(folder)
    assert max(Saves(folder / "saves").steps()) >= max(before), f"of {before} there is no more than {Saves(folder / 'saves').steps()}"
    assert not leftovers(folder), f"left: {leftovers(folder)}"


def goes_on(folder: Path, log: Path, expected: dict[str, str]) -> None:
    """There is room again."""
    end = run_forked(partial(command, ["train", "--resume", str(folder)]), log)
    assert end.code == 0, f"going on ended with {end.code}: {end.said}"
    assert outcome(folder) == expected, "the end differs from that of a run that was never stopped"


def on_small_disk(first: Callable[[Path], list[str]], disk: Path, log: Path, expected: dict[str, str], told: Path) -> None:
    """In a process of its own: what was tried and what was wrong goes into the file `told`."""
    findings = Findings()
    try:
        own_mounts()
        mount(disk)
    except OSError as error:
        findings.rows.append({"disk": "small", "tried": 0, "outcome": f"not allowed here: {error.strerror}"})
    else:
        folder = disk / "run"
        half(first(folder), log)
        for pages in range(12):
            with findings.expecting(f"full but for {pages} pages"), full(disk, pages):
                refused(folder, log, command, "No space left on device")
        findings.rows.append({"disk": "full", "tried": 12, "outcome": "told"})
        with findings.expecting("read-only"), read_only(disk):
            refused(folder, log, command, "Read-only file system")
        with findings.expecting("room again"):
            goes_on(folder, log, expected)
        findings.rows.append({"disk": "read-only", "tried": 1, "outcome": "told"})
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
    for size in sizes[1:]:  # what a process says is longer than the shortest
        with findings.expecting(f"no file over {size - 1} bytes"):
            refused(limited, log, partial(with_limit, size - 1), "File too large")
    with findings.expecting("no limit again"):
        goes_on(limited, log, expected)
    findings.rows.append({"disk": "no long files", "tried": len(sizes) - 1, "outcome": "told"})
    disk.mkdir()
    end = run_forked(partial(on_small_disk, job.first, disk, log, expected, folder / "told.json"), folder / "small.txt")
    if end.code:
        raise RuntimeError(f"the small disk: {end.said}")
    found = json.loads((folder / "told.json").read_bytes())
    findings.rows += found["rows"]
    findings.wrong += found["wrong"]
    return findings.finish(f"{sum(row['tried'] for row in findings.rows)} refusals in {time.perf_counter() - start:.0f} s", json_path)
