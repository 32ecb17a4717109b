"""The parent's end of a worker process."""

import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

import ttr_fast
from ttr_fast.bench.case import Case
from ttr_fast.errors import UserError

THREAD_VARIABLES = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Worker:
    """A process of one side; ends with the `with` block. An answer that takes longer than limit_s seconds is not waited for."""

    def __init__(self, side: str, threads: int, limit_s: float | None = None, **environment: str) -> None:
        self.side, self.limit_s, self.overdue = side, limit_s, False
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the worker
        home = str(Path(ttr_fast.__file__).parents[1])  # the worker runs this very package, whatever is installed beside it
        path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
        variables = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads)) | {"PYTHONPATH": path} | environment
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ttr_fast.bench.worker", side, str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, env=variables,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if kind is not None:
            self.process.kill()
        self.process.communicate()
        self.log.close()

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        """Its answer. Raises UserError if it cannot or is gone."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        clock = None if self.limit_s is None else threading.Timer(self.limit_s, self.give_up)
        if clock is not None:
            clock.start()
        try:
            self.process.stdin.write(msgspec.json.encode({"do": do} | more) + b"\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = b""
        finally:
            if clock is not None:
                clock.cancel()
        if not line and self.overdue:
            raise UserError(f"{self.side}: no answer within {self.limit_s:g} s")
        if not line:
            raise UserError(f"{self.side}: the process that measures it ended with {self.ending()}")
        answer: dict[str, Any] = msgspec.json.decode(line)
        if "error" in answer:
            raise UserError(f"{self.side}: {' '.join(answer['error'].split())}")
        return answer

    def give_up(self) -> None:
        """Ends the process."""
        self.overdue = True
        self.process.kill()

    def ask_case(self, do: str, case: Case, **more: Any) -> dict[str, Any]:
        """A request about a case."""
        return self.ask(do, kind=case.kind, case=asdict(case), **more)

    def ending(self) -> str:
        """How it ended, and the last thing it said."""
        code = self.process.wait()
        self.log.seek(0)
        said = self.log.read().decode(errors="replace").strip().splitlines()
        return (f"signal {-code}" if code < 0 else f"exit code {code}") + (f" ({said[-1].strip()})" if said else "")
