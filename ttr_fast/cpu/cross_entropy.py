"""Cross-entropy on the CPU for one chunk of logits; the mathematics is in ttr_ref/cross_entropy.py.

The logits of a chunk of states are formed by whoever calls, (N, V) in the type of arithmetic, once for forward and again for backward, which turns
them into their gradients in place. A row's largest logit and its sum of exponentials run over V in vectors; only the last logarithm is float64.
"""

import numpy as np

from ttr_fast.cpu import rows, simd
from ttr_fast.cpu.team import share, team
from ttr_fast.cpu.time_bias import LOG2E


@team()
def cross_entropy_forward(worker, workers, logits, targets, nats, lse):
    """nats, lse (N,) of logits (N, V) and targets (N,) int64 in 0 … V − 1."""
    n, vocabulary = logits.shape
    lanes = rows.lanes_of(logits)
    begin, end = share(worker, workers, n)
    for i in range(begin, end):
        nothing = rows.full(logits, -np.inf)
        tops = nothing
        for k in range(0, vocabulary, lanes):
            tops = simd.vmax(rows.load_or(logits, i * vocabulary + k, vocabulary - k, nothing), tops)
        top = simd.largest(tops)
        sums, log2e = rows.full(logits, 0), rows.full(logits, LOG2E)
        for k in range(0, vocabulary, lanes):
            x = simd.sub(rows.load_or(logits, i * vocabulary + k, vocabulary - k, nothing), simd.splat(top))
            sums = simd.add(sums, simd.exp2(simd.mul(x, log2e)))
        exact = np.float64(top) + np.log(np.float64(simd.total(sums)))
        lse[i] = exact
        nats[i] = exact - np.float64(logits[i, targets[i]])


@team()
def cross_entropy_backward(worker, workers, dnats, dlse, targets, lse, logits, dlogits):
    """dlogits (N, V) of any storage, which may be logits; dnats, dlse, lse (N,)."""
    n, vocabulary = logits.shape
    lanes = rows.lanes_of(logits)
    begin, end = share(worker, workers, n)
    for i in range(begin, end):
        log2e, both, own = rows.full(logits, LOG2E), rows.full(logits, dnats[i] + dlse[i]), rows.full(logits, dnats[i])
        top = rows.full(logits, lse[i])
        for k in range(0, vocabulary, lanes):
            x = simd.sub(rows.load_part(logits, i * vocabulary + k, vocabulary - k), top)
            d = simd.mul(simd.exp2(simd.mul(x, log2e)), both)
            d = simd.sub(d, rows.only_lane(own, targets[i] - k))
            rows.store_part(d, dlogits, i * vocabulary + k, vocabulary - k)
