"""Cases of what works on each token alone: norm, projections, feed-forward, embedding, dropout."""

from typing import Any

import numpy as np
from numpy import ndarray

from ttr_ref.config import BlockConfig
from ttr_ref.dropout import Dropout, DropoutKey, dropout_backward, dropout_forward, head_dropout_backward, head_dropout_forward
from ttr_ref.embedding import embedding_backward, embedding_forward
from ttr_ref.feed_forward_geglu import (
    FeedForwardGegluParams,
    feed_forward_geglu_backward,
    feed_forward_geglu_forward,
    gelu_backward,
    gelu_forward,
)
from ttr_ref.linear import linear_backward
from ttr_ref.rms_norm import rms_norm_backward, rms_norm_forward

from .harness import Arguments, Case, seeded
from .places import packed, padded

Outputs = tuple[ndarray, ...]


def rms_norm_case(shape: tuple[int, ...], size: float, eps: float) -> Case:
    label = f"x {shape} of size {size}, eps {eps}"
    rng = seeded(label)

    def forward(x: ndarray, weight: ndarray) -> tuple[Outputs, Any]:
        y, cache = rms_norm_forward(x, weight, eps)
        return (y,), cache

    def backward(dy: Outputs, cache: Any) -> Arguments:
        return dict(zip(("x", "weight"), rms_norm_backward(dy[0], cache), strict=True))

    arguments = {"x": size * rng.standard_normal(shape), "weight": rng.standard_normal(shape[-1])}
    return Case(rms_norm_backward, label, arguments, forward, backward)


def linear_case(shape: tuple[int, ...], out: int) -> Case:
    label = f"x {shape} to {out}"
    rng = seeded(label)

    def forward(x: ndarray, w: ndarray) -> tuple[Outputs, Any]:
        return (x @ w,), (x, w)

    def backward(dy: Outputs, cache: Any) -> Arguments:
        return dict(zip(("x", "w"), linear_backward(dy[0], *cache), strict=True))

    return Case(linear_backward, label, {"x": rng.standard_normal(shape), "w": rng.standard_normal((shape[-1], out))}, forward, backward)


def gelu_case(shape: tuple[int, ...], size: float) -> Case:
    label = f"g {shape} of size {size}"

    def forward(g: ndarray) -> tuple[Outputs, Any]:
        return (gelu_forward(g),), g

    def backward(dy: Outputs, g: Any) -> Arguments:
        return {"g": gelu_backward(dy[0], g)}

    return Case(gelu_backward, label, {"g": size * seeded(label).standard_normal(shape)}, forward, backward)


def feed_forward_case(rows: int, places: int, e: int, f: int) -> Case:
    label = f"B {rows}, T {places}, E {e}, F {f}"
    rng, config = seeded(label), BlockConfig(embed_dim=e, hidden_dim=f, heads=1)

    def forward(x: ndarray, params: FeedForwardGegluParams) -> tuple[Outputs, Any]:
        y, cache = feed_forward_geglu_forward(x, params, config)
        return (y,), cache

    def backward(dy: Outputs, cache: Any) -> Arguments:
        return dict(zip(("x", "params"), feed_forward_geglu_backward(dy[0], cache), strict=True))

    params = FeedForwardGegluParams(rng.standard_normal((e, 2 * f)), rng.standard_normal((f, e)))
    return Case(feed_forward_geglu_backward, label, {"x": rng.standard_normal((rows, places, e)), "params": params}, forward, backward)


def embedding_case(lengths: tuple[int, ...], places: int, vocab: int, e: int) -> Case:
    """Tokens repeat, some never occur; padding holds tokens that do not exist."""
    label = f"lengths {lengths} of {places}, V {vocab}, E {e}"
    rng, at = seeded(label), padded(lengths, places)
    tokens = np.where(at.is_token, rng.integers(0, max(vocab - 1, 1), at.time.shape), -7)

    def forward(table: ndarray) -> tuple[Outputs, Any]:
        return (embedding_forward(tokens, table, at),), table

    def backward(dx: Outputs, table: Any) -> Arguments:
        return {"table": embedding_backward(dx[0], tokens, table, at)}

    return Case(embedding_backward, label, {"table": rng.standard_normal((vocab, e))}, forward, backward)


def dropout_case(cu_seqlens: tuple[int, ...], rows: int, places: int, e: int, p: float) -> Case:
    label = f"documents {cu_seqlens} in {rows} × {places}, E {e}, p {p}"
    at, drop = packed(cu_seqlens, rows, places), Dropout(p, DropoutKey(7, 3), 11) if p else None

    def forward(x: ndarray) -> tuple[Outputs, Any]:
        return (dropout_forward(x, drop, at),), None

    def backward(dy: Outputs, _: Any) -> Arguments:
        return {"x": dropout_backward(dy[0], drop, at)}

    return Case(dropout_backward, label, {"x": seeded(label).standard_normal((rows, places, e))}, forward, backward)


def head_dropout_case(cu_seqlens: tuple[int, ...], shape: tuple[int, int, int, int], p: float) -> Case:
    label = f"documents {cu_seqlens}, x {shape}, p {p}"
    at, drop = packed(cu_seqlens, shape[0], shape[2]), Dropout(p, DropoutKey(2**32 - 1, 5), 12) if p else None

    def forward(x: ndarray) -> tuple[Outputs, Any]:
        return (head_dropout_forward(x, drop, at),), None

    def backward(dy: Outputs, _: Any) -> Arguments:
        return {"x": head_dropout_backward(dy[0], drop, at)}

    return Case(head_dropout_backward, label, {"x": seeded(label).standard_normal(shape)}, forward, backward)


CASES = [
    rms_norm_case((1, 2), 1.0, 1e-6),
    rms_norm_case((3, 5), 1e-3, 1e-6),
    rms_norm_case((2, 3, 7), 30.0, 0.1),
    rms_norm_case((2, 4), 0.0, 1e-6),
    linear_case((1, 2), 1),
    linear_case((3, 5), 2),
    linear_case((2, 3, 1), 7),
    linear_case((2, 1, 3, 2), 3),
    gelu_case((1,), 1.0),
    gelu_case((3, 5), 4.0),
    gelu_case((2, 3, 7), 0.01),
    feed_forward_case(1, 1, 2, 3),
    feed_forward_case(2, 3, 4, 5),
    feed_forward_case(1, 5, 6, 1),
    embedding_case((1,), 1, 2, 2),
    embedding_case((3, 0, 5), 5, 5, 4),
    embedding_case((7, 2), 7, 3, 6),
    dropout_case((0, 1), 1, 1, 5, 0.5),
    dropout_case((0, 2, 5, 6), 2, 5, 6, 0.3),
    dropout_case((0, 7), 1, 7, 2, 0.8),
    dropout_case((0, 3), 1, 3, 4, 0.0),
    head_dropout_case((0, 1), (1, 3, 1, 2), 0.3),
    head_dropout_case((0, 2, 3, 5, 8), (2, 4, 5, 2), 0.4),
    head_dropout_case((0, 3, 6, 7), (3, 5, 3, 4), 0.6),
    head_dropout_case((0, 3), (1, 2, 3, 2), 0.0),
]
