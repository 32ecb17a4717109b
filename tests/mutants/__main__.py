"""Seed each fault into a copy of the sources and see that the tests catch it: python -m tests.mutants [--cpu | --cuda] [-k NAME] [--jobs N] [--list].

Exit code 1 if a fault survives, if the list does not fit the sources, or if the tests fail without any fault. A fault of the kernels is compiled in a
cache of its own, and one test has to catch it: what does not compile proves nothing.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter
from typing import NamedTuple

import pytest

from ttr_fast.cpu.panels import PAIRS

from .faults import CPU, CUDA, ORACLE, Fault, Target, with_fault
from .likely_first import DURATIONS, MODULE

ROOT = Path(__file__).parents[2]
COPIED = ("ttr_ref", "ttr_fast", "tests", "pyproject.toml")
SUITE = ("tests/ref", "tests/gradients")
CACHE = "kernels"
LONGEST = 900
"""Seconds after which a run of the tests is given up."""


class Outcome(NamedTuple):
    """What became of one fault: the first test that failed, or None and what pytest said."""

    fault: Fault
    caught_by: str | None
    seconds: float
    said: str


def copy_of_repository(folder: Path) -> Path:
    """A copy of what the tests need, without bytecode: a changed file could be as old and as long as its compiled form says."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / name)
    return folder


def pytest_in(target: Target, folder: Path, tests: tuple[str, ...], module: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the tests there until one fails; `module` has a fault, and kernels of its own."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=short", "--no-header", "-p", "no:cacheprovider", "-p", "tests.mutants.likely_first"]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2", "COLUMNS": "200"}
    if target.simulated:
        environment |= {"NUMBA_ENABLE_CUDASIM": "1"}
    if module:
        environment |= {MODULE: module, "NUMBA_CACHE_DIR": str(folder / CACHE)}
    return subprocess.run([*command, *tests], cwd=folder, env=environment, capture_output=True, text=True, timeout=LONGEST, check=False)


def outcome_of(target: Target, fault: Fault, free: SimpleQueue[Path]) -> Outcome:
    """Seed the fault into a free copy, run the tests, restore the copy. Caught is what fails a test; an error outside of tests proves nothing."""
    start, folder = perf_counter(), free.get()
    path = folder / target.folder / fault.file
    source = path.read_text(encoding="utf-8")
    try:
        path.write_text(with_fault(source, fault), encoding="utf-8")
        done = pytest_in(target, folder, (fault.test,) if fault.test else SUITE, fault.module)
    except subprocess.TimeoutExpired:
        return Outcome(fault, None, perf_counter() - start, f"The tests still ran after {LONGEST} s.")
    finally:
        path.write_text(source, encoding="utf-8")
        shutil.rmtree(folder / CACHE, ignore_errors=True)
        free.put(folder)
    proves = done.returncode == pytest.ExitCode.TESTS_FAILED and "numba.core.errors" not in done.stdout
    failed = re.search(r"^FAILED (.+?)(?: - .*)?$", done.stdout, re.MULTILINE) if proves else None
    caught_by = failed and failed[1].encode("ascii", "backslashreplace").decode("unicode_escape")  # pytest escapes Δ, τ and × in names
    return Outcome(fault, caught_by, perf_counter() - start, done.stdout[-3000:] + done.stderr[-1000:])


def is_sound(target: Target, faults: list[Fault], folders: list[Path], pool: ThreadPoolExecutor) -> bool:
    """Whether the tests pass without any fault. How long each takes is then known in every folder."""
    sound, seconds = True, dict[str, float]()
    named = sorted({fault.test for fault in faults if fault.test})
    parts = [tuple(named[i::2]) for i in range(min(2, len(named)))] or [(part,) for part in SUITE]
    for done in pool.map(partial(pytest_in, target), [folders[i % len(folders)] for i in range(len(parts))], parts):
        print(done.stdout.strip().splitlines()[-1], flush=True)
        if done.returncode:
            sound = False
            print(done.stdout[-3000:] + done.stderr[-1000:])
    for written in (folder / DURATIONS for folder in folders):
        seconds |= json.loads(written.read_text(encoding="utf-8")) if written.exists() else {}
    for folder in folders:
        (folder / DURATIONS).write_text(json.dumps(seconds), encoding="utf-8")
    return sound


def survivors(target: Target, faults: list[Fault], folders: list[Path], pool: ThreadPoolExecutor) -> list[Fault]:
    """Seed them all, tell of each as it is known, and return those that no test catches."""
    free: SimpleQueue[Path] = SimpleQueue()
    for folder in folders:
        free.put(folder)
    living = []
    for count, future in enumerate(as_completed([pool.submit(outcome_of, target, fault, free) for fault in faults]), 1):
        fault, caught_by, seconds, said = future.result()
        head = f"[{count}/{len(faults)}] {seconds:4.0f} s"
        if caught_by is None:
            living.append(fault)
            print(f"{head}  SURVIVES  {fault.name}\n{said}", flush=True)
        else:
            print(f"{head}  {fault.name}\n{'':{len(head)}}    {caught_by}", flush=True)
    return living


def main() -> int:
    """Copy, check without faults, seed, and say what survived."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="Seed faults into the sources; the tests must catch each.")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--cpu", action="store_const", dest="target", const=CPU, default=ORACLE, help="into ttr_fast's kernels in place of the oracle")
    where.add_argument("--cuda", action="store_const", dest="target", const=CUDA, help="into the kernels for GPUs, which run in the simulator")
    parser.add_argument("-k", metavar="NAME", default="", help="only faults whose name or file contains NAME")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="how many at a time (default: 2)")
    parser.add_argument("--list", action="store_true", help="list the faults and why one would make them")
    options = parser.parse_args()
    target = options.target
    faults = [fault for fault in target.faults if (options.k in fault.name or options.k in fault.file) and (PAIRS or not fault.pairs)]
    if not faults or options.jobs < 1:
        parser.error(f"no fault is called {options.k}" if not faults else f"--jobs must be at least 1, got {options.jobs}")
    if options.list:
        for fault in faults:
            print(f"{fault.name}\n    {fault.why}")
        return 0
    try:
        for fault in faults:
            with_fault((ROOT / target.folder / fault.file).read_text(encoding="utf-8"), fault)
    except ValueError as error:
        print(error)
        return 1
    start = perf_counter()
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(options.jobs) as pool:
        folders = [copy_of_repository(Path(temporary) / str(job)) for job in range(options.jobs)]
        if not is_sound(target, faults, folders, pool):
            print("The tests fail without any fault: nothing can be said of the faults.")
            return 1
        living = survivors(target, faults, folders, pool)
    print(f"\n{len(faults) - len(living)} of {len(faults)} faults caught in {perf_counter() - start:.0f} s")
    for fault in living:
        print(f"survives: {fault.name} ({target.folder}/{fault.file})")
    return int(bool(living))


if __name__ == "__main__":
    sys.exit(main())
