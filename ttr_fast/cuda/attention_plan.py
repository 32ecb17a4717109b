"""Which keys each query reads, and when everything happened: what the host works out once for a batch.

A document's keys stand side by side, in the order of their positions, so what a query reads is a range of places first … stop − 1, whatever the
packing, the padding, the window or causality. Kernels know nothing else of them.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from ttr_ref.timeline import Timeline


class AttentionPlan(NamedTuple):
    """Ranges of places, times relative to one moment of the document in float64, and the counters of dropout."""

    first: Int64[ndarray, "B T_q"]
    stop: Int64[ndarray, "B T_q"]
    time_q: Float64[ndarray, "B T_q"]
    time_k: Float64[ndarray, "B T_k"]
    position_q: Int64[ndarray, "B T_q"]
    position_k: Int64[ndarray, "B T_k"]
    document_q: Int64[ndarray, "B T_q"]
    causal: bool
    keys: Int64[ndarray, "B blocks_q 2"]
    """Of each block of queries: the first place and one behind the last of the keys that some of them reads."""
    queries: Int64[ndarray, "B blocks_k 2"]
    """Of each block of keys: the first place and one behind the last of the queries that read some of them."""


def runs(documents: Int64[ndarray, "T"]) -> dict[int, slice]:
    """The places of each document of a row."""
    starts = np.flatnonzero(np.diff(documents, prepend=-2))
    ends = [*starts[1:], documents.size]
    return {int(documents[start]): slice(start, end) for start, end in zip(starts.tolist(), ends, strict=True) if documents[start] >= 0}


def plan_attention(at_q: Timeline, at_k: Timeline, causal: bool, window: int | None, tile: int) -> AttentionPlan:
    """The plan for kernels with tiles of that many queries and keys (attention.kernels_for).

    Integer times are taken relative to their document's first key, exactly; float times as they are, so that a difference is rounded once.

    Raises ValueError if a causal document's times go backwards.
    """
    first, stop = np.zeros(at_q.time.shape, np.int64), np.zeros(at_q.time.shape, np.int64)
    time_q, time_k = np.zeros(at_q.time.shape), np.zeros(at_k.time.shape)
    for b in range(len(first)):
        keys = runs(at_k.document[b])
        for d, queries in runs(at_q.document[b]).items():
            here = keys.get(d, slice(0, 0))
            t_q, t_k = at_q.time[b, queries], at_k.time[b, here]
            origin = (t_k if t_k.size else t_q)[0] if t_q.dtype == np.int64 else 0
            time_q[b, queries], time_k[b, here] = t_q - origin, t_k - origin
            for t in (t_q, t_k):
                if causal and np.any(backwards := t[1:] < t[:-1]):
                    i = int(np.argmax(backwards))
                    raise ValueError(f"timeline: times go backwards in document {d}: {t[i]} is followed by {t[i + 1]}")
            if t_k.size:
                beyond = at_q.position[b, queries] + 1 - at_k.position[b, here.start]  # keys up to the query itself
                first[b, queries] = here.start + np.clip(0 if window is None else beyond - window, 0, t_k.size)
                stop[b, queries] = here.start + (np.clip(beyond, 0, t_k.size) if causal else t_k.size)
    position_q, position_k, document_q = (np.ascontiguousarray(a, np.int64) for a in (at_q.position, at_k.position, at_q.document))
    keys_read, read_by = keys_of_blocks(first, stop, tile), queries_of_blocks(first, stop, at_k.time.shape[1], tile)
    return AttentionPlan(first, stop, time_q, time_k, position_q, position_k, document_q, causal, keys_read, read_by)


def keys_of_blocks(first: Int64[ndarray, "B T_q"], stop: Int64[ndarray, "B T_q"], tile: int) -> Int64[ndarray, "B blocks 2"]:
    """An empty range where no query of the block reads anything."""
    rows, places = first.shape
    blocks = -(-places // tile)
    reads = first < stop
    spare = ((0, 0), (0, blocks * tile - places))
    begin = np.pad(np.where(reads, first, np.iinfo(np.int64).max), spare, constant_values=np.iinfo(np.int64).max)
    end = np.pad(np.where(reads, stop, 0), spare)
    low, high = begin.reshape(rows, blocks, tile).min(2), end.reshape(rows, blocks, tile).max(2)
    return np.stack([np.minimum(low, high), high], axis=-1)


def queries_of_blocks(first: Int64[ndarray, "B T_q"], stop: Int64[ndarray, "B T_q"], keys: int, tile: int) -> Int64[ndarray, "B blocks 2"]:
    """An empty range where no key of the block is read."""
    blocks = np.arange(-(-keys // tile)) * tile
    reads = (first < stop)[:, None] & (first[:, None] < blocks[:, None] + tile) & (stop[:, None] > blocks[:, None])
    places = reads.shape[2]
    some = reads.any(2)
    return np.stack([np.where(some, reads.argmax(2), 0), np.where(some, places - reads[:, :, ::-1].argmax(2), 0)], axis=-1)
