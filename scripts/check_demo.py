"""What a demo's results must show, whatever the seed: time buys something, knowing the next time buys more, gaps are no log-normal.

    python scripts/check_demo.py runs/demo/results.json ...
"""

import json
import sys
from pathlib import Path

GIVEN_TIME_BUYS = 0.15
"""Nats per event that the next departure's time is worth at least."""


def check(path: Path) -> list[str]:
    """What is not as it must be."""
    rows = {r["name"]: r for r in json.loads(path.read_text())["held_out"]}
    token = {name: r["token_nats"] for name, r in rows.items()}
    time = {name: r["time_nats"] for name, r in rows.items()}
    past, given = "model with time: token first", "model with time: time first"
    demands = {
        "bigram counts beat the majority": token["bigram counts"] < token["majority"],
        "the model without time beats bigram counts": token["model without time"] < token["bigram counts"],
        "the model with time beats the one without": token[past] < token["model without time"],
        f"the next time buys {GIVEN_TIME_BUYS} nats": token[given] <= token[past] - GIVEN_TIME_BUYS,
        "the next-time head beats a log-normal": max(time[past], time[given]) < time["log-normal of all gaps"],
    }
    for demand, met in demands.items():
        print(f"{'ok   ' if met else 'FAILS'} {demand}")
    return [demand for demand, met in demands.items() if not met]


def main() -> None:
    """Check every file named; exit with 1 if one falls short."""
    if failed := [d for path in sys.argv[1:] for d in check(Path(path))]:
        sys.exit(f"check_demo: {len(failed)} demands are not met")


if __name__ == "__main__":
    main()
