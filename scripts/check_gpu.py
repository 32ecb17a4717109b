"""The one script for a machine with a GPU: what is here, the tests on the device, the benchmarks, and a table of what was asked, measured and met.

    python3 scripts/check_gpu.py                      # makes .venv-cuda unless this Python has all that is needed
    python3 scripts/check_gpu.py --python PATH        # an environment that is there
    python3 scripts/check_gpu.py --only tests --select attention
    python3 scripts/check_gpu.py --only bench --out h200.json

Each stage has its time, ten minutes in all, and what it costs a stage to fail is its own rows of the table. A PyTorch that the Python has is compared
with. Everything that was found is in the file of --out. Exit code: 0 if all that was asked is met, 1 if not, 2 with a sentence if
nothing can be checked.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUDGETS = {"doctor": 30, "tests": 210, "bench": 300}
INSTALL_S = 300
GRACE_S = 15
NEEDED = ("numba", "numba_cuda", "ml_dtypes", "jaxtyping", "msgspec", "tyro", "tqdm", "pytest", "xdist", "hypothesis", "beartype", "greenlet")
TTR = ("-c", "from ttr_fast.cli import main; main()")
TESTS = ("-m", "pytest", "tests/cuda", "--ignore=tests/cuda/test_compiled.py", "-q", "-p", "no:cacheprovider")
GROUPS = {
    "kernels, model and decoder equal the oracle": lambda test: True,
    "dropout masks equal NumPy's bit for bit": lambda test: "test_dropout" in test,
    "runs repeated on the device equal bit for bit": lambda test: "schedule" in test or "same_bits" in test,
}
"""What the tests show, and by the name of which."""


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="the interpreter of an environment with numba-cuda and the tests' packages")
    parser.add_argument("--only", nargs="+", choices=BUDGETS, default=list(BUDGETS), help="stages to run; not given: all")
    parser.add_argument("--select", default="", help="tests to run, as pytest's -k; not given: all of tests/cuda")
    parser.add_argument("--out", type=Path, default=Path("check_gpu.json"), help="where everything goes (default: check_gpu.json)")
    options = parser.parse_args()
    if options.out.is_dir() or not os.access(options.out.parent, os.W_OK):
        print(f"check_gpu: --out {options.out}: this is no file in a folder that can be written", file=sys.stderr)
        return 2
    sys.path.insert(0, str(ROOT))
    from ttr_fast.cuda import found  # needs nothing but Python itself

    simulated = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
    if not simulated and (obstacle := found.device_obstacle(found.driver())) is not None:
        print(f"check_gpu: {obstacle.what}; {obstacle.mend}", file=sys.stderr)
        return 2
    python = shutil.which(options.python) if options.python else environment()
    if python is None:
        if options.python:
            print(f"check_gpu: {options.python}: there is no such interpreter, expected one with numba-cuda and the tests' packages", file=sys.stderr)
        return 2
    if Path(python).absolute() != Path(sys.executable).absolute():
        return subprocess.run([python, *sys.argv, "--python", python], check=False).returncode
    return checked(options)


def environment() -> str | None:
    """An interpreter with all that is needed: this one, or that of .venv-cuda, which is made; None, with a sentence, where that fails."""
    made = ROOT / ".venv-cuda" / "bin" / "python"
    for python in (sys.executable, str(made)):
        if has_all(python):
            return python
    print("Installing into .venv-cuda; packages that this Python has, such as PyTorch, are seen from there.", file=sys.stderr)
    try:
        subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", str(made.parents[1])], check=True, timeout=60)
        subprocess.run([made, "-m", "pip", "install", "-q", "-e", f"{ROOT}[cuda,test]"], check=True, timeout=INSTALL_S)
    except (subprocess.SubprocessError, OSError) as error:
        print(f"check_gpu: the environment could not be made ({error}); name one that is there with --python", file=sys.stderr)
        return None
    return str(made)


def has_all(python: str) -> bool:
    """Whether an interpreter is there and has the packages."""
    look = (
        f"import sys, importlib.util as u; sys.path.insert(0, {str(ROOT)!r}); from ttr_fast.cuda import found; "
        f"sys.exit(any(u.find_spec(name) is None for name in {NEEDED}) or (not found.SIMULATED and found.compiler_obstacle() is not None))"
    )
    try:
        return subprocess.run([python, "-c", look], check=False, capture_output=True, timeout=60).returncode == 0
    except (subprocess.SubprocessError, OSError):
        return False


def checked(options: argparse.Namespace) -> int:
    """All stages, the file and the table."""
    stages: dict[str, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        junit, lines = Path(folder) / "tests.xml", Path(folder) / "table.jsonl"
        selection = ["-k", options.select] if options.select else ["--numprocesses", str(min(8, os.cpu_count() or 1)), "--dist", "worksteal"]
        commands = {
            "doctor": [*TTR, "doctor", "--json"],
            "tests": [*TESTS, *selection, f"--junit-xml={junit}"],
            "bench": [*TTR, "bench", "table", "--backend", "cuda", "--quick", "--json", str(lines)],
        }
        for name in options.only:
            print(f"==== {name}, {BUDGETS[name]} s at most", file=sys.stderr)
            stages[name] = stage(commands[name], BUDGETS[name])
            print(f"---- {name}: {stages[name]['outcome']}, {stages[name]['seconds']:.0f} s", file=sys.stderr)
            if name == "tests":
                rows += rows_of_tests(junit, stages[name]["outcome"], bool(options.select))
            if name == "bench":
                rows += rows_of_bench(lines, asked(), stages[name]["outcome"])
            options.out.write_text(json.dumps({"stages": stages, "rows": rows}, indent=1))
    if rows:
        print(table(rows))
    print(f"everything is in {options.out}", file=sys.stderr)
    return 0 if all(row["met"] for row in rows) and all(s["outcome"] == "done" for s in stages.values()) else 1


def stage(command: list[str], budget_s: float) -> dict[str, Any]:
    """Runs Python with these arguments, and ends it and all that it has started when its time is over; its output is shown and kept."""
    start = time.monotonic()
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  (what a shell starts with & ignores it; one thread)
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=budget_s)
        outcome = "done" if process.returncode == 0 else f"exit code {process.returncode}"
    except subprocess.TimeoutExpired:
        output = stopped(process)
        outcome = f"not ended within {budget_s:g} s"
    print(output, end="", file=sys.stderr)
    return {"command": command, "outcome": outcome, "seconds": time.monotonic() - start, "output": output}


def stopped(process: subprocess.Popen[str]) -> str:
    """Interrupted, so that it can write down how far it came, and killed if it takes long to; its output."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        return process.communicate(timeout=GRACE_S)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()[0]


