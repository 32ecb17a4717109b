"""What a command of this package found: rows to print and to write, and what was wrong."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttr_fast.errors import UserError

SHOWN = 20
"""Failures that are told one by one."""


@dataclass
class Findings:
    """Rows of a table, all with the same columns, and one sentence for each thing that was wrong."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @contextmanager
    def expecting(self, where: str) -> Iterator[None]:
        """An assertion that fails within is noted, with where, and so is what a user would be told; anything else goes on."""
        try:
            yield
        except (AssertionError, UserError) as error:
            self.wrong.append(f"{where}: {error}")

    def finish(self, summary: str, path: Path | None) -> int:
        """Print, write, and give the exit code."""
        print_table(self.rows)
        print(f"\n{summary}: {f'{len(self.wrong)} WRONG' if self.wrong else 'nothing wrong'}")
        for sentence in self.wrong[:SHOWN]:
            print(f"  {sentence}", file=sys.stderr)
        if path is not None:
            path.write_text(json.dumps({"summary": summary, "rows": self.rows, "wrong": self.wrong}, indent=1) + "\n")
        return int(bool(self.wrong))


def print_table(rows: list[dict[str, Any]]) -> None:
    """Aligned under the names of the columns, numbers to the right."""
    if not rows:
        return
    cells = [list(rows[0]), *([f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    right = [isinstance(value, int | float) for value in rows[0].values()]
    for line in cells:
        print("  ".join(f"{cell:{'>' if r else '<'}{width}}" for cell, width, r in zip(line, widths, right, strict=True)).rstrip())
