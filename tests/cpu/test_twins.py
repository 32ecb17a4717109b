"""The table of twins is whole: no forward or backward of the oracle without a kernel, no kernel without a test."""

import ast
import re
from functools import reduce
from importlib import import_module
from pathlib import Path

import pytest

from tests.cpu.twins import TWINS, Twin

ROOT = Path(__file__).parents[2]


def functions_of(path: Path) -> set[str]:
    """module.name of what a file defines and ends in _forward or _backward."""
    defined = [node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
    return {f"{path.stem}.{name}" for name in defined if name.endswith(("_forward", "_backward"))}


def test_every_forward_and_backward_of_the_oracle_has_a_twin() -> None:
    assert set(TWINS) == set[str]().union(*map(functions_of, (ROOT / "ttr_ref").glob("*.py")))


def test_every_forward_and_backward_on_the_cpu_is_somebodys_twin() -> None:
    """Or a part of one, in its own file."""
    parts = {"transformer_block.normed_with_time_backward", "rms_norm.rms_norm_add_forward", "linear.linear_forward"}
    named = {name for twin in TWINS.values() for name in twin.fast}
    assert set[str]().union(*map(functions_of, (ROOT / "ttr_fast" / "cpu").glob("*.py"))) - named == parts


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_exists_and_its_test_runs_it(name: str) -> None:
    """Each is found, and the test imports the module it is in, or the whole model."""
    twin: Twin = TWINS[name]
    source = (ROOT / "tests" / "cpu" / twin.tested_in).read_text(encoding="utf-8")
    for path in twin.fast:
        module, *rest = path.split(".")
        assert callable(reduce(getattr, rest, import_module(f"ttr_fast.cpu.{module}")))
        modules = {module, "model", "attention"} if twin.tested_in in ("test_model.py", "test_attention.py") else {module}
        assert any(re.search(rf"ttr_fast\.cpu(\.{m} import| import .*\b{m}\b)", source) for m in modules)
