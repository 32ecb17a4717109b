"""The list of faults fits the oracle as it stands."""

from pathlib import Path

import pytest

from .faults import Fault, all_faults, with_fault

ORACLE = Path(__file__).parents[2] / "ttr_ref"
FEWEST = 36
EXAMPLE = Fault("example", "example.py", "a + b", "a - b", "why")


@pytest.mark.parametrize("fault", all_faults(), ids=lambda fault: fault.name)
def test_the_original_occurs_once_and_the_faulty_is_python(fault: Fault) -> None:
    source = (ORACLE / fault.file).read_text(encoding="utf-8")
    assert with_fault(source, fault) != source


def test_there_are_enough_and_no_two_are_the_same() -> None:
    faults = all_faults()
    assert len(faults) >= FEWEST
    assert len({fault.name for fault in faults}) == len(faults)
    assert len({(fault.file, fault.original, fault.faulty) for fault in faults}) == len(faults)


@pytest.mark.parametrize(
    "source, faulty, message",
    [("a + b\na + b\n", "a - b", "occurs 2 times"), ("b + a\n", "a - b", "occurs 0 times"), ("a + b\n", "a -", "is no Python")],
)
def test_a_fault_that_does_not_fit_is_refused(source: str, faulty: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_fault(source, EXAMPLE._replace(faulty=faulty))
