"""What the tests of `ttr preprocess` share."""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ttr_fast import cli
from ttr_fast.data.corpus import SPLITS, Corpus, open_corpus

START = 1_700_000_000
Event = tuple[str, int, str]


def events_file(path: Path, events: Iterable[Event]) -> Path:
    path.write_text("".join(json.dumps({"entity": e, "time": t, "token": k}) + "\n" for e, t, k in events))
    return path


def some_events(seed: int, entities: int = 30, rows: int = 400) -> list[Event]:
    rng = np.random.default_rng(seed)
    times = START + np.sort(rng.integers(0, 10_000, rows))  # some of them equal
    return [(f"é{rng.integers(entities)}", int(t), f"k{rng.integers(9)}") for t in times]


def preprocess(*arguments: Any, out: Path) -> Corpus:
    cli.run(["preprocess", *map(str, arguments), "--out", str(out), *([] if "--workers" in arguments else ["--workers", "1"])])
    assert not list(out.parent.glob(".tmp-*"))
    return open_corpus(out)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def sequences(corpus: Corpus, *splits: Any) -> list[tuple[list[int], list[float]]]:
    """Tokens and times of each sequence of these splits, or of all."""
    found = []
    for name in splits or SPLITS:
        split = corpus.split(name)
        found += [(tokens.tolist(), times.tolist()) for tokens, times in map(split.sequence, range(split.n_sequences))]
    return found


def expected_sequences(events: Iterable[Event], vocabulary: tuple[str, ...]) -> list[tuple[list[int], list[float]]]:
    """Those of all entities, computed plainly."""
    of = defaultdict(list)
    for entity, time, token in events:
        of[entity].append((time, vocabulary.index(token)))
    rows = [sorted(of[entity], key=lambda row: row[0]) for entity in sorted(of)]
    return [([token for _, token in row], [time for time, _ in row]) for row in rows]
