"""The real events that come with the package; flights.md beside it tells what they are."""

from importlib.resources import files
from pathlib import Path


def flights_path() -> Path:
    """flights.csv.gz: columns tail, time (UNIX seconds, UTC), origin, destination, in order of tail and time."""
    return Path(str(files("ttr_fast.data") / "flights.csv.gz"))
