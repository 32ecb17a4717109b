"""scripts/check_gpu.py, the script for a machine with a GPU: what can be tested without one."""

import importlib.util
import json
import signal
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from ttr_fast.cuda import found

PATH = Path(__file__).parents[2] / "scripts" / "check_gpu.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_gpu", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu(script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A sentence, and nothing is installed or run."""
    monkeypatch.setattr(found, "driver", lambda: found.Driver((13, 0), ()))
    monkeypatch.setattr(script, "subprocess", None)
    monkeypatch.setattr(sys, "argv", [str(PATH)])
    assert script.main() == 2
    assert capsys.readouterr().err.startswith("check_gpu: the NVIDIA driver shows no GPU; ")


def test_an_interpreter_that_is_not_there(script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A sentence."""
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    monkeypatch.setattr(sys, "argv", [str(PATH), "--python", "no/such/python"])
    assert script.main() == 2
    assert capsys.readouterr().err.startswith("check_gpu: no/such/python: there is no such interpreter, expected one with numba-cuda")


@pytest.mark.parametrize("out", ["no/where/x.json", "."])
def test_a_file_that_cannot_be_written(out: str, script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Is told before anything runs."""
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    monkeypatch.setattr(script, "subprocess", None)
    monkeypatch.setattr(sys, "argv", [str(PATH), "--out", out])
    assert script.main() == 2
    assert capsys.readouterr().err == f"check_gpu: --out {out}: this is no file in a folder that can be written\n"


def test_an_environment_is_looked_for(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages that are missing, an interpreter that is missing, and where kernels are not simulated the compiler."""
    monkeypatch.setattr(script, "NEEDED", ("json", "numpy"))
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "0")
    assert script.has_all(sys.executable) == (found.compiler_obstacle() is None)
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    assert script.has_all(sys.executable)
    assert script.environment() == sys.executable
    monkeypatch.setattr(script, "NEEDED", ("json", "no_such_package"))
    assert not script.has_all(sys.executable)
    assert not script.has_all(str(tmp_path / "python"))


INTERRUPTED = """
import time
try:
    time.sleep(600)
except KeyboardInterrupt:
    print("so far")
"""


def test_stages(script: ModuleType) -> None:
    """One that ends, one that fails, one that takes too long and has started another process, which ends with it, one that says how far it came."""
    assert script.stage(["-c", "print('said')"], 60)["output"] == "said\n"
    assert script.stage(["-c", "raise SystemExit(3)"], 60)["outcome"] == "exit code 3"
    start = time.monotonic()
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    assert script.stage(["-c", child], 2)["outcome"] == "not ended within 2 s"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does to what it starts with &
    try:
        assert script.stage(["-c", INTERRUPTED], 5)["output"] == "so far\n"
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - start < 300


def test_rows_of_tests(script: ModuleType, tmp_path: Path) -> None:
    """Of pytest's own file: what passed, what failed, and what the stage did not reach."""
    (tmp_path / "test_dropout.py").write_text("def test_masks(): pass\ndef test_same_bits(): pass\ndef test_wrong(): assert False\n")
    junit = tmp_path / "tests.xml"
    outcome = script.stage(["-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path), f"--junit-xml={junit}"], 120)["outcome"]
    oracle, masks, bits = script.rows_of_tests(junit, outcome, False)
    assert (oracle["measured"], oracle["met"]) == ("2 of 3 tests pass", False)
    assert "test_wrong" in masks["why"]
    assert (bits["measured"], bits["met"], bits["why"]) == ("1 of 1 tests pass", False, "exit code 1")
    assert script.rows_of_tests(junit, "done", False)[2]["met"]
    missing = script.rows_of_tests(tmp_path / "none.xml", "not ended within 2 s", False)
    assert script.rows_of_tests(tmp_path / "none.xml", "done", True) == []
    assert [(row["measured"], row["met"], row["why"]) for row in missing] == [("0 of 0 tests pass", False, "not ended within 2 s")] * 3


def test_rows_of_speeds(script: ModuleType, tmp_path: Path) -> None:
    """Met, missed, failed, without PyTorch, not reached; and the table of them."""
    told = [
        {"label": "a, GPU", "peer": None, "targets": [{"measure": "TFLOP/s", "measured": 312.0, "at least": 300.0, "met": True}]},
        {"label": "b, GPU", "peer": "torch", "targets": [{"measure": "ratio", "measured": 0.25, "at least": 0.5, "met": False}]},
        {"label": "c, GPU", "peer": None, "error": "out of memory", "targets": [{"measure": "TFLOP/s", "measured": None, "met": None}]},
    ]
    lines = tmp_path / "table.jsonl"
    lines.write_text("".join(json.dumps(line) + "\n" for line in told))
    wanted = [
        ("a, GPU", None, "TFLOP/s", "at least", 300.0), ("b, GPU", "torch", "ratio", "at least", 0.5), ("c, GPU", None, "TFLOP/s", "at least", 1.0),
        ("d, GPU", "torch", "ratio", "at least", 0.5),
    ]  # fmt: skip
    rows = script.rows_of_bench(lines, wanted, "done")
    assert [(row["measured"], row["met"], row["why"]) for row in rows] == [
        ("312", True, ""), ("0.25", False, ""), ("–", False, "out of memory"), ("–", False, "there is no torch"),
    ]  # fmt: skip
    assert script.rows_of_bench(lines, wanted, "not ended within 300 s")[3]["why"] == "not reached: not ended within 300 s"
    heading, rule, *body = script.table(rows).splitlines()
    assert heading.split() == ["asked", "measured", "met"]
    assert set(rule) == {"-"}
    assert body[0].split() == ["a:", "TFLOP/s", "at", "least", "300", "312", "yes"]
    assert body[2].endswith("no  out of memory")


def test_what_is_asked(script: ModuleType) -> None:
    """The speeds of the table, each under a name of its own, in less than ten minutes with all the rest."""
    asked = script.asked()
    assert len({(label, peer, measure) for label, peer, measure, *_ in asked}) == len(asked) > 0
    assert sum(script.BUDGETS.values()) <= 600
