"""Dynamic loss scaling for f16 (Micikevicius et al. 2018, arXiv:1710.03740, §3.2).

The smallest f16 is 6e-8, so small gradients vanish unless the loss, and with it every gradient, is multiplied by a scale S before backward and
divided by it after. S halves when a gradient overflows, and that step is skipped; it doubles after 2 000 good steps in a row.
Powers of two change no bit of a gradient that is neither subnormal nor too large.
"""

from typing import NamedTuple, TypeVar

import numpy as np

from .config import BlockConfig
from .float_dtype import FloatDType
from .tree import leaves_of, tree_map

Grads = TypeVar("Grads")
GROWTH_INTERVAL = 2000


class LossScale(NamedTuple):
    """The scale, the largest it may grow to (1: nothing is ever scaled), and the number of good steps since it last changed."""

    scale: float
    largest: float
    good_steps: int = 0


def loss_scale_init(config: BlockConfig) -> LossScale:
    """2¹⁶ for f16; the other types have float32's range and need no scale."""
    return LossScale(2.0**16, 2.0**24) if config.float_dtype is FloatDType.F16 else LossScale(1.0, 1.0)


def unscale(grads: Grads, state: LossScale) -> tuple[Grads, bool]:
    """(gradients of the loss itself, whether all of them are finite)."""
    finite = all(bool(np.isfinite(g).all()) for g in leaves_of(grads))
    return tree_map(lambda g: g / g.dtype.type(state.scale), grads), finite


def loss_scale_update(state: LossScale, finite: bool) -> LossScale:
    """The scale of the next step."""
    if not finite:
        return LossScale(max(state.scale / 2, 1.0), state.largest)
    if state.good_steps + 1 == GROWTH_INTERVAL:
        return LossScale(min(state.scale * 2, state.largest), state.largest)
    return state._replace(good_steps=state.good_steps + 1)
