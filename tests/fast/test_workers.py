"""Jobs in several processes: results in order, one error ends all, no worker outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ttr_fast.data.preprocess.workers import Advance, run_all
from ttr_fast.errors import UserError


def task(job: str, advance: Advance) -> str:
    """What the job says, in another process."""
    what, _, value = job.partition(" ")
    if what == "fail":
        wait_until(lambda: written(Path(value)))
        raise UserError("no")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "stay":
        Path(value).write_text(f"{os.getpid()} ")
        time.sleep(60)
    advance(len(value), 1)
    return f"{value} of {os.getpid()}"


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_with_all_progress(workers: int) -> None:
    seen = []
    found = list(run_all(task, [f"say {n}" for n in range(6)], workers, lambda size, rows: seen.append((size, rows))))
    assert [text.partition(" of ")[0] for text in found] == [str(n) for n in range(6)]
    assert [sum(column) for column in zip(*seen, strict=True)] == [6, 6]
    here = [text.endswith(f"of {os.getpid()}") for text in found]
    assert all(here) if workers == 1 else not any(here)


def test_an_error_ends_the_others(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    with pytest.raises(UserError, match="^no$"):
        list(run_all(task, [f"stay {file}", f"fail {file}", "say 1"], 2, lambda size, rows: None))
    wait_until(lambda: not alive(int(file.read_text())))


def test_a_killed_worker_is_told() -> None:
    with pytest.raises(UserError, match="a worker was killed"):
        list(run_all(task, ["die", "say 1"], 2, lambda size, rows: None))


def test_workers_go_when_their_parent_is_killed(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    code = f"from tests.fast.test_workers import run_all, task; list(run_all(task, {[f'stay {file}' for file in files]}, 2, print))"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_until(lambda: all(map(written, files)))
    pids = [int(file.read_text()) for file in files]
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(map(alive, pids)))


def wait_until(condition: Callable[[], bool]) -> None:
    """A generous while, for a busy machine."""
    end = time.monotonic() + 50
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def written(file: Path) -> bool:
    """Whether the whole number is there."""
    return file.exists() and file.read_text().endswith(" ")


def alive(pid: int) -> bool:
    """Whether there is such a process that has not ended (a container's init may leave it as a zombie)."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout.strip()
    return bool(found) and not found.startswith("Z")