def rows_of_tests(junit: Path, outcome: str, selected: bool) -> list[dict[str, Any]]:
    """One for each group, of selected tests for those that have any. What was not reached is not met."""
    tests: dict[str, bool] = {}
    if junit.exists():
        for case in ElementTree.parse(junit).iter("testcase"):
            tests[f"{case.get('classname')}::{case.get('name')}"] = case.find("failure") is None and case.find("error") is None
    rows = []
    for asked_for, belongs in GROUPS.items():
        results = {name: passed for name, passed in tests.items() if belongs(name)}
        if selected and not results:
            continue
        failed = [name for name, passed in results.items() if not passed]
        met = bool(results) and not failed and outcome == "done"
        why = "" if met else f"failed: {', '.join(failed)}" if failed else outcome if outcome != "done" else "no such test ran"
        rows.append({"asked": asked_for, "measured": f"{sum(results.values())} of {len(results)} tests pass", "met": met, "why": why})
    return rows


def asked() -> list[tuple[str, str | None, str, str, float]]:
    """(case, peer, measure, at least or at most, wanted) of every speed."""
    from ttr_fast.bench.targets import gpu_targets

    return [(t.case.label, t.peer, t.measure, "at least" if t.least else "at most", t.wanted) for t in gpu_targets(0)]


def rows_of_bench(lines: Path, wanted: list[tuple[str, str | None, str, str, float]], outcome: str) -> list[dict[str, Any]]:
    """One for each speed, with the reason where nothing was measured."""
    results = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    found = {(r["label"], r["peer"], t["measure"]): (t, r.get("error")) for r in results for t in r["targets"]}
    rows = []
    for label, peer, measure, bound, value in wanted:
        against = f" against {peer}" if peer else ""
        target, error = found.get((label, peer, measure), ({"measured": None, "met": None}, None))
        absent = f"not reached: {outcome}" if outcome != "done" else f"there is no {peer or 'result'}"
        why = error or ("" if target["measured"] is not None else absent)
        shown = "–" if target["measured"] is None else f"{target['measured']:.3g}"
        asked_for = f"{label.removesuffix(', GPU')}{against}: {measure} {bound} {value:g}"
        rows.append({"asked": asked_for, "measured": shown, "met": bool(target["met"]), "why": why})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Asked, measured, met."""
    cells = [("asked", "measured", "met"), *((r["asked"], r["measured"], "yes" if r["met"] else f"no  {r['why']}".rstrip()) for r in rows)]
    wide = [max(len(row[i]) for row in cells) for i in range(2)]
    lines = [f"{a:<{wide[0]}}  {b:>{wide[1]}}  {c}" for a, b, c in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


if __name__ == "__main__":
    sys.exit(main())
