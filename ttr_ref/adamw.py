"""AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101, alg. 2; moments and their correction: Kingma & Ba 2015, arXiv:1412.6980) and clipping.

    m ← β₁ m + (1 − β₁) g              v ← β₂ v + (1 − β₂) g²
    m̂ = m / (1 − β₁ⁿ)                  v̂ = v / (1 − β₂ⁿ)                 n: steps taken, this one included
    θ ← θ − η ρ m̂ / (√v̂ + ε) − η λ θ   the decay λ on matrices only

η is the scheduled rate. ρ is a leaf's own share of it, 1 but for frequencies: see `model.learning_rate_shares`.
"""

from typing import Any, NamedTuple, TypeVar

import numpy as np

from .config import TrainConfig
from .tree import leaves_of, tree_map

Params = TypeVar("Params")


class AdamWState(NamedTuple):
    """First and second moments, trees shaped like the parameters, and the number of steps taken."""

    m: Any
    v: Any
    steps: int


def adamw_init(params: Params) -> AdamWState:
    """No step taken yet."""
    return AdamWState(tree_map(np.zeros_like, params), tree_map(np.zeros_like, params), 0)


def adamw_step(
    params: Params, grads: Params, state: AdamWState, learning_rate: float, decays: Params, shares: Params, config: TrainConfig
) -> tuple[Params, AdamWState]:
    """(new parameters, new state). `decays` and `shares` are trees of floats: which leaves decay (0 or 1), and ρ."""
    steps = state.steps + 1
    grads = tree_map(lambda theta, g: g.astype(theta.dtype), params, grads)  # what float64 phases give to float32 parameters
    m = tree_map(lambda m, g: config.beta1 * m + (1 - config.beta1) * g, state.m, grads)
    v = tree_map(lambda v, g: config.beta2 * v + (1 - config.beta2) * g * g, state.v, grads)
    correct1, correct2 = 1 - config.beta1**steps, 1 - config.beta2**steps

    def moved(theta: np.ndarray, m: np.ndarray, v: np.ndarray, decay: float, share: float) -> np.ndarray:
        step = (m / correct1) / (np.sqrt(v / correct2) + config.adam_eps)
        return theta - learning_rate * share * step - learning_rate * config.weight_decay * decay * theta

    return tree_map(moved, params, m, v, decays, shares), AdamWState(m, v, steps)


def global_norm(grads: Params) -> float:
    """√ Σ g² over all leaves, summed in float64."""
    return float(np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in leaves_of(grads))))


def clip_by_global_norm(grads: Params, largest: float) -> tuple[Params, float]:
    """(gradients, their norm before): all scaled alike so that the norm is at most `largest` (Pascanu et al. 2013, arXiv:1211.5063, alg. 1)."""
    norm = global_norm(grads)
    share = min(1.0, largest / norm) if norm > 0 else 1.0
    return tree_map(lambda g: g * g.dtype.type(share), grads), norm
