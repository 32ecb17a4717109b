"""Make a large file of events to measure `ttr preprocess` with: the same bytes for the same size and seed.

    python scripts/make_events.py --megabytes 2000 --out events.jsonl
    /usr/bin/time -v ttr preprocess events.jsonl --out events

A line is {"entity":"u0012345","time":1700000000,"token":"t042"}; times ascend through the file, entities and tokens are mixed, some far more often.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ENTITIES, TOKENS, ROWS = 200_000, 1_000, 200_000
START = 1_600_000_000


def lines(rng: np.random.Generator, time: int) -> tuple[bytes, int]:
    """ROWS lines from a time on, and the time of the last."""
    entities = (ENTITIES * rng.random(ROWS) ** 2).astype(np.int64)
    tokens = (TOKENS * rng.random(ROWS) ** 3).astype(np.int64)
    times = time + np.cumsum(rng.integers(0, 3, ROWS))
    pieces = (b'{"entity":"u', digits(entities, 7), b'","time":', digits(times, 10), b',"token":"t', digits(tokens, 3), b'"}\n')
    columns = [np.tile(np.frombuffer(piece, np.uint8), (ROWS, 1)) if isinstance(piece, bytes) else piece for piece in pieces]
    return np.hstack(columns).tobytes(), int(times[-1])


def digits(numbers: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
    """(n, width) decimal digits in ASCII."""
    return (numbers[:, None] // 10 ** np.arange(width - 1, -1, -1) % 10 + ord("0")).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=2000, help="size, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()
    rng, time, size, rows = np.random.default_rng(options.seed), START, 0, 0
    with options.out.open("wb") as file:
        while size < options.megabytes * 1_000_000:
            block, time = lines(rng, time)
            size += file.write(block)
            rows += ROWS
    print(f"{options.out}: {rows:,} events, {size:,} bytes")


if __name__ == "__main__":
    main()
