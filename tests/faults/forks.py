"""Processes that start at once: forked from this one, which has imported everything and has a single thread."""

import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

DIED = 77
"""Exit code of a process that ended itself where it was told to."""


class End(NamedTuple):
    """How a process ended."""

    killed: bool
    code: int
    said: str


WARM = (
    "matplotlib.pyplot", "safetensors.numpy", "tqdm", "tyro",
    "ttr_fast.cli", "ttr_fast.commands.train", "ttr_fast.commands.preprocess", "ttr_fast.training.plots",
)  # fmt: skip


def warm() -> None:
    """Import what a command imports on its way, so that no fork has to."""
    for module in WARM:
        importlib.import_module(module)


def forked(work: Callable[[], object], log: Path) -> int:
    """The process that does the work, its own group's leader, its output in the log."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.setpgid(pid, pid)  # here too, as either may be first
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        for stream in (1, 2):
            os.dup2(said, stream)
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int, log: Path) -> End:
    """Wait for it."""
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return End(code == -signal.SIGKILL, code, log.read_text(errors="replace") if log.exists() else "")


def killed_after(seconds: float, work: Callable[[], object], log: Path, whole_group: bool = True) -> End:
    """Do the work and send SIGKILL after so many seconds, whatever it is doing then, to all its processes or to the first alone."""
    pid = forked(work, log)
    time.sleep(seconds)
    (os.killpg if whole_group else os.kill)(pid, signal.SIGKILL)  # one that has ended is there until it is waited for
    return ended(pid, log)


def run_forked(work: Callable[[], object], log: Path) -> End:
    """Do the work to its end."""
    return ended(forked(work, log), log)
