"""The calls that a piece of work makes as the kernel sees them, by strace, against those that were recorded in Python."""

import os
import re
import subprocess
import sys
from pathlib import Path

from .recorder import Call

TRACED = "openat,write,fsync,mkdir,rename,unlink,unlinkat,rmdir"
LINE = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)\)\s+= (?P<result>-?\d+)")
PATH = re.compile(r'"(?P<quoted>[^"]+)"|<(?P<open>[^>]*)>')
SAME = {"openat": "open", "io.open": "open", "replace": "rename", "unlinkat": "unlink", "rmdir": "unlink"}
"""Names of what is the same to the kernel."""


def check_kernel(number: int, folder: Path) -> int:
    """Do the work of that number once more, traced. Asserts that both lists are the same; gives its length."""
    folder.mkdir()
    trace, listed = folder / "trace.txt", folder / "calls.txt"
    there = folder / "there"
    code = f"from tests.faults.kernel import list_calls; list_calls({number}, {str(there)!r}, {str(listed)!r})"
    command = ["strace", "-y", "-s", "0", "-e", f"trace={TRACED}", "-e", "signal=none", "-o", str(trace), sys.executable, "-c", code]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    recorded = [line for line in listed.read_text().splitlines() if line]
    lines = trace.read_text(errors="replace").splitlines()
    begin = next(i for i, line in enumerate(lines) if f"{there}-begins" in line)
    seen = [text for line in lines[begin:] if (text := kernel_call(line, str(there)))]
    assert seen == recorded, f"the kernel saw {len(seen)} calls, recorded are {len(recorded)}; first different: {first_different(seen, recorded)}"
    return len(seen)


def first_different(seen: list[str], recorded: list[str]) -> str:
    """Both at the first place where they part."""
    n = next((i for i, (a, b) in enumerate(zip(seen, recorded, strict=False)) if a != b), min(len(seen), len(recorded)))
    return f"{seen[n : n + 1]} and {recorded[n : n + 1]}"


def kernel_call(line: str, there: str) -> str | None:
    """A line of strace in the form of the list; None for what is about something else, or only lists a folder."""
    match = LINE.match(line)
    if match is None or "O_DIRECTORY" in line:
        return None
    paths = [m["quoted"] or m["open"] for m in PATH.finditer(match["arguments"])]
    name = SAME.get(match["name"], match["name"])
    if len(paths) > 1 and name != "rename":  # relative to an open folder
        paths = [paths[1] if paths[1].startswith("/") else f"{paths[0]}/{paths[1]}"]
    return f"{name} {' '.join(paths)}" if paths and (paths[0] == there or paths[0].startswith(f"{there}/")) else None


def recorded_call(call: Call) -> str | None:
    """The same of a recorded one."""
    name = SAME.get(call.name, call.name)
    return f"{name} {call.path} {call.to}".rstrip() if name in ("open", "write", "fsync", "mkdir", "rename", "unlink") else None


def list_calls(number: int, folder: str, listed: str) -> None:
    """In the traced process: prepare, mark the beginning, do the work, write what was recorded."""
    from .calls import recorded
    from .works import WORKS

    there = Path(folder)
    recorded(WORKS[number], there.with_name("warm"))
    calls = recorded(WORKS[number], there, begin=lambda: os.mkdir(f"{there}-begins"))
    Path(listed).write_text("\n".join(filter(None, map(recorded_call, calls))))
