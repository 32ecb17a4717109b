"""Philox4x32-10 in vectors; the generator is explained in ttr_ref/philox.py."""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from ttr_ref.philox import M0, M1, ROUNDS, W0, W1

I32, I64 = ir.IntType(32), ir.IntType(64)


def emit_philox(b: Any, counters: Sequence[ir.Value], key: tuple[ir.Value, ir.Value], lanes: int) -> list[ir.Value]:
    """Four vectors of random words for four vectors of counters; key: two scalars. All are i32."""
    narrow, wide = ir.VectorType(I32, lanes), ir.VectorType(I64, lanes)
    half = ir.Constant(wide, [32] * lanes)

    def product(x: ir.Value, factor: int) -> tuple[ir.Value, ir.Value]:
        full = b.mul(b.zext(x, wide), ir.Constant(wide, [factor] * lanes))
        return b.trunc(b.lshr(full, half), narrow), b.trunc(full, narrow)

    x0, x1, x2, x3 = counters
    k0, k1 = key
    for _ in range(ROUNDS):
        (high0, low0), (high1, low1) = product(x0, int(M0)), product(x2, int(M1))
        x0, x1, x2, x3 = b.xor(b.xor(high1, x1), everywhere(b, k0, lanes)), low1, b.xor(b.xor(high0, x3), everywhere(b, k1, lanes)), low0
        k0, k1 = b.add(k0, ir.Constant(I32, W0)), b.add(k1, ir.Constant(I32, W1))
    return [x0, x1, x2, x3]


def everywhere(b: Any, x: ir.Value, lanes: int) -> ir.Value:
    """A scalar in every lane."""
    undefined = ir.Constant(ir.VectorType(x.type, lanes), ir.Undefined)
    return b.shuffle_vector(b.insert_element(undefined, x, ir.Constant(I32, 0)), undefined, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))
