"""Train on processes whose entropy is known, and compare: python -m tests.optimum [markov] [hawkes] [--seed N] [--json] [--plot FILE].

Exit code 1 if a model stays more than 0.02 nats per event above what is possible for who sees what it sees, or seems to lie below it.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

from ttr_fast.commands.options import loaded_backend
from ttr_fast.training.metrics import MetricsFile

from .arms import LIMIT, Arm, print_table, save_plot, say, trained
from .recipes import hawkes_arms, markov_arms

PROCESSES: dict[str, Callable[[int], Iterator[Arm]]] = {"markov": markov_arms, "hawkes": hawkes_arms}


def main() -> int:
    """Train each arm, print the table, and say whether all optima were reached."""
    parser = argparse.ArgumentParser(prog="python -m tests.optimum", description="Train on processes whose entropy is known, and compare.")
    parser.add_argument("process", nargs="*", help=f"{' or '.join(PROCESSES)} (default: both)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the samples, the weights and the order of the data (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw how each model comes near its optimum")
    options = parser.parse_args()
    for name in options.process:
        if name not in PROCESSES:
            parser.error(f"no process is called {name}; there are {' and '.join(PROCESSES)}")
    if not 0 <= options.seed < 2**32:
        parser.error(f"--seed must be in [0, 2³²), got {options.seed}")
    start, backend, rows = perf_counter(), loaded_backend("cpu"), []
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.process or PROCESSES:
            for arm in PROCESSES[name](options.seed):
                row = trained(arm, backend, Path(temporary))
                say(f"{row.process}, {row.sees}: {row.nats:.4f} nats, {row.excess:.4f} above the optimum")
                rows.append(row)
        if options.plot:
            save_plot(options.plot, rows, MetricsFile(Path(temporary) / "metrics.jsonl"))
    missed = sum(not row.reached for row in rows)
    if options.json:
        print(json.dumps([row._asdict() | {"reached": row.reached} for row in rows], indent=1))
        return int(missed > 0)
    print_table(rows)
    verdict = "all within" if not missed else f"{missed} not within"
    print(f"\n{len(rows)} models trained in {perf_counter() - start:.0f} s, {verdict} {LIMIT} nats per event of what can be known from what they see")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
