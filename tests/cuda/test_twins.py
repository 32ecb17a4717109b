"""The table of twins is sound: each stands beside a function of the oracle, and each forward and backward on the GPU is somebody's twin."""

import re
from functools import reduce
from importlib import import_module
from pathlib import Path

import pytest

from tests.cpu.test_twins import ROOT, functions_of
from tests.cuda.twins import TWINS
from ttr_fast.cuda.jit import Kernel


def test_every_forward_and_backward_on_the_gpu_is_somebodys_twin() -> None:
    """Or a part of one, in its own file."""
    named = {name for twin in TWINS.values() for name in twin.fast}
    assert set[str]().union(*map(functions_of, (ROOT / "ttr_fast" / "cuda").glob("*.py"))) - named == {"linear.linear_forward"}


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_exists_and_its_test_runs_it(name: str) -> None:
    """Each is found, what it stands for too, and the test imports the module it is in, or what is made of it."""
    module, function = name.split(".")
    assert callable(getattr(import_module(f"ttr_ref.{module}"), function))
    source = (Path(__file__).parent / TWINS[name].tested_in).read_text(encoding="utf-8")
    for path in TWINS[name].fast:
        module, *rest = path.split(".")
        fast = reduce(getattr, rest, import_module(f"ttr_fast.cuda.{module}"))
        assert callable(fast) or isinstance(fast, Kernel)
        modules = {module, TWINS[name].tested_in.removeprefix("test_").removesuffix(".py")}
        assert any(re.search(rf"ttr_fast\.cuda(\.{m} import| import .*\b{m}\b)", source) for m in modules)
