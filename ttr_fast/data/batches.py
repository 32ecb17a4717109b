"""Batches of events: which places of which sequences each step trains on, computed from (seed, step) alone.

An epoch's sequences, in an order drawn from (seed, epoch), are laid end to end, and epochs follow each other; step n takes the next
rows × length places. Where a sequence is cut by the end of a row, each part is a document of its own; what follows its last place is still
known, so no target is lost.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from ttr_fast.data.sequences import Sequences, Tokens
from ttr_ref.config import TrainConfig
from ttr_ref.next_event import Batch
from ttr_ref.timeline import timeline_from_cu_seqlens, timeline_from_lengths


class Marker(NamedTuple):
    """Only the tokens after `token` are predicted, up to the next `terminator` of the same sequence, which is predicted too."""

    token: int
    terminator: int | None = None
    """None: up to the end of the sequence."""


class Piece(NamedTuple):
    """`size` neighbouring places of a sequence, each of which has a successor."""

    sequence: int
    start: int
    size: int


class TrainingBatches:
    """The batches of a run. Each epoch's order is kept, and where its sequences end: every step of the epoch asks for them."""

    def __init__(self, events: Sequences, config: TrainConfig, after: Marker | None = None) -> None:
        self.events, self.config, self.after = events, config, after
        self.per_sequence = np.maximum(events.lengths - 1, 0)  # the last event of a sequence has nothing to predict
        self.per_epoch = int(self.per_sequence.sum())
        self.epoch = functools.lru_cache(maxsize=2)(self._epoch)

    def at(self, step: int) -> Batch:
        """The batch of one step: (rows, length) places packed without padding."""
        rows, length, after = self.config.rows, self.config.length, self.after
        tokens, times, targets, starts = [], [], [], [0]
        for i, start, size in self.pieces(step * rows * length, rows * length):
            all_tokens, all_times = self.events.sequence(i)
            part = slice(start, start + size + 1)
            tokens.append(all_tokens[part])
            times.append(all_times[part])
            targets.append(np.ones(size, bool) if after is None else targets_of(all_tokens, after)[start : start + size])
            starts.append(starts[-1] + size)
        cu_seqlens = np.union1d(starts, np.arange(0, rows * length + 1, length))

        def laid(parts: list[ndarray]) -> ndarray:
            return np.concatenate(parts).reshape(rows, length)

        return Batch(
            laid([t[:-1] for t in tokens]).astype(np.int32),
            timeline_from_cu_seqlens(laid([t[:-1] for t in times]), cu_seqlens),
            laid([t[1:] for t in tokens]).astype(np.int32),
            laid([t[1:] for t in times]),
            laid(targets),
        )

    def pieces(self, start: int, count: int) -> Iterator[Piece]:
        """`count` places from `start` of the endless stream, sequence by sequence."""
        epoch, place = divmod(start, self.per_epoch)
        while count:
            order, ends = self.epoch(epoch)
            for k in range(int(np.searchsorted(ends, place, side="right")), order.size):
                left = int(ends[k]) - place
                taken = min(left, count)
                if taken:
                    i = int(order[k])
                    yield Piece(i, int(self.per_sequence[i]) - left, taken)
                place, count = place + taken, count - taken
                if not count:
                    return
            epoch, place = epoch + 1, 0

    def _epoch(self, epoch: int) -> tuple[ndarray, ndarray]:
        """(the order of the sequences, the places up to the end of each)."""
        order = np.random.default_rng([self.config.seed, epoch]).permutation(self.per_sequence.size)
        return order, np.cumsum(self.per_sequence[order])


def targets_of(tokens: Tokens, after: Marker | None) -> Bool[ndarray, "n_minus_1"]:
    """Whether the successor of each token but the last is to be predicted."""
    if after is None:
        return np.ones(tokens.size - 1, bool)

    def last(token: int | None) -> ndarray:
        return np.maximum.accumulate(np.where(tokens[:-1] == token, np.arange(tokens.size - 1), -1))

    return last(after.token) > last(after.terminator) if after.terminator is not None else last(after.token) >= 0


def evaluation_batches(events: Sequences, places: int = 4096, after: Marker | None = None) -> Iterator[Batch]:
    """Every sequence whole that has a target, the shortest first, about `places` places at a time, padded at the end."""
    counts = events.lengths - 1
    order = np.argsort(counts, kind="stable")
    rows: list[int] = []
    for i in map(int, order[np.searchsorted(counts[order], 1) :]):
        if after is not None and not targets_of(events.sequence(i)[0], after).any():
            continue
        if rows and (len(rows) + 1) * counts[i] > places:
            yield whole_sequences(events, rows, after)
            rows = []
        rows.append(i)
    if rows:
        yield whole_sequences(events, rows, after)


def whole_sequences(events: Sequences, rows: list[int], after: Marker | None = None) -> Batch:
    """One sequence in each row."""
    counts = events.lengths[rows] - 1
    shape = len(rows), int(counts.max())
    tokens, next_tokens = np.zeros((2, *shape), np.int32)
    times, next_times = np.zeros((2, *shape), events.sequence(rows[0])[1].dtype)
    targets = np.zeros(shape, bool)
    for row, (i, count) in enumerate(zip(rows, counts, strict=True)):
        of_tokens, of_times = events.sequence(i)
        tokens[row, :count], next_tokens[row, :count] = of_tokens[:-1], of_tokens[1:]
        times[row, :count], next_times[row, :count] = of_times[:-1], of_times[1:]
        targets[row, :count] = targets_of(of_tokens, after)
    return Batch(tokens, timeline_from_lengths(times, counts), next_tokens, next_times, targets)


class Transitions(NamedTuple):
    """What is to be predicted: each target's predecessor, itself, and the time between the two in float64."""

    tokens: ndarray
    next_tokens: ndarray
    gaps: ndarray


def transitions(events: Sequences, after: Marker | None = None, at_once: int = 2**20) -> Iterator[Transitions]:
    """Of all sequences in order, in parts of about `at_once` or one sequence."""
    parts, size = list[Transitions](), 0
    for i in range(events.n_sequences):
        tokens, times = events.sequence(i)
        if tokens.size < 2:
            continue
        wanted = targets_of(tokens, after)
        parts.append(Transitions(tokens[:-1][wanted], tokens[1:][wanted], np.diff(times)[wanted].astype(np.float64)))
        size += parts[-1].tokens.size
        if size >= at_once:
            yield Transitions(*map(np.concatenate, zip(*parts, strict=True)))
            parts, size = [], 0
    if size:
        yield Transitions(*map(np.concatenate, zip(*parts, strict=True)))
