"""The gated feed-forward GeGLU (Shazeer 2020, arXiv:2002.05202, eq. 6) with the tanh form of GELU (Hendrycks & Gimpel 2016, arXiv:1606.08415, §2).

    [a | g] = x W_in                      the linear and the gate half, F features each
    y       = (a ∘ gelu(g)) W_out
    gelu(g) = ½ g (1 + tanh u),  u = √(2/π) (g + 0.044715 g³)
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Inexact
from numpy import ndarray

from .config import BlockConfig
from .float_dtype import round_to_storage
from .linear import linear_backward
from .parameters import matrix_init

SLOPE, CUBIC = (2 / np.pi) ** 0.5, 0.044715


class FeedForwardGegluParams(NamedTuple):
    """Projections, laid out (in, out)."""

    w_in: Inexact[ndarray, "E two_F"]
    w_out: Inexact[ndarray, "F E"]


class FeedForwardGegluCache(NamedTuple):
    """What backward needs."""

    x: Inexact[ndarray, "B T E"]
    linear: Inexact[ndarray, "B T F"]
    gate: Inexact[ndarray, "B T F"]
    activated: Inexact[ndarray, "B T F"]
    hidden: Inexact[ndarray, "B T F"]
    params: FeedForwardGegluParams
    config: BlockConfig


def feed_forward_geglu_init(config: BlockConfig, rng: np.random.Generator, layers: int) -> FeedForwardGegluParams:
    """As the matrices of transformer_block_init, float64."""
    e, f = config.embed_dim, config.hidden_dim
    return FeedForwardGegluParams(matrix_init(rng, e, 2 * f), matrix_init(rng, f, e, 1 / np.sqrt(2 * layers)))


def gelu_forward(g: Inexact[ndarray, "*shape"]) -> Inexact[ndarray, "*shape"]:
    """½ g (1 + tanh u)."""
    return 0.5 * g * (1 + np.tanh(g * (SLOPE + SLOPE * CUBIC * (g * g))))


def gelu_backward(dy: Inexact[ndarray, "*shape"], g: Inexact[ndarray, "*shape"]) -> Inexact[ndarray, "*shape"]:
    """dg = dy · [½ (1 + t) + ½ g (1 − t²) u′],  t = tanh u,  u′ = √(2/π) (1 + 3 · 0.044715 g²)."""
    square = g * g
    t = np.tanh(g * (SLOPE + SLOPE * CUBIC * square))
    return dy * (0.5 * (1 + t) + 0.5 * g * (1 - t * t) * (SLOPE + 3 * SLOPE * CUBIC * square))


def feed_forward_geglu_forward(
    x: Inexact[ndarray, "B T E"], params: FeedForwardGegluParams, config: BlockConfig
) -> tuple[Inexact[ndarray, "B T E"], FeedForwardGegluCache]:
    """Each token on its own."""
    linear, gate = np.split(round_to_storage(x @ params.w_in, config.float_dtype), 2, axis=-1)
    activated = gelu_forward(gate)
    hidden = round_to_storage(linear * activated, config.float_dtype)
    return hidden @ params.w_out, FeedForwardGegluCache(x, linear, gate, activated, hidden, params, config)


def feed_forward_geglu_backward(
    dy: Inexact[ndarray, "B T E"], cache: FeedForwardGegluCache
) -> tuple[Inexact[ndarray, "B T E"], FeedForwardGegluParams]:
    """(dx, dparams). A product hands each factor the other: da = dh ∘ gelu(g), dg = dh ∘ a ∘ gelu′(g)."""
    x, linear, gate, activated, hidden, params, config = cache
    dhidden, dw_out = linear_backward(dy, hidden, params.w_out)
    dhidden = round_to_storage(dhidden, config.float_dtype)
    dhalves = np.concatenate([dhidden * activated, gelu_backward(dhidden * linear, gate)], axis=-1)
    dx, dw_in = linear_backward(round_to_storage(dhalves, config.float_dtype), x, params.w_in)
    return dx, FeedForwardGegluParams(dw_in, dw_out)
