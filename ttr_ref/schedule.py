"""The learning rate of each step: linear warm-up, then constant, cosine (Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5 without restarts)
or warm-up–stable–decay (Hu et al. 2024, arXiv:2404.06395, §4: a straight line down at the end)."""

import math

from .config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of step 0, 1, … steps − 1. The last step gets final_fraction of the highest rate, unless the schedule is constant."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    last = max(config.steps - 1, config.warmup + 1)
    match config.schedule:
        case "constant":
            remaining = 1.0
        case "cosine":
            remaining = 0.5 * (1 + math.cos(math.pi * (step - config.warmup) / (last - config.warmup)))
        case "wsd":
            remaining = min(1.0, (last - step) / min(config.decay_steps, last - config.warmup))
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * max(remaining, 0.0))
