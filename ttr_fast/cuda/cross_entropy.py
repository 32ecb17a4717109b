"""Cross-entropy on the GPU for one chunk of logits; the mathematics is in ttr_ref/cross_entropy.py.

The logits of a chunk of states are formed by whoever calls, (N, V) in the type of arithmetic; backward writes their gradients in storage, in place
where that is the same type. nats = (top − logit) + ln Σ exp(… − top): both terms are positive, nothing cancels.

Ladder:
1. Forward: a block owns a row and reads it twice; its maximum and its sum are trees. Backward: a thread owns a logit. Measured: not yet, no device.
"""

from ttr_fast.cuda.jit import blocks_for, cuda, kernel
from ttr_fast.cuda.numbers import exp, log, number, store
from ttr_fast.cuda.rows import THREADS, block_max, block_sum


@kernel("C[:, ::1], int64[::1], C[::1], C[::1]", registers=32, shared=8 * THREADS, threads=THREADS)
def row_nats(logits, targets, nats, lse):
    """Block i has row i."""
    scratch = cuda.shared.array(THREADS, logits.dtype)
    i, t, vocabulary = cuda.blockIdx.x, cuda.threadIdx.x, logits.shape[1]
    top, total = logits[i, 0], number(logits, 0)
    for k in range(t, vocabulary, THREADS):
        top = max(top, logits[i, k])
    top = block_max(scratch, top)
    for k in range(t, vocabulary, THREADS):
        total += exp(logits[i, k] - top)
    total = log(block_sum(scratch, total))
    if t == 0:
        lse[i] = top + total
        nats[i] = (top - logits[i, targets[i]]) + total


def cross_entropy_forward(logits, targets, nats, lse) -> None:
    """nats, lse (N,) of logits (N, V) and targets (N,) int64 in 0 … V − 1."""
    if logits.shape[0]:
        row_nats[logits.shape[0], THREADS](logits, targets, nats, lse)


@kernel("C[::1], C[::1], int64[::1], C[::1], C[:, ::1], S[:, ::1]", registers=32, threads=THREADS)
def logit_gradients(dnats, dlse, targets, lse, logits, dlogits):
    """One thread for each logit."""
    at, vocabulary = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, logits.shape[1]
    if at < logits.size:
        i, k = at // vocabulary, at % vocabulary
        d = exp(logits[i, k] - lse[i]) * (dnats[i] + dlse[i])
        if k == targets[i]:
            d -= dnats[i]
        store(d, dlogits, (i, k))


def cross_entropy_backward(dnats, dlse, targets, lse, logits, dlogits) -> None:
    """dlogits (N, V) of any storage, which may be logits; dnats, dlse, lse (N,)."""
    logit_gradients[blocks_for(logits.size, THREADS), THREADS](dnats, dlse, targets, lse, logits, dlogits)
