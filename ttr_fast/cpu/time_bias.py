"""The Δt bias inside a tile; the mathematics is in ttr_ref/time_bias.py.

Kernels work in powers of two: `bias_row` multiplies what is linear in the bias by log₂ e, so that the softmax is 2^(score). A tile forms the
scaled difference of times

    y_ij = (t_i − t_j) · rate + shift        rate: 1/c (log), 1/unit (linear), 1 (exp), 1/c₀ (table);  shift: 1 where y goes into a logarithm

for each pair in its own arithmetic, and `emit_bias` turns a vector of y into one of biases.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64
from llvmlite import ir
from numba import types
from numpy import ndarray

from ttr_fast.cpu.simd import I32, Emitter
from ttr_ref.config import BiasKind, TimeConfig
from ttr_ref.time_bias import ExpBias, LinearBias, LogBias, NoBias, TableBias, TimeBias, sigmoid, softplus
from ttr_ref.tree import tree_map

LOG2E = 1 / np.log(2)
SHIFTS: dict[BiasKind, float] = {"none": 0.0, "linear": 0.0, "log": 1.0, "exp": 0.0, "table": 1.0}


class BiasTable(NamedTuple):
    """What a kernel is told: the kind, the number of terms or knots, a rate and a row of parameters for each head."""

    kind: BiasKind
    terms: int
    rate: Float64[ndarray, "H"]
    parameters: Float64[ndarray, "H n"]


def bias_table(bias: TimeBias, time: TimeConfig, heads: int) -> BiasTable:
    """The parameters in the units of kernels."""
    match bias:
        case NoBias():
            return BiasTable("none", 0, np.zeros(heads), np.zeros((heads, 1)))
        case LinearBias(a):
            return BiasTable("linear", 0, np.full(heads, 1 / time.unit), -LOG2E * softplus(a.astype(np.float64))[:, None])
        case LogBias(a, rho):
            return BiasTable("log", 0, np.exp(-rho.astype(np.float64)), -softplus(a.astype(np.float64))[:, None])
        case ExpBias(alpha, log_rate):
            beta = np.exp(log_rate.astype(np.float64))
            return BiasTable("exp", alpha.shape[1], np.ones(heads), LOG2E * np.hstack([alpha, -beta]))
        case TableBias(table):
            return BiasTable("table", table.shape[1], np.full(heads, 1 / time.shortest), LOG2E * table.astype(np.float64))


def emit_bias(e: Emitter, kind: BiasKind, terms: int, parameters: list[ir.Value], table: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    """x + log₂ e · b(Δ) for a vector of y. `parameters` are the head's, in every lane, but for a table, whose address `table` is read."""
    match kind:
        case "none":
            return x
        case "linear":
            return e.fma(parameters[0], y, x)
        case "log":
            return e.fma(parameters[0], e.log2(y), x)
        case "exp":
            for m in range(terms):
                x = e.fma(parameters[m], e.exp2(e.b.fmul(parameters[terms + m], y)), x)
            return x
        case "table":
            below, fraction = emit_knot(e, terms, y)
            left, right = (gathered(e, table, below, k) for k in (0, 1))
            return e.b.fadd(x, e.fma(fraction, e.b.fsub(right, left), left))


def emit_knot(e: Emitter, knots: int, y: ir.Value) -> tuple[ir.Value, ir.Value]:
    """(the knot below log₂ y as integers, the fraction towards the next), clamped at the last."""
    u = e.log2(y)
    last = e.constant(knots - 1)
    u = e.b.select(e.b.fcmp_ordered("<", u, last), u, last)
    below = e.b.fptosi(u, e.int_vector)
    highest = e.integers(knots - 2)
    below = e.b.select(e.b.icmp_signed("<", below, highest), below, highest)
    return below, e.b.fsub(u, e.b.sitofp(below, e.vector_type))


def gathered(e: Emitter, table: ir.Value, index: ir.Value, shift: int) -> ir.Value:
    """table[index + shift], lane by lane."""
    result: Any = ir.Constant(e.vector_type, ir.Undefined)
    for lane in range(e.lanes):
        at = e.b.extract_element(index, ir.Constant(I32, lane))
        at = e.b.add(at, ir.Constant(e.int_type, shift))
        result = e.b.insert_element(result, e.b.load(e.b.gep(table, [at]), align=e.bytes), ir.Constant(I32, lane))
    return result


