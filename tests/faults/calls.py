"""A fault at every system call of whatever is written: each call fails, each is the last of its process, each write takes a part only.

Afterwards everything earlier is whole, nothing that was acknowledged is lost, the refusal is told with the path, and it can be done again.
The order of the calls is checked too: what a power cut takes is decided by what was flushed when, which no kill of a process shows.
"""

import contextlib
import io
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ttr_fast.durable import TEMPORARY
from ttr_fast.errors import UserError

from .forks import DIED, run_forked
from .recorder import DEATHS, OF_WRITING, REFUSALS, Call, Fault, Recorder, disorder
from .tables import Findings
from .works import WORKS, Work

FAULTS: tuple[Fault, ...] = ("ENOSPC", "EIO", "EROFS", "dies before", "dies after", "short", "half, then ENOSPC", "half, then dies")
MEANING = {"ENOSPC": "No space left on device", "EIO": "Input/output error", "EROFS": "Read-only file system"}


def recorded(work: Work, folder: Path, begin: Callable[[], object] = lambda: None) -> list[Call]:
    """The calls of the work, which succeeds; `begin` is called when all is prepared."""
    folder.mkdir()
    work.prepare(folder)
    begin()
    recorder = Recorder(folder)
    acknowledged, told = quietly(work, folder, recorder)
    assert acknowledged, f"{work.name} fails without a fault: {told}"
    return recorder.calls


def quietly(work: Work, folder: Path, recorder: Recorder) -> tuple[bool, list[str]]:
    """Do it with the fault: (whether it says that it is done, the sentences that the user is told)."""
    with contextlib.redirect_stderr(io.StringIO()) as said, recorder:
        try:
            work.act(folder)
        except UserError as error:
            return False, [*said.getvalue().splitlines(), str(error)]
        except OSError as error:
            raise AssertionError(f"the user gets {error!r}") from error
    return True, said.getvalue().splitlines()


def with_fault(work: Work, folder: Path, prepared: Path, at: int, fault: Fault) -> str:
    """One fault; gives what became of what was to be made."""
    shutil.copytree(prepared, folder)
    recorder = Recorder(folder, at, fault)
    if fault in DEATHS:
        end = run_forked(partial(quietly, work, folder, recorder), folder.with_suffix(".log"))
        assert end.code == DIED, f"the process ended with {end.code}: {end.said}"
        acknowledged = False
    else:
        acknowledged, told = quietly(work, folder, recorder)
        if fault in REFUSALS:
            check_told(told, recorder.calls[at], fault)
            left = [str(path.relative_to(folder)) for path in folder.rglob(f"{TEMPORARY}*")]
            # what is being removed when the disk refuses stays under its temporary name
            assert not left or recorder.calls[at].name in REMOVING, f"left: {left}"
        else:
            assert acknowledged, f"a part of a write is no failure, but the user is told {told}"
    with contextlib.redirect_stderr(io.StringIO()):
        return "done" if work.check(folder, acknowledged) else "not done"


REMOVING = ("rename", "unlink", "rmdir", "scandir", "lstat", "stat", "open", "close")


def check_told(told: list[str], call: Call, fault: Fault) -> None:
    """A sentence with the path of what was refused."""
    meanings = [MEANING[fault.rpartition(" ")[2]]]
    if call.name == "close":
        meanings.append("Bad file descriptor")  # shutil.rmtree closes again what it could not close
    for sentence in told:
        path, _, what = sentence.partition(": ")
        if Path(path).is_absolute() and any(meaning in what for meaning in meanings):
            return
    raise AssertionError(f"told is {told}")


def check_order(work: Work, folder: Path, calls: list[Call]) -> None:
    """Nothing that a power cut could undo at the wrong moment."""
    wrong = disorder(calls)
    assert not wrong, "; ".join(wrong).replace(f"{folder}/", "")
    work.ordered(folder, calls)


def report(seed: int, every: int, strace: bool, folder: Path, json_path: Path | None) -> int:
    """The command: `every` n-th call of each work, from a place that the seed says."""
    start, findings, total = time.perf_counter(), Findings(), 0
    for number, work in enumerate(WORKS):
        recorded(work, folder / f"warm-{number}")  # modules are imported now
        there = folder / f"recorded-{number}"
        calls = recorded(work, there)
        with findings.expecting(f"{work.name}, order of calls"):
            check_order(work, there, calls)
        prepared = folder / f"prepared-{number}"
        prepared.mkdir()
        work.prepare(prepared)
        row: dict[str, object] = {"work": work.name, "calls": len(calls)}
        for fault in FAULTS:
            places = [n for n, call in enumerate(calls) if call.name == "write" or fault not in OF_WRITING]
            tried = places[seed % every :: every]
            for at in tried:
                name = f"{work.name}, call {at + 1} of {len(calls)}, {calls[at].name} {calls[at].path.removeprefix(str(there))}, {fault}"
                one = folder / "one"
                with findings.expecting(name):
                    with_fault(work, one, prepared, at, fault)
                shutil.rmtree(one)
            row[fault] = len(tried)
            total += len(tried)
        if strace:
            from .kernel import check_kernel

            with findings.expecting(f"{work.name}, strace"):
                row["strace"] = check_kernel(number, folder / f"traced-{number}")
        findings.rows.append(row)
    return findings.finish(f"{total} faults in {time.perf_counter() - start:.0f} s", json_path)
