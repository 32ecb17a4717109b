"""All events of one file in memory, ordered by entity: what `ttr train --data FILE` learns from."""

from array import array
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .sequences import EventSequences, Times
from .sources.opening import open_events
from .sources.records import EventChunk, EventFields, Problems
from .sources.times import TimeUnit

UNKNOWN = "<unk>"
"""The token that stands for any other, if a vocabulary has it."""


def read_events(
    path: str | Path,
    *,
    entity: str,
    time: str,
    token: str | tuple[str, ...],
    time_unit: TimeUnit,
    sort: bool = False,
    vocabulary: tuple[str, ...] | None = None,
) -> EventSequences:
    """Read a .csv, .json, .jsonl (each also .gz) or .parquet file with the fields entity, time and token; others are ignored.

    Several fields of a token are joined by "|". UNIX times keep their unit, "iso8601" wants a zone in each time and gives UNIX seconds. Times are
    int64 if every one is whole in the file, otherwise all are float64. sort orders the events of each entity by time and leaves equal times in the
    order of the file; without it they have to stand in order. Tokens are numbered in the order of their text, or by the vocabulary of a trained
    model if one is given; what it lacks is UNKNOWN, if it has that.

    Raises UserError for whatever is wrong with the file, ValueError for an unknown time_unit.
    """
    fields = EventFields(entity, time, (token,) if isinstance(token, str) else token)
    known = None if vocabulary is None or UNKNOWN in vocabulary else frozenset(vocabulary)
    events = _Events(vocabulary)
    for chunk in open_events(path, fields, time_unit=time_unit, sort=sort, problems=Problems(), known=known).chunks():
        events.add(chunk)
    return events.sequences()


class _Events:
    """The events so far: entities and tokens numbered as they appear, or tokens by the vocabulary."""

    def __init__(self, vocabulary: tuple[str, ...] | None) -> None:
        self.vocabulary = vocabulary
        self.known = None if vocabulary is None else {token: i for i, token in enumerate(vocabulary)}
        self.entity_ids: dict[str, int] = {}
        self.token_ids: dict[str, int] = {}
        self.entities, self.tokens = array("q"), array("q")
        self.times: list[Any] = []

    def add(self, chunk: EventChunk) -> None:
        self.entities.extend(_numbered(chunk.entities, self.entity_ids))
        self.tokens.extend(_numbered(chunk.tokens, self.token_ids) if self.known is None else _looked_up(chunk.tokens, self.known))
        self.times.append(chunk.times)

    def sequences(self) -> EventSequences:
        names = tuple(sorted(self.entity_ids))
        entities = _positions(self.entity_ids, names)[np.array(self.entities, np.int64)]
        tokens = np.array(self.tokens, np.int64)
        if self.vocabulary is None:
            vocabulary = tuple(sorted(self.token_ids))
            tokens = _positions(self.token_ids, vocabulary)[tokens]
        else:
            vocabulary = self.vocabulary
        times: Times = np.concatenate(self.times)
        order = np.lexsort((times, entities))
        offsets = np.concatenate([[0], np.cumsum(np.bincount(entities))])
        return EventSequences(names, tokens[order].astype(np.int32), times[order], offsets, vocabulary)


def _looked_up(texts: list[str], known: dict[str, int]) -> list[int]:
    unknown = known.get(UNKNOWN, -1)  # without UNKNOWN every token is known
    return [known.get(text, unknown) for text in texts]


def _numbered(texts: list[str], ids: dict[str, int]) -> list[int]:
    return [ids.setdefault(text, len(ids)) for text in texts]


def _positions(ids: dict[str, int], names: tuple[str, ...]) -> NDArray[np.int64]:
    """Number in the order of appearance → position in names."""
    position = {name: i for i, name in enumerate(names)}
    return np.array([position[text] for text in ids], np.int64)
