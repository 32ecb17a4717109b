"""Damaged files for every reader: python -m tests.fuzz [--count 100000] [--reader NAME] [--seed N]. Exit code 1 if one does harm.

Each is read twice, in one block and in tiny ones: nothing but UserError may come of it, both must find the same, and the peak of memory must stay
within PEAK of where it was after the first files. A file that does harm is kept, and its path printed.
"""

import argparse
import resource
import sys
import tempfile
from collections import Counter
from pathlib import Path
from time import perf_counter

from tqdm import tqdm

from .inputs import READERS
from .reading import fuzz

PEAK = 64 << 20
WARM = 200
"""Files after which memory is measured first: libraries are loaded then."""
OFTEN = 100
"""Files between two measurements, which take longer than a file on some systems."""


def memory() -> int:
    """Peak bytes of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run(reader: str, count: int, seed: int, folder: Path) -> Counter[str]:
    """All files of one reader. Exits with 1 at the first that does harm."""
    counts: Counter[str] = Counter()
    path = folder / f"fuzzed.{reader}"
    before = memory()
    for number in tqdm(range(count), desc=reader, unit="file", file=sys.stderr, mininterval=1, leave=False):
        try:
            fuzz(reader, number, seed, path, counts)
            if number == WARM:
                before = memory()
            elif number % OFTEN == 0 and number > WARM and memory() > before + PEAK:
                raise AssertionError(f"memory grew by {(memory() - before) >> 20} MiB since file {WARM}, expected at most {PEAK >> 20}")
        except Exception as error:
            kept = Path(tempfile.gettempdir()) / f"harmful-{seed}-{number}.{reader}"
            kept.write_bytes(path.read_bytes())
            print(f"{reader}: file {number} of seed {seed}, kept as {kept}:\n{type(error).__name__}: {error}")
            raise
    counts["MiB more"] = (memory() - before) >> 20
    return counts


def main() -> None:
    """Fuzz, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Damaged files for every reader.")
    parser.add_argument("--count", type=int, default=100_000, help="files for each reader")
    parser.add_argument("--reader", choices=READERS, action="append", help="only this one")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{'reader':10} {'files':>8} {'accepted':>9} {'skipped some':>13} {'refused':>8} {'sentences':>10} {'MiB more':>9} {'seconds':>8}")
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        for reader in options.reader or READERS:
            start = perf_counter()
            counts = run(reader, options.count, options.seed, Path(folder))
            sentences = sum(kind.startswith("sentence: ") for kind in counts)
            print(
                f"{reader:10} {options.count:8} {counts['accepted']:9} {counts['skipped some']:13} {counts['refused']:8} "
                f"{sentences:10} {counts['MiB more']:9} {perf_counter() - start:8.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
