"""The commands of this package, small, as anyone would run them; and that the checks themselves notice what is wrong."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from .forks import run_forked
from .kills import preprocessing, run_command
from .recorder import Call, disorder
from .writing import write_parts

ROOT = Path(__file__).parents[2]
SMALL = {
    "kills": ["--count", "6", "--workers-count", "1", "--steps", "10"],
    "calls": ["--every", "11"],
    "disks": [],
    "bits": ["--payload", "50"],
    "resume": ["--steps", "30", "--dtypes", "f16", "--stops", "SIGKILL", "SIGTERM", "--backend", "reference"],
}


@pytest.mark.parametrize("command", SMALL)
def test_nothing_is_wrong(command: str, tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    arguments = [sys.executable, "-m", "tests.faults", command, *SMALL[command], "--json", str(found)]
    process = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    result = json.loads(found.read_bytes())
    assert result["wrong"] == []
    assert result["rows"]
    assert process.stdout.endswith(f"{result['summary']}: nothing wrong\n")


def test_a_command_that_was_done_when_it_was_killed_refuses(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Between the rename of a corpus and the end of the process lies a moment that a kill seldom hits."""
    job = preprocessing(write_parts(tmp_path, aircraft=2, copies=1, parts=1), 1, whole_group=True)
    work = partial(run_command, job, job.first(tmp_path), tmp_path / "note")
    with capfd.disabled():
        ends = [run_forked(work, tmp_path / "log.txt") for _ in range(2)]
    assert [end.code for end in ends] == [0, 2]
    assert job.refusal is not None
    assert job.refusal in ends[1].said
    assert "Traceback" not in ends[1].said


def written(path: str, *, flushed: bool = True) -> list[Call]:
    """A file's calls."""
    return [Call("open", path, writes=True), Call("write", path), *([Call("fsync", path)] if flushed else [])]


MADE = [Call("mkdir", "/r/.tmp-a"), *written("/r/.tmp-a/x"), Call("fsync", "/r/.tmp-a"), Call("rename", "/r/.tmp-a", "/r/a"), Call("fsync", "/r")]


@pytest.mark.parametrize(
    "left_out, told",
    [(None, []), (3, ["/r/a had its name before x was flushed"]), (4, ["/r/a had its name before .tmp-a was flushed"]),
     (6, ["/r/.old was removed before the names in /r were flushed", "it ended before the names in /r were flushed"])],
)  # fmt: skip
def test_the_order_of_calls_is_judged(left_out: int | None, told: list[str]) -> None:
    """Each flush that is missing is told."""
    calls = [call for i, call in enumerate([*MADE, Call("unlink", "/r/.old")]) if i != left_out]
    assert disorder(calls) == told
