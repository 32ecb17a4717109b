"""Philox4x32-10 on the GPU; the generator is explained in ttr_ref/philox.py."""

import numpy as np

from ttr_fast.cuda.jit import inner
from ttr_ref.philox import M0, M1, ROUNDS, W0, W1


@inner
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Four random words for four words and a key, all uint64 below 2³²."""
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(ROUNDS):
        p0, p1 = np.uint64(M0) * c0, np.uint64(M1) * c2
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ k0, p1 & low, (p0 >> half) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + np.uint64(W0)) & low, (k1 + np.uint64(W1)) & low
    return c0, c1, c2, c3
