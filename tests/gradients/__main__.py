"""The table of gradients: python -m tests.gradients [-k NAME] [--json FILE]. Exit code 1 if one is above the limit."""

import argparse
import json
import re
import sys
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from .cases import CASES, backward_functions
from .harness import LIMIT, errors_of, leaves_by_name


class Row(NamedTuple):
    """One argument of one function over all its cases."""

    module: str
    function: str
    argument: str
    entries: int
    error: float


def rows_for(pattern: str) -> list[Row]:
    """The rows of every function whose module or name contains the pattern, in the order of modules. The blocks of a model share their rows."""
    rows: dict[tuple[str, str, str], Row] = {}
    for function in backward_functions():
        module, name = function.__module__.rpartition(".")[2], function.__name__
        if pattern not in f"{module}.{name}":
            continue
        for case in (case for case in CASES if case.function is function):
            leaves = leaves_by_name(case.arguments)
            for leaf, error in errors_of(case).items():
                argument = re.sub(r"\.\d+\.", ".*.", leaf)
                before = rows.get((module, name, argument), Row(module, name, argument, 0, 0.0))
                rows[module, name, argument] = before._replace(entries=before.entries + leaves[leaf].size, error=max(before.error, error))
    return list(rows.values())


def print_table(rows: list[Row]) -> None:
    """Aligned; a function's name stands once, above its further arguments."""
    wide = max(len(row.function) for row in rows)
    wide_argument = max(len(row.argument) for row in rows)
    print(f"{'function':{wide}}  {'argument':{wide_argument}}  {'entries':>7}  {'worst error':>11}  {'limit':>7}")
    above = ""
    for row in rows:
        verdict = "" if row.error <= LIMIT else "  ABOVE"
        shown = "" if row.function == above else row.function
        print(f"{shown:{wide}}  {row.argument:{wide_argument}}  {row.entries:7}  {row.error:11.1e}  {LIMIT:7.0e}{verdict}")
        above = row.function


def main() -> int:
    """Check, print, and say whether all gradients are right."""
    parser = argparse.ArgumentParser(prog="python -m tests.gradients", description="Every gradient of the oracle against the complex step.")
    parser.add_argument("-k", metavar="NAME", default="", help="only functions whose module or name contains NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    options = parser.parse_args()
    start = perf_counter()
    rows = rows_for(options.k)
    if not rows:
        parser.error(f"no gradient is called {options.k}")
    print_table(rows)
    if options.json:
        options.json.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")
    functions, entries, worst = len({row.function for row in rows}), sum(row.entries for row in rows), max(rows, key=lambda row: row.error)
    wrong = sum(row.error > LIMIT for row in rows)
    print(
        f"\n{functions} functions, {len(rows)} arguments, {entries} entries in {perf_counter() - start:.0f} s: "
        f"the worst error is {worst.error:.1e} ({worst.function}, {worst.argument}), {wrong or 'none'} above {LIMIT:.0e}"
    )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