def emit_parameters(e: Emitter, kind: BiasKind, terms: int, pointer: ir.Value) -> list[ir.Value]:
    """The head's row of parameters, each in every lane; empty for none and table."""
    count = {"none": 0, "linear": 1, "log": 1, "exp": 2 * terms, "table": 0}[kind]
    return [e.splat(e.b.load(e.b.gep(pointer, [ir.Constant(I32, k)]), align=e.bytes)) for k in range(count)]


def sums_size(kind: BiasKind, terms: int, lanes: int) -> int:
    """Numbers in which `add_bias_sums` collects, a vector for each of its sums."""
    return {"none": 0, "linear": 1, "log": 2, "exp": 2 * terms, "table": terms}[kind] * lanes


def add_bias_sums(
    e: Emitter, several: Emitter, kind: BiasKind, terms: int, parameters: list[ir.Value], g: ir.Value, y: ir.Value, sums: ir.Value
) -> None:
    """What the parameters' gradients need of G = ∂L/∂b, in vectors of `several`, added lane by lane of `e`, so that no two lanes meet in one place:

    linear Σ G y;  log Σ G log₂ y and Σ G (y − 1)/y;  exp Σ G e_m and Σ G y e_m for each m;  table the two shares of each knot.
    """

    def collect(number: int, term: ir.Value | None, factor: ir.Value) -> None:
        """Add term · factor, or factor, to one of the sums."""
        at = e.b.gep(sums, [ir.Constant(I32, number * e.lanes)])
        scalar = types.float64 if e.double else types.float32
        total = e.load(at, scalar)
        for i, part in enumerate(e.parts(factor)):
            total = e.b.fadd(total, part) if term is None else e.fma(e.parts(term)[i], part, total)
        e.store(total, at, scalar)

    match kind:
        case "linear":
            collect(0, g, y)
        case "log":
            collect(0, g, several.log2(y))
            collect(1, g, e.b.fdiv(e.b.fsub(y, several.constant(1.0)), y))
        case "exp":
            for m in range(terms):
                term = e.b.fmul(g, several.exp2(e.b.fmul(parameters[terms + m], y)))
                collect(m, None, term)
                collect(terms + m, term, y)
        case "table":
            below, fraction = emit_knot(several, terms, y)
            right = e.b.fmul(g, fraction)
            left = e.b.fsub(g, right)
            for lane in range(several.lanes):
                index = e.b.mul(e.b.extract_element(below, ir.Constant(I32, lane)), ir.Constant(e.int_type, e.lanes))
                for share, shift in ((left, lane % e.lanes), (right, lane % e.lanes + e.lanes)):
                    at = e.b.gep(sums, [e.b.add(index, ir.Constant(e.int_type, shift))])
                    e.b.store(e.b.fadd(e.b.load(at, align=e.bytes), e.b.extract_element(share, ir.Constant(I32, lane))), at, align=e.bytes)


def bias_gradient(bias: TimeBias, time: TimeConfig, sums: Float64[ndarray, "H n"]) -> TimeBias:
    """The parameters' gradients from the sums over all pairs, one column for each vector of add_bias_sums."""
    match bias:
        case NoBias():
            return bias
        case LinearBias(a):
            gradient: TimeBias = LinearBias(-sums[:, 0] * sigmoid(a.astype(np.float64)))
        case LogBias(a, _):
            wide = a.astype(np.float64)
            gradient = LogBias(-np.log(2) * sums[:, 0] * sigmoid(wide), softplus(wide) * sums[:, 1])
        case ExpBias(alpha, log_rate):
            m = alpha.shape[1]
            gradient = ExpBias(sums[:, :m], -alpha.astype(np.float64) * np.exp(log_rate.astype(np.float64)) * sums[:, m:])
        case TableBias():
            gradient = TableBias(sums)
    return tree_map(lambda g, p: g.astype(p.dtype), gradient, bias)
