"""The lists of faults fit the sources as they stand."""

from pathlib import Path

import pytest

from .faults import CPU, CUDA, ORACLE, Fault, Target, with_fault

ROOT = Path(__file__).parents[2]
FEWEST = {ORACLE: 36, CPU: 25, CUDA: 25}
EXAMPLE = Fault("example", "example.py", "a + b", "a - b", "why")


@pytest.mark.parametrize(
    "target, fault", [pytest.param(target, fault, id=f"{target.list_name}, {fault.name}") for target in FEWEST for fault in target.faults]
)
def test_the_original_occurs_once_and_the_faulty_is_python(target: Target, fault: Fault) -> None:
    source = (ROOT / target.folder / fault.file).read_text(encoding="utf-8")
    assert with_fault(source, fault) != source


@pytest.mark.parametrize("target", FEWEST, ids=lambda target: target.list_name)
def test_there_are_enough_and_no_two_are_the_same(target: Target) -> None:
    faults = target.faults
    assert len(faults) >= FEWEST[target]
    assert len({fault.name for fault in faults}) == len(faults)
    assert len({(fault.file, fault.original, fault.faulty) for fault in faults}) == len(faults)


@pytest.mark.parametrize("fault", CPU.faults + CUDA.faults, ids=lambda fault: fault.name)
def test_each_fault_of_the_kernels_names_a_test(fault: Fault) -> None:
    path, _, name = fault.test.partition("::")
    assert f"def {name.partition('[')[0]}(" in (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "source, faulty, message",
    [("a + b\na + b\n", "a - b", "occurs 2 times"), ("b + a\n", "a - b", "occurs 0 times"), ("a + b\n", "a -", "is no Python")],
)
def test_a_fault_that_does_not_fit_is_refused(source: str, faulty: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_fault(source, EXAMPLE._replace(faulty=faulty))
