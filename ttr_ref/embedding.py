"""Token embedding: row `token` of a table, times √E (Vaswani et al. 2017, arXiv:1706.03762, §3.4).

The table also makes the logits, z Wᵀ, for which entries of size 1/√E are right; the factor brings what enters the first block to size 1, the
size of the time features it meets there. The gradient of a row is the sum over the places that looked it up.
"""

import numpy as np
from jaxtyping import Inexact, Integer
from numpy import ndarray

from .timeline import Timeline


def embedding_forward(tokens: Integer[ndarray, "B T"], table: Inexact[ndarray, "V E"], at: Timeline) -> Inexact[ndarray, "B T E"]:
    """x = √E table[token]; zeros in padding, whose tokens are never read.

    Raises ValueError for a token outside 0 … V − 1.
    """
    known = np.where(at.is_token, tokens, 0)
    if known.size and (known.min() < 0 or known.max() >= table.shape[0]):
        b, t = np.argwhere((known < 0) | (known >= table.shape[0]))[0]
        raise ValueError(f"embedding: token {known[b, t]} at row {b}, place {t} is outside the vocabulary of {table.shape[0]}")
    return np.where(at.is_token[..., None], table[known], 0) * table.shape[1] ** 0.5


def embedding_backward(
    dx: Inexact[ndarray, "B T E"], tokens: Integer[ndarray, "B T"], table: Inexact[ndarray, "V E"], at: Timeline
) -> Inexact[ndarray, "V E"]:
    """dtable[v] = √E Σ dx over the places with token v."""
    dtable = np.zeros_like(table)
    np.add.at(dtable, tokens[at.is_token], dx[at.is_token])
    return dtable * table.shape[1] ** 0.5
