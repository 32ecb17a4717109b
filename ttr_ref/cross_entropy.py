"""Cross-entropy of the next token straight from the states, without ever holding the logits of all of them.

    logits_n = x_n W,   LSE_n = ln Σ_v exp logits_nv,   nats_n = LSE_n − logits_n[target_n]

N states times V logits would be the largest array of the whole model, so states come in chunks, and backward forms each chunk's logits again.
LSE is returned too, and takes a gradient: z-loss is the mean of LSE² (Chowdhery et al. 2022, arXiv:2204.02311, §5).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Inexact, Int64, Integer
from numpy import ndarray


class CrossEntropyCache(NamedTuple):
    """What backward needs."""

    x: Inexact[ndarray, "N E"]
    w: Inexact[ndarray, "E V"]
    targets: Integer[ndarray, "N"]
    lse: Inexact[ndarray, "N"]
    chunk: int


class Standing(NamedTuple):
    """Where each target stands among all tokens, the likeliest first and of equally likely ones the smaller id first."""

    rank: Int64[ndarray, "N"]
    """1 for the likeliest."""
    top_nats: Inexact[ndarray, "N"]
    """−ln p of the likeliest."""


def chunks(count: int, chunk: int) -> Iterator[slice]:
    """Slices of `chunk`, the last one shorter."""
    for start in range(0, count, chunk):
        yield slice(start, min(start + chunk, count))


def cross_entropy_forward(
    x: Inexact[ndarray, "N E"], w: Inexact[ndarray, "E V"], targets: Integer[ndarray, "N"], chunk: int
) -> tuple[Inexact[ndarray, "N"], Inexact[ndarray, "N"], CrossEntropyCache]:
    """(nats, LSE, cache) of each state."""
    kind = np.result_type(x, w)
    nats, lse = np.zeros(x.shape[0], kind), np.zeros(x.shape[0], kind)
    for rows in chunks(x.shape[0], chunk):
        logits = x[rows] @ w
        top = logits.real.max(axis=-1, keepdims=True)
        lse[rows] = top[:, 0] + np.log(np.exp(logits - top).sum(axis=-1))
        nats[rows] = lse[rows] - logits[np.arange(logits.shape[0]), targets[rows]]
    return nats, lse, CrossEntropyCache(x, w, targets, lse, chunk)


def cross_entropy_backward(
    dnats: Inexact[ndarray, "N"], dlse: Inexact[ndarray, "N"], cache: CrossEntropyCache
) -> tuple[Inexact[ndarray, "N E"], Inexact[ndarray, "E V"]]:
    """(dx, dw). ∂LSE/∂logits is the softmax P, so dlogits = (dnats + dlse) P − dnats · onehot(target)."""
    x, w, targets, lse, chunk = cache
    dx, dw = np.zeros_like(x), np.zeros_like(w)
    for rows in chunks(x.shape[0], chunk):
        dlogits = np.exp(x[rows] @ w - lse[rows, None]) * (dnats + dlse)[rows, None]
        dlogits[np.arange(dlogits.shape[0]), targets[rows]] -= dnats[rows]
        dx[rows] = dlogits @ w.T
        dw += x[rows].T @ dlogits
    return dx, dw


def standing_of(logits: Inexact[ndarray, "N V"], lse: Inexact[ndarray, "N"], targets: Integer[ndarray, "N"]) -> Standing:
    """That of one chunk."""
    own = logits[np.arange(logits.shape[0]), targets][:, None]
    before = (logits > own) | ((logits == own) & (np.arange(logits.shape[1]) < targets[:, None]))
    return Standing(1 + before.sum(axis=-1, dtype=np.int64), lse - logits.max(axis=-1))


def joined(parts: list[Standing]) -> Standing:
    """One chunk after the other."""
    return Standing(np.concatenate([p.rank for p in parts]), np.concatenate([p.top_nats for p in parts]))


def standings(cache: CrossEntropyCache) -> Standing:
    """That of all states, whose logits are formed again."""
    x, w, targets, lse, chunk = cache
    return joined([standing_of(x[rows] @ w, lse[rows], targets[rows]) for rows in chunks(x.shape[0], chunk)])
