"""The table of --shares, in one process and in two."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("processes", [[], ["--numprocesses", "2"]], ids=len)
def test_the_largest_share_of_a_test(processes: list[str]) -> None:
    """The worst case of a function, the worst function first; the sines of UNIX times use some of their limit, periods less."""
    chosen = [f"tests/ref/test_time2vec.py::{name}" for name in ("test_geometric_periods", "test_phases_at_unix_times")]
    command = [sys.executable, "-m", "pytest", *chosen, "--shares", *processes, "-p", "no:cacheprovider"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [line for line in said.partition("largest shares of derived limits")[2].splitlines() if "::" in line]
    shares = [float(line.split()[0]) for line in lines]
    assert [line.split()[1] for line in lines] == ["ref/test_time2vec.py::test_phases_at_unix_times", "ref/test_time2vec.py::test_geometric_periods"]
    assert 1 > shares[0] > shares[1] > 0
