"""Ctrl-C, SIGTERM and SIGUSR1 while training: the step is finished, then the caller is told, who saves and stops."""

import signal
import sys
import threading
from types import TracebackType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class StopRequests:
    """Within `with`, `wanted` says whether one of the signals came. A second Ctrl-C stops at once, as anywhere else."""

    def __init__(self) -> None:
        self.wanted = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequests":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self.note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: object) -> None:
        """A signal came."""
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wanted = True
        print("\nfinishing this step, then saving; Ctrl-C again stops at once", file=sys.stderr)
