"""Philox4x32-10 inside a tile; the generator is explained in ttr_ref/philox.py, the meaning of the counters in ttr_ref/dropout.py.

`emit_keep` gives what a kept weight is multiplied by, 1/(1 − p), and 0 for a dropped one, for four rows of one vector each.
"""

from collections.abc import Sequence

from llvmlite import ir

from ttr_fast.cpu.simd import I32, I64
from ttr_ref.philox import M0, M1, ROUNDS, W0, W1


def emit_philox(b: ir.IRBuilder, counters: Sequence[ir.Value], key: tuple[ir.Value, ir.Value], lanes: int) -> list[ir.Value]:
    """Four vectors of random words for four vectors of counters; key: two scalars. All are i32."""
    narrow, wide = ir.VectorType(I32, lanes), ir.VectorType(I64, lanes)
    half = ir.Constant(wide, [32] * lanes)

    def product(x: ir.Value, factor: int) -> tuple[ir.Value, ir.Value]:
        full = b.mul(b.zext(x, wide), ir.Constant(wide, [factor] * lanes))
        return b.trunc(b.lshr(full, half), narrow), b.trunc(full, narrow)

    def everywhere(x: ir.Value) -> ir.Value:
        undefined = ir.Constant(narrow, ir.Undefined)
        return b.shuffle_vector(b.insert_element(undefined, x, ir.Constant(I32, 0)), undefined, ir.Constant(narrow, [0] * lanes))

    x0, x1, x2, x3 = counters
    k0, k1 = key
    for _ in range(ROUNDS):
        (high0, low0), (high1, low1) = product(x0, int(M0)), product(x2, int(M1))
        x0, x1, x2, x3 = b.xor(b.xor(high1, x1), everywhere(k0)), low1, b.xor(b.xor(high0, x3), everywhere(k1)), low0
        k0, k1 = b.add(k0, ir.Constant(I32, W0)), b.add(k1, ir.Constant(I32, W1))
    return [x0, x1, x2, x3]
