"""metrics.jsonl: what a run says of itself, one JSON object a line.

    kind "step"       loss, norm of the gradients, learning rate, tokens per second, number of targets
    kind "held_out"   nats on held-out data, one line for each order of token and time
    kind "speed"      tokens and model FLOPs per second since the evaluation before; see flops.py
"""

from pathlib import Path
from typing import Any

import msgspec

from ttr_fast.durable import append, flush, replace_file, told


class Written(msgspec.Struct):
    """What every line says among other things."""

    step: int


class MetricsFile:
    """metrics.jsonl, each line with the label of its run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **record: Any) -> None:
        """Append one line. Raises UserError if the disk refuses."""
        with told(self.path):
            append(self.path, msgspec.json.encode(record) + b"\n")

    def flush(self) -> None:
        """What was written is on the disk when this returns. Raises UserError if the disk refuses."""
        with told(self.path):
            flush(self.path)
            flush(self.path.parent)

    def read(self) -> list[dict[str, Any]]:
        """All lines so far. Raises UserError if they cannot be read."""
        return [msgspec.json.decode(line) for line in self.lines()]

    def lines(self) -> list[bytes]:
        """As they stand there; none if there is no file."""
        with told(self.path, "read"):
            return self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []

    def rewind(self, step: int) -> None:
        """Forget what was written after a step, and a last line that was not finished: training goes on from there."""
        kept = []
        for line in self.lines():
            try:
                written = msgspec.json.decode(line, type=Written).step
            except msgspec.DecodeError:
                break
            if written <= step:
                kept.append(line)
        replace_file(self.path, b"".join(kept))

    def measured(self, run: str) -> dict[int, float]:
        """Held-out nats of each step after which they were measured: those of the token in the first order, which also choose the best save."""
        nats: dict[int, float] = {}
        for record in self.read():
            if (record["run"], record["kind"]) == (run, "held_out"):
                nats.setdefault(record["step"], record["token_nats"])
        return nats

    def stale_evaluations(self, run: str) -> int:
        """How many times held-out nats were measured since they were best."""
        measured = list(self.measured(run).values())
        return len(measured) - 1 - measured.index(min(measured)) if measured else 0
