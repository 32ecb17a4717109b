"""Batches of events: which places of which sequences each step trains on, computed from (seed, step) alone.

An epoch's sequences, in an order drawn from (seed, epoch), are laid end to end, and epochs follow each other; step n takes the next
rows × length places. Where a sequence is cut by the end of a row, each part is a document of its own; what follows its last place is still
known, so no target is lost.
"""

from collections.abc import Iterator

import numpy as np
from numpy import ndarray

from ttr_fast.data.sequences import EventSequences
from ttr_ref.config import TrainConfig
from ttr_ref.next_event import Batch
from ttr_ref.timeline import timeline_from_cu_seqlens, timeline_from_lengths


def training_batch(events: EventSequences, config: TrainConfig, step: int) -> Batch:
    """The batch of one step: (rows, length) places packed without padding."""
    places = config.rows * config.length
    sources, starts = [], [0]
    for piece in pieces(events, config.seed, step * places, places):
        sources.append(piece)
        starts.append(starts[-1] + piece.size)
    row_borders = np.arange(0, places + 1, config.length)
    cu_seqlens = np.union1d(starts, row_borders)
    here = np.concatenate(sources)
    shape = (config.rows, config.length)
    times = events.times[here].reshape(shape)
    return Batch(
        events.tokens[here].reshape(shape),
        timeline_from_cu_seqlens(times, cu_seqlens),
        events.tokens[here + 1].reshape(shape),
        events.times[here + 1].reshape(shape),
        np.ones(shape, bool),
    )


def pieces(events: EventSequences, seed: int, start: int, count: int) -> Iterator[ndarray]:
    """Indices of the events at `count` places from `start` of the endless stream, sequence by sequence."""
    per_sequence = events.lengths - 1  # the last event of a sequence has nothing to predict
    per_epoch = int(per_sequence.sum())
    epoch, skip = divmod(start, per_epoch)
    while count:
        for i in np.random.default_rng([seed, epoch]).permutation(events.n_sequences):
            taken = min(int(per_sequence[i]) - skip, count)
            if taken <= 0:
                skip -= int(per_sequence[i])
                continue
            yield events.offsets[i] + skip + np.arange(taken)
            skip, count = 0, count - taken
            if not count:
                return
        epoch += 1


def steps_per_epoch(events: EventSequences, config: TrainConfig) -> float:
    """How many steps go once through the data."""
    return float((events.lengths - 1).sum()) / (config.rows * config.length)


def evaluation_batches(events: EventSequences, places: int = 4096) -> Iterator[Batch]:
    """Every sequence whole, the shortest first, about `places` places at a time, padded at the end."""
    counts = events.lengths - 1
    order = [int(i) for i in np.argsort(counts, kind="stable") if counts[i] > 0]
    while order:
        rows = [order.pop(0)]
        while order and (len(rows) + 1) * counts[order[0]] <= places:
            rows.append(order.pop(0))
        yield whole_sequences(events, rows)


def whole_sequences(events: EventSequences, rows: list[int]) -> Batch:
    """One sequence in each row."""
    counts = events.lengths[rows] - 1
    inside = np.arange(counts.max()) < counts[:, None]
    here = np.where(inside, events.offsets[rows][:, None] + np.arange(counts.max()), 0)
    at = timeline_from_lengths(events.times[here], counts)
    return Batch(events.tokens[here], at, events.tokens[here + 1], events.times[here + 1], inside)
