"""Faults on purpose: python -m tests.faults kills|calls|disks|bits|resume [options]. Exit code 1 if anything was lost, damaged or not told."""

import argparse
import importlib
import os
import sys
import tempfile
from pathlib import Path

MEMORY = Path("/dev/shm")
"""A disk in memory is quick and loses as little to a killed process as any other."""


def parser() -> argparse.ArgumentParser:
    """The options of each command."""
    main = argparse.ArgumentParser(prog="python -m tests.faults", description="What may go wrong with a process or a disk, done on purpose.")
    commands = main.add_subparsers(dest="command", required=True)

    def command(name: str, what: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=what, description=what, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        added.add_argument("--seed", type=int, default=0, help="of whatever is drawn")
        added.add_argument("--on", type=Path, default=MEMORY if MEMORY.is_dir() else None, metavar="FOLDER", help="folder on the disk to be used")
        added.add_argument("--json", type=Path, metavar="FILE", help="write what was found there too")
        return added

    kills = command("kills", "SIGKILL at random moments, and going on, until all is done")
    kills.add_argument("--count", type=int, default=200, help="kills of training; half as many of preprocessing in one process")
    kills.add_argument("--workers-count", type=int, default=10, help="kills of preprocessing with two workers, of all, and of the first alone")
    kills.add_argument("--steps", type=int, default=60, help="steps of each training")
    kills.add_argument("--aircraft", type=int, default=12, help="whose flights are trained on and preprocessed")
    calls = command("calls", "a fault at every system call of whatever is written")
    calls.add_argument("--every", type=int, default=1, help="try every n-th call only")
    calls.add_argument("--strace", action="store_true", help="compare the calls with those that the kernel saw")
    command("disks", "disks that are really full, or read-only, or refuse long files, under `ttr train`")
    bits = command("bits", "one flipped bit anywhere in a save and in a corpus")
    bits.add_argument("--payload", type=int, default=1000, help="flips among the numbers of each file; headers are flipped byte by byte")
    resume = command("resume", "a run that is stopped and goes on against one in one go")
    resume.add_argument("--steps", type=int, default=100, help="of each run")
    resume.add_argument("--dtypes", nargs="+", default=["f32", "bf16", "f16"], help="storage of activations")
    resume.add_argument("--stops", nargs="+", default=["SIGKILL", "SIGTERM", "SIGUSR1", "SIGINT"], help="signals")
    resume.add_argument("--backend", default="cpu", help="what computes")
    return main


def main() -> int:
    """One command, in a temporary folder."""
    # before NumPy comes: a process that has threads cannot be forked, and what is small gains nothing from them
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    options = vars(parser().parse_args())
    module = importlib.import_module(f"{__package__}.{options.pop('command')}")
    with tempfile.TemporaryDirectory(prefix="temporal-transformer-faults-", dir=options.pop("on")) as folder:
        return module.report(folder=Path(folder), json_path=options.pop("json"), **options)


if __name__ == "__main__":
    sys.exit(main())
