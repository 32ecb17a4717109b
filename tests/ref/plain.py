"""The random numbers once more, with Python's own integers and one value at a time: slow, and independent of the oracle's arrays."""

import numpy as np
from numpy import ndarray

from ttr_ref.dropout import Dropout
from ttr_ref.timeline import Timeline


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 as Salmon et al. 2011 print it."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def kept(drop: Dropout, row: int, column: int, third: int) -> bool:
    """Whether dropout keeps the value at this place; a negative count is taken modulo 2³²."""
    seed, step = drop.key
    words = philox((column // 4 % 2**32, row % 2**32, third % 2**32, drop.site % 2**32), (seed % 2**32, step % 2**32))
    return words[column % 4] >= round(drop.p * 2**32)


def attention_mask(drop: Dropout, at_q: Timeline, at_k: Timeline, heads: int) -> ndarray:
    """m_ij of each row, head, query and key: 0, or 1 / (1 − p)."""
    mask = np.zeros((at_q.time.shape[0], heads, at_q.time.shape[1], at_k.time.shape[1]))
    for b, h, i, j in np.ndindex(mask.shape):
        third = int(at_q.document[b, i]) * heads + h
        mask[b, h, i, j] = kept(drop, int(at_q.position[b, i]), int(at_k.position[b, j]), third) / (1 - drop.p)
    return mask
