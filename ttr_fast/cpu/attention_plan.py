"""Which documents a batch holds, where they lie, and the work they are cut into."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from ttr_fast.cpu.attention_tiles import BLOCK
from ttr_ref.timeline import Timeline


class Documents(NamedTuple):
    """A row for each document that has queries: (batch row, first place, number of places, position of the first) of its queries, then of its
    keys, then its index. Times of queries and keys relative to one moment of the document, in float64."""

    table: Int64[ndarray, "n 9"]
    time_q: Float64[ndarray, "B T_q"]
    time_k: Float64[ndarray, "B T_k"]


def runs(at: Timeline) -> dict[int, tuple[int, int, int, int]]:
    """document → (batch row, first place, number of places, position of the first)."""
    found = {}
    for row, documents in enumerate(at.document):
        starts = np.flatnonzero(np.diff(documents, prepend=-2))
        ends = np.append(starts[1:], documents.size)
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            if documents[start] >= 0:
                found[int(documents[start])] = (row, start, end - start, int(at.position[row, start]))
    return found


def documents_of(at_q: Timeline, at_k: Timeline, causal: bool) -> Documents:
    """Integer times are taken relative to their document's first key, exactly; float times as they are, so that a difference is rounded once.

    Raises ValueError if a causal document's times go backwards.
    """
    queries, keys = runs(at_q), runs(at_k)
    table = np.array([(*q, *keys.get(d, (0, 0, 0, 0)), d) for d, q in queries.items()], np.int64).reshape(-1, 9)
    time_q, time_k = (np.zeros(at.time.shape) for at in (at_q, at_k))
    for row_q, place_q, n_q, _, row_k, place_k, n_k, _, d in table.tolist():
        t_q, t_k = at_q.time[row_q, place_q : place_q + n_q], at_k.time[row_k, place_k : place_k + n_k]
        origin = (t_k if n_k else t_q)[0] if t_q.dtype == np.int64 else 0
        time_q[row_q, place_q : place_q + n_q], time_k[row_k, place_k : place_k + n_k] = t_q - origin, t_k - origin
        for t in (t_q, t_k):
            if causal and np.any(backwards := t[1:] < t[:-1]):
                i = int(np.argmax(backwards))
                raise ValueError(f"timeline: times go backwards in document {d}: {t[i]} is followed by {t[i + 1]}")
    return Documents(table, time_q, time_k)


def work_items(documents: Documents, heads: int, causal: bool) -> Int64[ndarray, "n 3"]:
    """(document, head, block of queries), the costly ones of a head first."""
    items = []
    for d, (_, _, n_q, first, *_) in enumerate(documents.table.tolist()):
        blocks = range(first // BLOCK, (first + n_q - 1) // BLOCK + 1)
        items += [(d, h, block) for h in range(heads) for block in (reversed(blocks) if causal else blocks)]
    return np.array(items, np.int64).reshape(-1, 3)


def tiles_of(documents: Documents) -> Int64[ndarray, "n_plus_1"]:
    """Where each document's tiles of keys start among the tiles of all documents."""
    first, count = documents.table[:, 7], documents.table[:, 6]
    tiles = np.where(count > 0, (first + count - 1) // BLOCK - first // BLOCK + 1, 0)
    return np.concatenate([[0], np.cumsum(tiles)])
