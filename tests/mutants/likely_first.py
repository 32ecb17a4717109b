"""A plugin for pytest: the tests most likely to catch a fault run first, and Hypothesis does not stop to simplify what it found.

Only the order changes: with -x most faults are known after seconds, and one that nothing catches still has met every test.
"""

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import Phase, settings

MODULE = "TTR_FAULTY_MODULE"
"""The environment variable that names the module with the fault; without it the durations of the tests are written down."""
DURATIONS = Path("durations.json")
"""Seconds of each test without faults, in the folder where the tests run."""

measured: dict[str, float] = {}


def durations() -> dict[str, float]:
    """What is known so far."""
    return json.loads(DURATIONS.read_text(encoding="utf-8")) if DURATIONS.exists() else {}


def pytest_configure() -> None:
    """After conftest.py has chosen a profile, before tests are imported, which take their settings from it."""
    settings.register_profile("mutants", settings(), derandomize=True, database=None, phases=(Phase.explicit, Phase.generate))
    settings.load_profile("mutants")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The quickest first, where each word of the module's name that a test's name has counts like a tenth of its time."""
    words, seconds = os.environ.get(MODULE, "").split("_"), durations()
    likely = {item: sum(word in re.split(r"[\W_]+", item.nodeid) for word in words) for item in items}
    items.sort(key=lambda item: seconds.get(item.nodeid, 0.0) / 10 ** likely[item])


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Set-up, test and what follows it count together."""
    measured[report.nodeid] = measured.get(report.nodeid, 0.0) + report.duration


def pytest_sessionfinish() -> None:
    """Write down a run without faults."""
    if MODULE not in os.environ:
        DURATIONS.write_text(json.dumps(durations() | measured), encoding="utf-8")
