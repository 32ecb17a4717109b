"""Set up before anything of ours is imported: the shapes in signatures are checked, and Hypothesis does the same everywhere.

With --shares the run ends with a table: how much of its limits each test has used.

With the import hook every call of `ttr_ref` in every test checks each argument and result against its annotation; the letters of one signature
(B, T, H, …) must agree with each other.
"""

import os
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir
from jaxtyping import install_import_hook

# threads that wait sleep: tests share their cores with compilers, with each other and with whoever else is there
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# what two threads do is tested on one core too
os.environ.setdefault("NUMBA_NUM_THREADS", "2")
install_import_hook("ttr_ref", "beartype.beartype")

# what Hypothesis remembers between runs, such as examples that failed, lies outside the checkout
set_hypothesis_home_dir(Path(tempfile.gettempdir()) / f"temporal-transformer-hypothesis-{os.getuid()}")
settings.register_profile("local", deadline=None, print_blob=True)
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")

SHARE = "share of a limit"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shares", action="store_true", help="end with a table of the largest share of a derived limit that each test has found")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """The largest share of a test is one of its properties, so that it reaches junit files and the process that shows the table."""
    from tests.ref.bounds import SHARES  # not before the import hook is there

    SHARES.clear()
    result = yield
    if SHARES:
        item.user_properties.append((SHARE, max(SHARES)))
    return result


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """One line for each test function, its worst case, the worst function first."""
    if not config.getoption("shares"):
        return
    worst: dict[str, tuple[float, str]] = {}
    for report in terminalreporter.stats.get("passed", ()):
        function, _, case = report.nodeid.partition("[")
        for name, value in report.user_properties:
            if name == SHARE:
                worst[function] = max(worst.get(function, (0.0, "")), (value, case.rstrip("]")))
    terminalreporter.section("largest shares of derived limits")
    for function, (value, case) in sorted(worst.items(), key=lambda entry: -entry[1][0]):
        terminalreporter.write_line(f"{value:7.3f}  {function.removeprefix('tests/')}  {case}")
