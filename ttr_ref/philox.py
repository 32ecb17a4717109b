"""Philox4x32-10, the counter-based generator of Salmon et al. 2011 ("Parallel random numbers: as easy as 1, 2, 3", §3.3).

Four 32-bit words in, four random words out; nothing is remembered between calls. One round multiplies two words by constants,
crosses the high and low halves of the products and mixes in the key; the key itself walks by constants (Weyl sequence):

    (x₀, x₁, x₂, x₃) ← (hi(M₁x₂) ⊕ x₁ ⊕ k₀,  lo(M₁x₂),  hi(M₀x₀) ⊕ x₃ ⊕ k₁,  lo(M₀x₀))
    (k₀, k₁) ← (k₀ + W₀, k₁ + W₁)  mod 2³²
"""

import numpy as np
from jaxtyping import Integer, UInt32
from numpy import ndarray

M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
W0, W1 = 0x9E3779B9, 0xBB67AE85
LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
ROUNDS = 10


def philox4x32(counter: tuple[Integer[ndarray, "..."], ...], key: tuple[int, int]) -> UInt32[ndarray, "4 ..."]:
    """Four random words for each counter.

    counter holds four integer arrays that broadcast together, taken modulo 2³²; so is the key.
    """
    x0, x1, x2, x3 = (np.asarray(c).astype(np.uint32).astype(np.uint64) for c in counter)
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = M0 * x0, M1 * x2
        x0, x1, x2, x3 = (p1 >> HALF) ^ x1 ^ np.uint64(k0 % 2**32), p1 & LOW, (p0 >> HALF) ^ x3 ^ np.uint64(k1 % 2**32), p0 & LOW
        k0, k1 = k0 + W0, k1 + W1
    return np.stack(np.broadcast_arrays(x0, x1, x2, x3)).astype(np.uint32)
