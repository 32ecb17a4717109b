"""Faults on purpose: python -m tests.faults kills|calls|bits|resume [options]. Exit code 1 if anything was damaged, lost, untold or different."""

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
    kills.add_argument("--count", type=int, default=200, help="kills of each command")
    kills.add_argument("--steps", type=int, default=60, help="steps of each training")
    kills.add_argument("--aircraft", type=int, default=12, help="whose flights are trained on")
    calls = command("calls", "a fault at every system call of whatever is written")
    calls.add_argument("--every", type=int, default=1, help="try every n-th call only")
    calls.add_argument("--strace", action="store_true", help="compare the calls with those that the kernel saw")
    return main


def main() -> int:
    """One command, in a temporary folder."""
    # before NumPy comes: a process that has threads cannot be forked, and what is small gains nothing from them
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    options = vars(parser().parse_args())
    module = importlib.import_module(f"{__package__}.{options.pop('command')}")
    with tempfile.TemporaryDirectory(prefix="temporal-transformer-faults-", dir=options.pop("on")) as folder:
        return module.report(folder=Path(folder), json_path=options.pop("json"), **options)


if __name__ == "__main__":
    sys.exit(main())
