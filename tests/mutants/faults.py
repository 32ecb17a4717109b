"""The list of faults, and how one is put into a copy of the oracle."""

import tomllib
from pathlib import Path
from typing import NamedTuple

LIST = Path(__file__).with_name("faults.toml")


class Fault(NamedTuple):
    """One mistake: `original` in ttr_ref/`file` becomes `faulty`."""

    name: str
    file: str
    original: str
    faulty: str
    why: str

    @property
    def module(self) -> str:
        """The module it is in."""
        return self.file.removesuffix(".py")


def all_faults() -> list[Fault]:
    """The faults in the order of the list."""
    return [Fault(**entry) for entry in tomllib.loads(LIST.read_text(encoding="utf-8"))["fault"]]


def with_fault(source: str, fault: Fault) -> str:
    """The module's source with the fault in it.

    Raises ValueError if the original does not occur exactly once, or if what comes out is no Python.
    """
    if (found := source.count(fault.original)) != 1:
        raise ValueError(f"{fault.name}: the original occurs {found} times in ttr_ref/{fault.file}, expected once")
    changed = source.replace(fault.original, fault.faulty)
    try:
        compile(changed, fault.file, "exec")
    except SyntaxError as error:
        raise ValueError(f"{fault.name}: the faulty ttr_ref/{fault.file} is no Python: {error}") from error
    return changed
