"""How far two correct computations of the same thing may lie apart: limits derived from the number of roundings, shared by many tests.

A sum of n terms in floating point is off by at most n·eps/2 times the sum of their magnitudes, to first order (Higham 2002, Accuracy and Stability
of Numerical Algorithms, §3.1 and §4.2). So each limit is a count of roundings times eps times the same formula with every term made positive.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from numpy import ndarray

from tests.ref.cases import Problem
from ttr_ref.attention import AttentionCache, attention_backward, scores
from ttr_ref.time_bias import ExpBias, LogBias, TableBias, TimeBias, softplus, time_bias_backward
from ttr_ref.tree import named_leaves, tree_map

EPS = float(np.finfo(np.float64).eps)
SHARES: list[float] = []
"""What `share` has found in the test that runs."""


def share(actual: Any, expected: Any, limit: Any) -> float:
    """The largest difference as a share of its limit; NaN, which no comparison accepts, when something is not a number."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    with np.errstate(invalid="ignore"):  # −∞ − (−∞), where both are −∞
        difference = np.where(actual == expected, 0, np.abs(actual - expected))
    limit = np.broadcast_to(limit, difference.shape)
    shares = np.divide(difference, limit, out=np.where(difference == 0, 0.0, np.inf), where=limit > 0)
    shares[np.isnan(difference)] = np.nan
    SHARES.append(float(shares.max(initial=0.0)))
    return SHARES[-1]


def same_bits(a: Any, b: Any) -> bool:
    """Whether two trees of arrays agree in every type, shape and bit."""
    ours, theirs = named_leaves(a), named_leaves(b)
    return ours.keys() == theirs.keys() and all(
        x.dtype == theirs[name].dtype and x.shape == theirs[name].shape and x.tobytes() == theirs[name].tobytes() for name, x in ours.items()
    )


class AttentionLimits(NamedTuple):
    """For O, LSE and the gradients: how far one computation may be from the exact value."""

    o: ndarray
    lse: ndarray
    dq: ndarray
    dk: ndarray
    dv: ndarray
    dbias: TimeBias


def bias_size(params: TimeBias, b: ndarray) -> ndarray:
    """The size of the terms that make up b: those of `exp` may cancel, and a table's neighbours are told apart by log₂, off by its own size."""
    match params:
        case ExpBias(alpha, _):
            return np.abs(alpha).sum(1)[:, None, None]
        case TableBias(table):
            return (table.shape[1] * np.abs(table).max(1))[:, None, None]
        case _:
            return np.abs(b)


def attention_limits(
    p: Problem, cache: AttentionCache, eps: float = EPS, from_reference: bool = False, stored: float = 0.0, flushed: float = 0.0,
    factors: float = 0.0
) -> AttentionLimits:  # fmt: skip
    """Limits of one computation of `p`, from the probabilities in `cache`; two computations may differ by twice as much.

    from_reference: each score's sum starts at minus the row's reference, so that all its D roundings are of that size too, and `log` rounds 1 + Δ/c
    before it takes the logarithm, which moves the bias by a few eps of s. stored: eps of the type in which O is kept, also for backward's dO · O.
    flushed: the weight below which a weight is 0. factors: eps of the type to which weights and the gradients of scores are rounded before they are
    multiplied; products of it take numbers below `flushed` for 0, and sums too.

    A score is a sum of D products and a bias of a few roundings; what is exponentiated is a difference of scores, rounded to their size.
    An error ε of the exponents is a relative error of 2ε of the probabilities; the sum over T_k keys and an online softmax add 3 roundings a key.
    """
    q, k, v, read, prob, mask, _, bias_cache, groups = cache
    width, keys, scale = q.shape[-1], k.shape[-2], q.shape[-1] ** -0.5
    s, _, _ = scores(q, k, p.at_q, p.at_k, p.bias, p.time, p.causal, p.window)
    products = np.where(read, np.abs(q) @ np.abs(k).swapaxes(-1, -2) * scale, 0)
    s = np.where(read, s, 0)
    exponent = (width / 2 + 3) * products + 8 * bias_size(p.bias, s) + 3 * np.abs(s).max(-1, keepdims=True, initial=0)
    if from_reference:
        exponent = exponent + (width / 2 + 4) * np.abs(s).max(-1, keepdims=True, initial=0)
        if isinstance(p.bias, LogBias):
            exponent = exponent + 4 * softplus(p.bias.a)[:, None, None]
    exponent = exponent.max(-1, keepdims=True, initial=0) * eps
    tiny = flushed if factors else 0.0
    exponent = exponent + scale * lost_in_products(tiny, q, k).max(-1, keepdims=True, initial=0)
    r = 2 * exponent + (3 * keys + 10) * eps
    dropped = prob * mask
    o_size = dropped @ np.abs(v)
    some = read.any(-1)
    lse = np.where(some, exponent[..., 0] + (3 * keys + 6) * eps + eps * np.abs(s).max(-1, initial=0), 0)

    # the gradients with all terms positive: each G_ij is off by 2r (P, and O in the bracket) and the sums over D
    dlse = 0 if p.dlse is None else np.abs(p.dlse)[..., None]
    g = prob * (mask * (np.abs(p.do) @ np.abs(v).swapaxes(-1, -2)) + (np.abs(p.do) * o_size).sum(-1, keepdims=True) + dlse)
    per_entry = 2 * r + (width + keys + 10) * eps
    lost = flushed * read * (1 + mask)
    rounded = stored * prob * (np.abs(p.do) * o_size).sum(-1, keepdims=True)
    rounded = rounded + lost * (np.abs(p.do) @ np.abs(v).swapaxes(-1, -2) + (np.abs(p.do) * o_size).sum(-1, keepdims=True) + dlse)
    rounded = rounded + prob * mask * lost_in_products(tiny, p.do, v)
    dq = ((g * (per_entry + factors / 2) + rounded) @ np.abs(k) + lost_in_products(tiny, g, k.swapaxes(-1, -2))) * scale
    dk = (g * (per_entry + q.shape[2] * eps + factors / 2) + rounded).swapaxes(-1, -2) @ np.abs(q) * scale
    dk = dk + lost_in_products(tiny, g.swapaxes(-1, -2), q.swapaxes(-1, -2)) * scale
    dv = (dropped * (r + (q.shape[2] + 4) * eps + factors / 2) + lost).swapaxes(-1, -2) @ np.abs(p.do)
    dv = dv + lost_in_products(tiny, dropped.swapaxes(-1, -2), p.do.swapaxes(-1, -2))
    pairs = q.shape[0] * q.shape[2] * keys
    dbias = bias_gradient_size(g * (per_entry + (pairs + 20) * eps) + rounded, bias_cache)
    if isinstance(p.bias, (ExpBias, TableBias)):  # coefficients off by a few eps of 1, not of themselves
        few = 8 * eps * g.sum((0, 2, 3))[:, None] * (1 + bias_size(p.bias, s).reshape(-1, 1))
        dbias = tree_map(lambda size: size + few, dbias)

    def summed(x: ndarray) -> ndarray:
        return x.reshape(x.shape[0], groups, -1, *x.shape[2:]).sum(2)

    return AttentionLimits((r + (stored + factors) / 2) * o_size + lost @ np.abs(v), lse, dq, summed(dk), summed(dv), dbias)


