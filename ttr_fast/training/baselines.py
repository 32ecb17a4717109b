"""What a model has to beat: the destinations' frequencies, a bigram count model, a log-normal fitted to all gaps."""

import numpy as np
from numpy import ndarray

from ttr_fast.data.measures import gaps_of
from ttr_fast.data.sequences import EventSequences

BACKOFF = 20.0
"""Weight of the frequencies in a bigram row, in observed events: of 1, 2, 5, 10, 20, 40, 80 the best on the held-out flights."""


def transitions(events: EventSequences) -> tuple[ndarray, ndarray]:
    """(token, next token) of every event that has a next one."""
    has_next = np.ones(events.tokens.size, bool)
    has_next[events.offsets[1:] - 1] = False
    index = np.flatnonzero(has_next)
    return events.tokens[index], events.tokens[index + 1]


def majority_nats(train: EventSequences, held_out: EventSequences) -> float:
    """Mean −ln p of the next token by how often each token came next in training (every token seen once more than it was)."""
    return float(-np.log(frequencies(train)[transitions(held_out)[1]]).mean())


def bigram_nats(train: EventSequences, held_out: EventSequences) -> float:
    """Mean −ln p of the next token by counts of pairs, each row smoothed with BACKOFF events of the overall frequencies."""
    size = len(train.vocabulary)
    counts = np.zeros((size, size))
    np.add.at(counts, transitions(train), 1)
    p = (counts + BACKOFF * frequencies(train)) / (counts.sum(axis=1, keepdims=True) + BACKOFF)
    return float(-np.log(p[transitions(held_out)]).mean())


def frequencies(train: EventSequences) -> ndarray:
    """Share of each token among the next tokens of training."""
    counts = np.bincount(transitions(train)[1], minlength=len(train.vocabulary)) + 1.0
    return counts / counts.sum()


def log_normal_baseline(train: EventSequences, held_out: EventSequences, resolution: float) -> tuple[float, float]:
    """(mean −ln p of the next gap, in the data's unit of time; median absolute error of the log-normal's median) fitted to all training gaps.

    A gap of zero counts as half the resolution, as in the time head.
    """
    fitted, seen = (np.log(np.maximum(gaps_of(events), resolution / 2)) for events in (train, held_out))
    mean, deviation = fitted.mean(), fitted.std()
    nats = seen + np.log(deviation) + 0.5 * np.log(2 * np.pi) + 0.5 * ((seen - mean) / deviation) ** 2
    return float(nats.mean()), float(np.median(np.abs(np.exp(seen) - np.exp(mean))))
