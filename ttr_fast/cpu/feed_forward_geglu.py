"""The gate of GeGLU on the CPU, between its two matrix products; the mathematics is in ttr_ref/feed_forward_geglu.py.

    gelu(g) = ½ g (1 + tanh u) = g s,   s = 1 / (1 + e^(−2u)),   ½ (1 − tanh² u) = 2 s (1 − s),   1 − s = e^(−2u) s

which takes one power of two and cancels nowhere. gelu is formed again in backward, where the oracle keeps it.
"""

import numpy as np

from ttr_fast.cpu import rows, simd
from ttr_fast.cpu.jit import inner
from ttr_fast.cpu.team import share, team
from ttr_ref.feed_forward_geglu import CUBIC, SLOPE

EXPONENT = -2 * SLOPE / np.log(2)
"""−2u = ln 2 · EXPONENT · (g + CUBIC g³)."""
HIGHEST = 126.0
"""A power of two whose reciprocal nobody sees, times any gate that has it."""


@inner()
def gate_parts(g, like):
    """(e^(−2u), s) of a vector of gates."""
    one = rows.full(like, 1)
    cubic = simd.fma(simd.mul(g, g), rows.full(like, EXPONENT * CUBIC), rows.full(like, EXPONENT))
    z = simd.exp2(rows.vmin(simd.mul(g, cubic), rows.full(like, HIGHEST)))
    return z, simd.div(one, simd.add(one, z))


@inner()
def gate_row(hidden, act, i):
    """Row i."""
    f = act.shape[1]
    for k in range(0, f, rows.lanes_of(hidden)):
        a, g = rows.load_part(hidden, 2 * i * f + k, f - k), rows.load_part(hidden, 2 * i * f + f + k, f - k)
        _, s = gate_parts(g, hidden)
        rows.store_part(simd.mul(a, simd.mul(g, s)), act, i * f + k, f - k)


@team()
def geglu_forward(worker, workers, hidden, act):
    """act (N, F) = a ∘ gelu(g) of hidden (N, 2F) = [a | g]."""
    begin, end = share(worker, workers, act.shape[0])
    for i in range(begin, end):
        gate_row(hidden, act, i)


@team()
def geglu_backward(worker, workers, dact, hidden, dhidden):
    """dhidden (N, 2F), which may be hidden, from dact (N, F)."""
    n, f = dact.shape
    lanes = rows.lanes_of(hidden)
    begin, end = share(worker, workers, n)
    for i in range(begin, end):
        for k in range(0, f, lanes):
            to_a, to_g = 2 * i * f + k, 2 * i * f + f + k
            a, g, d = rows.load_part(hidden, to_a, f - k), rows.load_part(hidden, to_g, f - k), rows.load_part(dact, i * f + k, f - k)
            z, s = gate_parts(g, hidden)
            gelu = simd.mul(g, s)
            slope = simd.fma(simd.mul(g, g), rows.full(hidden, 6 * SLOPE * CUBIC), rows.full(hidden, 2 * SLOPE))
            derivative = simd.fma(simd.mul(gelu, simd.mul(z, s)), slope, s)
            rows.store_part(simd.mul(d, gelu), dhidden, to_a, f - k)
            rows.store_part(simd.mul(simd.mul(d, a), derivative), dhidden, to_g, f - k)
