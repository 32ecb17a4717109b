"""The commands of this package, small, as anyone would run them; and that the checks themselves notice what is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .recorder import Call, disorder

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
