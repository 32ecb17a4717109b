"""What a model has to beat: the tokens' frequencies, a bigram count model, a log-normal fitted to all gaps.

Tokens are gone through some million at a time, so that they may be larger than memory; of the gaps, all logarithms are held.
"""

import numpy as np
from numpy import ndarray

from ttr_fast.data.batches import Marker, transitions
from ttr_fast.data.sequences import Sequences

BACKOFF = 20.0
"""Weight of the frequencies in a bigram row, in observed events: of 1, 2, 5, 10, 20, 40, 80 the best on the held-out flights."""


def count_baselines(train: Sequences, held_out: Sequences, size: int, after: Marker | None = None) -> dict[str, float]:
    """Mean −ln p of the next token by each of the two count models; size: of the vocabulary."""
    return {"majority": majority_nats(train, held_out, size, after), "bigram counts": bigram_nats(train, held_out, size, after)}


def majority_nats(train: Sequences, held_out: Sequences, size: int, after: Marker | None = None) -> float:
    """Mean −ln p of the next token by how often each of `size` tokens came next in training (every one seen once more than it was)."""
    nats, total, count = -np.log(frequencies(train, size, after)), 0.0, 0
    for part in transitions(held_out, after):
        total, count = total + float(nats[part.next_tokens].sum()), count + part.tokens.size
    return total / count


def bigram_nats(train: Sequences, held_out: Sequences, size: int, after: Marker | None = None) -> float:
    """Mean −ln p of the next token by counts of pairs, each row smoothed with BACKOFF events of the overall frequencies."""
    overall, (pairs, counts), firsts = frequencies(train, size, after), counted_pairs(train, size, after), np.zeros(size)
    np.add.at(firsts, pairs // size, counts)
    total, count = 0.0, 0
    for part in transitions(held_out, after):
        wanted = pair_numbers(part.tokens, part.next_tokens, size)
        at = np.minimum(np.searchsorted(pairs, wanted), pairs.size - 1)
        seen = np.where(pairs[at] == wanted, counts[at], 0)
        p = (seen + BACKOFF * overall[part.next_tokens]) / (firsts[part.tokens] + BACKOFF)
        total, count = total - float(np.log(p).sum()), count + part.tokens.size
    return total / count


def frequencies(train: Sequences, size: int, after: Marker | None = None) -> ndarray:
    """Share of each token among the next tokens of training."""
    counts = np.ones(size)
    for part in transitions(train, after):
        counts += np.bincount(part.next_tokens, minlength=size)
    return counts / counts.sum()


def pair_numbers(first: ndarray, second: ndarray, size: int) -> ndarray:
    """One int64 for each pair."""
    return first.astype(np.int64) * size + second


def counted_pairs(train: Sequences, size: int, after: Marker | None) -> tuple[ndarray, ndarray]:
    """(the pairs that occur, in order, how often): a table of all pairs would be too large for the vocabulary of texts."""
    pairs, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for part in transitions(train, after):
        more, often = np.unique(pair_numbers(part.tokens, part.next_tokens, size), return_counts=True)
        pairs, place = np.unique(np.concatenate([pairs, more]), return_inverse=True)
        counts = np.bincount(place, np.concatenate([counts, often])).astype(np.int64)
    return pairs, counts


def log_normal_baseline(train: Sequences, held_out: Sequences, resolution: float, after: Marker | None = None) -> tuple[float, float]:
    """(mean −ln p of the next gap, in the data's unit of time; median absolute error of the log-normal's median) fitted to all training gaps.

    As in the time head, a gap of zero counts as half the resolution, and no density is narrower than the resolution: all gaps may be equal.
    """
    fitted, seen = (
        np.log(np.maximum(np.concatenate([part.gaps for part in transitions(events, after)]), resolution / 2)) for events in (train, held_out)
    )
    mean = fitted.mean()
    deviation = max(fitted.std(), resolution * np.exp(-mean))
    nats = seen + np.log(deviation) + 0.5 * np.log(2 * np.pi) + 0.5 * ((seen - mean) / deviation) ** 2
    return float(nats.mean()), float(np.median(np.abs(np.exp(seen) - np.exp(mean))))
