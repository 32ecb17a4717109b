"""What is trained on and preprocessed here: a few of the flights that come with the package."""

import gzip
import json
from pathlib import Path

from ttr_fast import cli
from ttr_fast.data.flights import flights_path

COLUMNS = ["--columns.entity", "tail", "--columns.token", "destination"]


def events_of(aircraft: int) -> tuple[str, list[str]]:
    """(heading of the CSV, lines of the first few aircraft)."""
    with gzip.open(flights_path(), "rt") as lines:
        heading, *events = lines
    names = list(dict.fromkeys(line.split(",")[0] for line in events))[:aircraft]
    return heading, [line for line in events if line.split(",")[0] in names]


def write_slice(path: Path, aircraft: int) -> Path:
    """A CSV of the flights of the first few aircraft."""
    heading, lines = events_of(aircraft)
    path.write_text(heading + "".join(lines))
    return path


def write_parts(folder: Path, aircraft: int, copies: int, parts: int) -> list[Path]:
    """The same so many times, each time of other aircraft, in several files, one half CSV and the other JSONL."""
    heading, lines = events_of(aircraft)
    names = heading.strip().split(",")
    lines = [f"{n}-{line}" for n in range(copies) for line in lines]
    paths = []
    for n in range(parts):
        mine = lines[len(lines) * n // parts : len(lines) * (n + 1) // parts]
        if n % 2:
            records = (dict(zip(names, line.strip().split(","), strict=True)) for line in mine)
            content = "".join(json.dumps(record | {"time": int(record["time"])}) + "\n" for record in records)
        else:
            content = heading + "".join(mine)
        paths.append(folder / f"part-{n:02}.{'jsonl' if n % 2 else 'csv'}")
        paths[-1].write_text(content)
    return paths


def write_corpus(folder: Path) -> Path:
    """A corpus of several shards."""
    data = write_slice(folder / "flights.csv", 30)
    cli.run(["preprocess", str(data), *COLUMNS, "--shard-tokens", "2000", "--workers", "1", "--out", str(folder / "corpus")])
    return folder / "corpus"
