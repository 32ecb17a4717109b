"""Inverted dropout whose mask is a pure function of where it is used (Srivastava et al. 2014; counters after Salmon et al. 2011).

    counter = (column // 4, row, third, site), lane = column % 4, key = (seed, step)
    keep iff u32 ≥ round(p · 2³²);  a kept value is divided by 1 − p

so prefill, decoding, any tiling, any packing, any number of workers and any recomputation draw the same mask, and none is stored.

| what is dropped | row | column | third |
|---|---|---|---|
| attention weights | position of the query | position of the key | document · H + head |
| features (feed-forward, block) | position | feature | document |
| whole heads | 0 | head | document |

site = 8 · layer + {0 attention, 1 feed-forward, 2 after attention, 3 after feed-forward, 4 whole head}.

Backward multiplies by the same mask: y = m ∘ x has the derivative m.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Inexact, Integer
from numpy import ndarray

from .philox import philox4x32
from .timeline import Timeline

SITES_PER_LAYER = 8
ATTENTION, FEED_FORWARD, AFTER_ATTENTION, AFTER_FEED_FORWARD, WHOLE_HEAD = range(5)


class DropoutKey(NamedTuple):
    """What makes one step's randomness its own; both taken modulo 2³²."""

    seed: int
    step: int


class Dropout(NamedTuple):
    """One use of dropout: its probability, key and site. None in its place, or p = 0, draws nothing."""

    p: float
    key: DropoutKey
    site: int


def dropout_at(p: float, key: DropoutKey | None, layer: int, place: int) -> Dropout | None:
    """The dropout of one place (ATTENTION … WHOLE_HEAD) in one layer; None when nothing is to be drawn (evaluation, or p = 0)."""
    return None if key is None or p == 0 else Dropout(p, key, SITES_PER_LAYER * layer + place)


def dropout_mask(
    drop: Dropout, row: Integer[ndarray, "..."], column: Integer[ndarray, "C"], third: Integer[ndarray, "..."]
) -> Float64[ndarray, "... C"]:
    """0 where dropped, 1 / (1 − p) where kept, for each row (broadcast with third) and column.

    Four neighbouring columns share one call of the generator, so it runs once for each group of four that occurs.
    """
    groups, group_of = np.unique(column // 4, return_inverse=True)
    words = philox4x32((groups, row[..., None], third[..., None], np.asarray(drop.site)), drop.key)
    lanes = np.moveaxis(words, 0, -1).reshape(*words.shape[1:-1], 4 * groups.size)  # the four words of each group side by side
    keep = np.take(lanes, 4 * group_of + column % 4, axis=-1) >= round(drop.p * 2**32)
    return keep / (1 - drop.p)


def attention_mask(drop: Dropout, at_q: Timeline, at_k: Timeline, heads: int) -> Float64[ndarray, "B H T_q T_k"]:
    """The mask of attention weights."""
    head = np.arange(heads)[:, None]
    return np.stack(
        [
            dropout_mask(drop, at_q.position[b], at_k.position[b], at_q.document[b] * heads + head)
            for b in range(at_q.position.shape[0])
        ]
    )


def dropout_forward(x: Inexact[ndarray, "B T E"], drop: Dropout | None, at: Timeline) -> Inexact[ndarray, "B T E"]:
    """Drop features of x."""
    if drop is None:
        return x
    return x * dropout_mask(drop, at.position, np.arange(x.shape[-1]), at.document).astype(x.real.dtype)


def dropout_backward(dy: Inexact[ndarray, "B T E"], drop: Dropout | None, at: Timeline) -> Inexact[ndarray, "B T E"]:
    """dx = m ∘ dy, the mask drawn again: the map is its own derivative."""
    return dropout_forward(dy, drop, at)


def head_dropout_forward(x: Inexact[ndarray, "B H T D"], drop: Dropout | None, at: Timeline) -> Inexact[ndarray, "B H T D"]:
    """Drop whole heads, one draw for a document and head."""
    if drop is None:
        return x
    mask = dropout_mask(drop, np.zeros_like(at.position), np.arange(x.shape[1]), at.document)
    return x * np.moveaxis(mask, -1, 1)[..., None].astype(x.real.dtype)


def head_dropout_backward(dy: Inexact[ndarray, "B H T D"], drop: Dropout | None, at: Timeline) -> Inexact[ndarray, "B H T D"]:
    """dx = m ∘ dy, the mask drawn again."""
    return head_dropout_forward(dy, drop, at)
