"""Team kernels: every worker comes by once, what fails is heard of, small work is one worker's."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from numba import config, get_num_threads

from tests.cpu.storages import threads
from ttr_fast.cpu import team as module
from ttr_fast.cpu.team import share, team

ROOT = Path(__file__).parents[2]


@team()
def come_by(worker, workers, came, factor, pair):
    """Each worker adds to its own place."""
    came[worker] += factor * pair[0] + workers


@team()
def fail_second(worker, workers, came):
    """One of them raises."""
    if worker == 1:
        raise ValueError("here")
    came[worker] = 1


@team()
def take_share(worker, workers, owner):
    """Who has which of the things that lie side by side."""
    first, end = share(worker, workers, owner.size)
    for i in range(first, end):
        owner[i] += 1 + worker


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_every_worker_comes_by_once(count: int, dtype: type) -> None:
    """With arrays, numbers and tuples as arguments, of several types under one name."""
    count = min(count, config.NUMBA_NUM_THREADS)
    with threads(count):
        came = np.zeros(4, dtype)
        come_by(came, np.float32(3), (2, 0.5))
    assert came.tolist() == [6 + count] * count + [0] * (4 - count)


def test_what_one_worker_raises_is_raised() -> None:
    with threads(min(2, config.NUMBA_NUM_THREADS)):
        assert get_num_threads() == 2
        with pytest.raises(RuntimeError, match="a kernel failed in one of its workers"):
            fail_second(np.zeros(2))


@pytest.mark.parametrize("size", [0, 1, 2, 7, 64])
def test_shares_cover_everything_once(size: int) -> None:
    owner = np.zeros(size)
    take_share(owner)
    assert set(owner.tolist()) <= {1.0, 2.0}
    assert (np.diff(owner) >= 0).all()


def test_small_work_is_one_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest argument decides, and no more workers come than there are threads."""
    monkeypatch.setattr(module, "WORTH_A_WORKER", 80)
    for size, expected in ((9, 1), (10, 2), (1000, 2)):
        came = np.zeros(size)
        come_by(came, 0.0, (0, 0.0))
        assert np.count_nonzero(came) == min(expected, get_num_threads())


INTERRUPTED = """
import signal
import numpy as np
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs in the background ignores it
from ttr_fast.cpu.linear import linear_forward
x, y = np.ones((64, 64), np.float32), np.zeros((64, 64), np.float32)
print("now", flush=True)
try:
    linear_forward(x, x, y)
except KeyboardInterrupt:
    linear_forward(x, x, y)
    print("again", y.min(), y.max(), flush=True)
"""


@pytest.mark.parametrize("after", [0.3, 0.9])
def test_an_interrupt_while_compiling_spoils_nothing(after: float, tmp_path: Path) -> None:
    """It is raised when what is being compiled is done, and what was compiled serves."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        said, complaints = process.communicate()
    assert (said, process.returncode) == ("again 64.0 64.0\n", 0), complaints