def lost_in_products(tiny: float, a: ndarray, b: ndarray) -> Any:
    """How far a · bᵀ moves where factors and sums below `tiny` are taken for 0."""
    return tiny * (np.abs(a).sum(-1)[..., :, None] + np.abs(b).sum(-1)[..., None, :] + 2 * a.shape[-1]) if tiny else np.zeros((1, 1))


def bias_gradient_size(g: ndarray, bias_cache: Any) -> TimeBias:
    """Σ |G| |∂b/∂parameter|. For each parameter ∂b/∂parameter has one sign for all Δ, so the gradient of positive G has no cancellation."""
    return tree_map(np.abs, time_bias_backward(np.broadcast_to(g, g.shape), bias_cache))


def worst_share(actual: Any, expected: Any, limit: Any) -> float:
    """The largest share over the leaves of two trees, both of them rounded, and so twice the limit apart at most."""
    shares = tree_map(lambda a, e, l: np.asarray(share(a, e, 2 * l)), actual, expected, limit)
    return float(np.max([*named_leaves(shares).values(), np.zeros(())]))


def reordered_share(actual: Any, expected: Any, sensitive: Any, longest_sum: int) -> float:
    """The largest share where `actual` sums in another order than `expected`, n = longest_sum terms at most: see `sensitivity`.

    What is exactly zero whatever the weights, as the gradient of a rotary frequency where each query reads one key, is a rounding of roundings:
    (n·eps)² times the largest sensitivity of all.
    """
    moved = longest_sum * EPS
    second = moved**2 * max(float(s) for s in named_leaves(sensitive).values())
    return worst_share(actual, expected, tree_map(lambda s: moved * s + second, sensitive))


def sensitivity(f: Callable[[Any], Any], weights: Any, seed: int = 0) -> Any:
    """For each leaf of f(weights): how much it moves, at most, for each unit of relative change in the weights.

    A rounded product x W is the exact one of x and a W that is off by (number of terms)·eps/2 (backward error, Higham 2002, §3.5), so a network
    evaluated in another order is a network with slightly other weights. What that does to the result, through norms, softmax and gates, is measured
    here by moving all weights at once by ±2⁻²⁶, in four random directions; at this size neither curvature nor rounding is seen.
    In two places weights cannot stand for rounding. The softmax's gradient takes dO · O off dO · v, which is the same where a query reads one key,
    whatever the weights. And the gradient of a rotary frequency is a sum of τ times something over queries and keys, of which differences of τ
    alone are left. So O, dQ and dK are moved as well, in backward alone.
    """
    moves = [tree_map(lambda d: np.abs(d).max(initial=0.0), change) for change in changes(f, weights, 4, seed)]
    return tree_map(lambda *each: np.asarray(np.max(each)), *moves)


def noise(f: Callable[[Any], Any], weights: Any) -> Any:
    """For each leaf of f(weights): the root mean square, over eight random directions, of the norm of its change for a unit of relative change.

    As `sensitivity`, for roundings so many that they are as good as random.
    """
    squares = [tree_map(lambda d: np.square(d).sum(), change) for change in changes(f, weights, 8, 0)]
    return tree_map(lambda *each: np.sqrt(np.mean(each)), *squares)


def changes(f: Callable[[Any], Any], weights: Any, draws: int, seed: int) -> Iterator[Any]:
    """The change of f(weights) for a unit of relative change in one random direction after the other."""
    rng, step = np.random.default_rng(seed), 2.0**-26

    def shaken(a: ndarray) -> ndarray:
        return a * (1 + step * rng.choice([-1.0, 1.0], a.shape))

    def backward(do: ndarray, dlse: ndarray | None, cache: AttentionCache) -> Any:
        dq, dk, dv, dbias = attention_backward(do, dlse, cache._replace(o=shaken(cache.o)))
        return shaken(dq), shaken(dk), dv, dbias

    base = f(weights)
    for _ in range(draws):
        with patch("ttr_ref.multi_head_attention.attention_backward", backward):
            result = f(tree_map(shaken, weights))
        yield tree_map(lambda a, b: (np.asarray(a) - np.asarray(b)) / step, result, base)
