"""The lists of faults, and how one is put into a copy of the sources."""

import tomllib
from pathlib import Path
from typing import NamedTuple


class Target(NamedTuple):
    """What faults are seeded into: the folder of the sources, and the list of faults, whose files are named from there."""

    folder: str
    list_name: str
    simulated: bool = False
    """Whether the tests run in the simulator of the GPU."""

    @property
    def faults(self) -> list["Fault"]:
        """In the order of the list."""
        text = Path(__file__).with_name(self.list_name).read_text(encoding="utf-8")
        return [Fault(**entry) for entry in tomllib.loads(text)["fault"]]


class Fault(NamedTuple):
    """One mistake: `original` in `file` becomes `faulty`."""

    name: str
    file: str
    original: str
    faulty: str
    why: str
    test: str = ""
    """The one test that has to catch it, where all of them would take too long to compile; else any may."""

    pairs: bool = False
    """Whether it shows only where bf16 is multiplied in pairs (AVX512-BF16)."""

    @property
    def module(self) -> str:
        """The module it is in."""
        return Path(self.file).stem


ORACLE = Target("ttr_ref", "faults.toml")
CPU = Target("ttr_fast", "cpu_faults.toml")
CUDA = Target("ttr_fast", "cuda_faults.toml", simulated=True)


def with_fault(source: str, fault: Fault) -> str:
    """The module's source with the fault in it.

    Raises ValueError if the original does not occur exactly once, or if what comes out is no Python.
    """
    if (found := source.count(fault.original)) != 1:
        raise ValueError(f"{fault.name}: the original occurs {found} times in {fault.file}, expected once")
    changed = source.replace(fault.original, fault.faulty)
    try:
        compile(changed, fault.file, "exec")
    except SyntaxError as error:
        raise ValueError(f"{fault.name}: the faulty {fault.file} is no Python: {error}") from error
    return changed
