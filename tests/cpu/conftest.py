"""Small arrays are worked on by all threads here, so that sharing out is tested too."""

import pytest

from ttr_fast.cpu import team


@pytest.fixture(autouse=True)
def every_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """No array is too small for a further worker."""
    monkeypatch.setattr(team, "WORTH_A_WORKER", 1)
