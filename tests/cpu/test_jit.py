"""The decorator: compiled once, found again by another process, never when a source has changed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ttr_fast.cpu.jit import KernelFiles

ROOT = Path(__file__).parents[2]

PROGRAM = """
from ttr_fast.cpu import dep
from ttr_fast.cpu.jit import cache_folder, kernel
def make(n):
    @kernel(n)
    def plus(x):
        return dep.step(x) + n
    return plus
a, b = make(1), make(10)
print(a(5), b(5), sum(a.stats.cache_hits.values()), sum(b.stats.cache_hits.values()))
"""


def run(folder: Path, **environment: str) -> list[int]:
    """The program in a copy of the package, with a cache of its own."""
    (folder / "program.py").write_text(PROGRAM)
    variables = os.environ | {"NUMBA_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(folder)} | environment
    done = subprocess.run([sys.executable, folder / "program.py"], env=variables, cwd=folder, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def test_what_another_file_changes_is_compiled_again(tmp_path: Path) -> None:
    """Two kernels made by one function for two specifications, each calling a function of another file."""
    package = tmp_path / "ttr_fast" / "cpu"
    shutil.copytree(ROOT / "ttr_fast" / "cpu", package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "ttr_fast" / "__init__.py").touch()
    dep = package / "dep.py"
    dep.write_text("from ttr_fast.cpu.jit import kernel\n@kernel()\ndef step(x):\n    return x + 100\n")
    assert run(tmp_path) == [106, 115, 0, 0]
    assert run(tmp_path) == [106, 115, 1, 1]
    dep.write_text(dep.read_text().replace("100", "200"))
    assert run(tmp_path) == [206, 215, 0, 0]
    assert run(tmp_path, NUMBA_BOUNDSCHECK="1") == [206, 215, 0, 0]


SISTERS = """
import sys
from ttr_fast.cpu.jit import kernel
def make(n):
    @kernel(n)
    def part(x):
        return x * n
    @kernel(n)
    def whole(x):
        total = 0
        for i in range(x):
            total += part(i)
        return total
    return whole
print(*(make(int(n))(3) for n in sys.argv[1:]))
"""


def test_sisters_compiled_by_different_processes_stay_apart(tmp_path: Path) -> None:
    """Each of two processes compiles one; a third loads both. Their symbols must not meet."""
    program = tmp_path / "sisters.py"
    program.write_text(SISTERS)
    variables = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    outputs = [
        subprocess.run([sys.executable, program, *which], env=variables, capture_output=True, text=True, check=True).stdout.split()
        for which in (["2"], ["50"], ["2", "50"])
    ]
    assert outputs == [["6"], ["150"], ["6", "150"]]


def test_a_cache_that_cannot_be_written_is_passed_over(tmp_path: Path) -> None:
    """A file stands where the folder should be: the next place serves."""
    (tmp_path / "file").touch()
    code = "from ttr_fast.cpu.jit import cache_folder; print(cache_folder())"
    home = tmp_path / "home"
    variables = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "file"), "XDG_CACHE_HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", code], env=variables, cwd=ROOT, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_relative_to(home / "temporal-transformer")


INNER = """
import sys
from ttr_fast.cpu.jit import cache_folder, inner, kernel
@inner()
def step(x):
    if x > 100:
        raise ValueError("too far")
    if x == 7:
        print("seven", x)
    return x + 1
@inner()
def twice(x):
    return step(step(x))
@kernel()
def whole(x):
    return twice(x) + step(x)
print(whole(6), sum(whole.stats.cache_hits.values()), len(list(cache_folder().glob("*.nbc"))), len(step.overloads))
for compiled in (*step.overloads.values(), *twice.overloads.values()):
    print(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name))
try:
    whole(100)
except ValueError as error:
    print(error)
"""


def test_inner_kernels_are_parts_of_their_callers(tmp_path: Path) -> None:
    """No machine code and no file of their own; what they print and raise is the caller's; from the cache the caller comes alone."""
    program = tmp_path / "program.py"
    program.write_text(INNER)
    variables = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    outputs = [
        subprocess.run([sys.executable, program], env=variables, capture_output=True, text=True, check=True).stdout.splitlines() for _ in range(2)
    ]
    assert outputs == [["seven 7", "15 0 1 1", "0", "0", "too far"], ["seven 7", "15 1 1 0", "too far"]]


def test_two_processes_that_save_at_once_keep_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have read the index before either wrote: the slower one wins it, and no file of the other holds what is not its."""
    one, other = (KernelFiles(str(tmp_path), "kernel", "sources") for _ in range(2))
    with monkeypatch.context() as patched:
        patched.setattr(KernelFiles, "_load_index", lambda self: {})
        one.save("float32", "code for float32")
        other.save("float64", "code for float64")
    assert len(list(tmp_path.glob("*.nbc"))) == 2
    assert (one.load("float32"), one.load("float64")) == (None, "code for float64")
    one.save("float32", "code for float32")
    assert (other.load("float32"), other.load("float64")) == ("code for float32", "code for float64")
