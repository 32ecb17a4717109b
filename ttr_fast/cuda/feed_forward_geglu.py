"""The gate of GeGLU on the GPU, between its two matrix products; the mathematics is in ttr_ref/feed_forward_geglu.py.

    gelu(g) = ½ g (1 + tanh u) = g s,   s = 1 / (1 + e^(−2u)),   ½ (1 − tanh² u) = 2 s (1 − s),   1 − s = e^(−2u) s

which takes one exponential and cancels nowhere. gelu is formed again in backward, where the oracle keeps it.

Ladder:
1. A thread owns one pair of a feature and its gate. Measured: not yet, no device.
"""

from ttr_fast.cuda.jit import blocks_for, cuda, inner, kernel
from ttr_fast.cuda.numbers import exp, load, number, store
from ttr_ref.feed_forward_geglu import CUBIC, SLOPE

THREADS = 256
HIGHEST = 87.0
"""e to this is a float32 still, times any gate that has it nothing is left."""


@inner
def gate_parts(g, like):
    """(e^(−2u), s) of a gate."""
    exponent = number(like, -2 * SLOPE) * g * (number(like, 1) + number(like, CUBIC) * g * g)
    z = exp(min(exponent, number(like, HIGHEST)))
    return z, number(like, 1) / (number(like, 1) + z)


@kernel("S[:, ::1], S[:, ::1]", registers=32, threads=THREADS)
def gate(hidden, act):
    """One thread for each item of act."""
    at, f = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, act.shape[1]
    if at < act.shape[0] * f:
        i, k = at // f, at % f
        g = load(hidden, (i, f + k))
        _, s = gate_parts(g, hidden)
        store(load(hidden, (i, k)) * (g * s), act, (i, k))


def geglu_forward(hidden, act) -> None:
    """act (N, F) = a ∘ gelu(g) of hidden (N, 2F) = [a | g]."""
    gate[blocks_for(act.shape[0] * act.shape[1], THREADS), THREADS](hidden, act)


@kernel("S[:, ::1], S[:, ::1], S[:, ::1]", registers=40, threads=THREADS)
def gate_gradients(dact, hidden, dhidden):
    """One thread for each item of dact."""
    at, f = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, dact.shape[1]
    if at < dact.shape[0] * f:
        i, k = at // f, at % f
        a, g, d = load(hidden, (i, k)), load(hidden, (i, f + k)), load(dact, (i, k))
        z, s = gate_parts(g, hidden)
        slope = number(hidden, 2 * SLOPE) + number(hidden, 6 * SLOPE * CUBIC) * g * g
        store(d * (g * s), dhidden, (i, k))
        store(d * a * (s + g * s * (z * s) * slope), dhidden, (i, f + k))


def geglu_backward(dact, hidden, dhidden) -> None:
    """dhidden (N, 2F), which may be hidden, from dact (N, F)."""
    gate_gradients[blocks_for(dact.shape[0] * dact.shape[1], THREADS), THREADS](dact, hidden, dhidden)
