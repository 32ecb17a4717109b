"""How well a model foresees events it was not trained on."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from ttr_fast.data.batches import Marker, evaluation_batches
from ttr_fast.data.sequences import Sequences
from ttr_fast.model import Backend, Prediction
from ttr_ref.config import ModelConfig, TimeHeadOrder
from ttr_ref.model import ModelParams
from ttr_ref.time_head import mixture_quantile


class OrderResult(NamedTuple):
    """Means over all held-out events, in one order of token and time; the last two are None without a time head."""

    order: TimeHeadOrder
    token_nats: float
    time_nats: float | None
    """Of the gap's density in the data's own unit of time."""
    median_time_error: float | None
    """Median of |gap − the predicted density's median|, in the data's unit; None where it was not asked for."""


def evaluate(
    backend: Backend, params: ModelParams, events: Sequences, config: ModelConfig, with_errors: bool = False, after: Marker | None = None
) -> list[OrderResult]:
    """One result for each order. with_errors finds the median of every predicted density, which takes longer than all the rest."""
    parts: dict[TimeHeadOrder, list[tuple[Prediction, ndarray | None]]] = {}
    for batch in evaluation_batches(events, after=after):
        for prediction in backend.predict(params, batch, config, with_errors):
            error = None if prediction.mixture is None else np.abs(prediction.gap - mixture_quantile(prediction.mixture, 0.5))
            parts.setdefault(prediction.order, []).append((prediction._replace(mixture=None, standing=None), error))
    return [
        OrderResult(
            order,
            mean(np.concatenate([p.token_nats for p, _ in predictions])),
            average(mean, [p.time_nats for p, _ in predictions]),
            average(np.median, [error for _, error in predictions]),
        )
        for order, predictions in parts.items()
    ]


def mean(nats: ndarray) -> float:
    """In float64: a sum in the type of the nats loses digits as events become many."""
    return float(np.mean(nats, dtype=np.float64))


def average(kind: Callable[[ndarray], float], parts: list[ndarray | None]) -> float | None:
    """The mean or median over all parts; None if there is nothing."""
    given = [p for p in parts if p is not None]
    return float(kind(np.concatenate(given))) if given else None
