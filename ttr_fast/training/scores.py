"""All that is measured of a finished model: nats, ranks, errors of time, calibration."""

import sys
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from ttr_fast.data.batches import Marker, evaluation_batches
from ttr_fast.data.sequences import Sequences
from ttr_fast.model import Backend, Prediction
from ttr_fast.training.calibration import Reliability, distance_from_uniform, histogram, pit, reliability
from ttr_ref.config import ModelConfig, TimeHeadOrder
from ttr_ref.model import ModelParams
from ttr_ref.time_head import mixture_quantile

TOP = 5


class TimeScores(NamedTuple):
    """Of the next gap, in the data's own unit of time."""

    nats: float
    """Mean −ln of the density."""
    median_error: float
    """Median of |gap − the predicted density's median|."""
    pit: ndarray
    """Share of the gaps in each of 20 equal parts of the predicted distribution."""
    pit_distance: float
    """Kolmogorov's distance of the PIT from a uniform distribution."""


class Scores(NamedTuple):
    """Means over all targets in one order of token and time.

    Where tokens are equally likely, the one with the smaller id comes first, as it does when they are drawn at temperature 0.
    """

    order: TimeHeadOrder
    targets: int
    token_nats: float
    accuracy: float
    """How often the token was the likeliest."""
    top_5: float
    """How often it was among the five likeliest."""
    mean_reciprocal_rank: float
    reliability: Reliability
    time: TimeScores | None
    """None without a time head."""


class Parts:
    """What is kept of each batch's predictions in one order."""

    def __init__(self) -> None:
        self.token_nats, self.rank, self.top_nats = list[ndarray](), list[ndarray](), list[ndarray]()
        self.time_nats, self.error, self.pit = list[ndarray](), list[ndarray](), list[ndarray]()

    def add(self, prediction: Prediction, tick: float | None, rng: np.random.Generator) -> None:
        """One batch's. Raises FloatingPointError if a prediction is no number: its rank, its step of confidence and its PIT would be none."""
        assert prediction.standing is not None
        for nats in (prediction.token_nats, prediction.time_nats):
            if nats is not None and np.isnan(nats).any():
                raise FloatingPointError(f"{np.isnan(nats).sum()} of {nats.size} predictions in a batch are NaN")
        self.token_nats.append(prediction.token_nats)
        self.rank.append(prediction.standing.rank)
        self.top_nats.append(prediction.standing.top_nats)
        if prediction.time_nats is not None and prediction.mixture is not None:
            self.time_nats.append(prediction.time_nats)
            self.error.append(np.abs(prediction.gap - mixture_quantile(prediction.mixture, 0.5)))
            self.pit.append(pit(prediction.mixture, prediction.gap, tick, rng))

    def scores(self, order: TimeHeadOrder) -> Scores:
        """Of all batches."""
        nats, rank, top = (np.concatenate(parts) for parts in (self.token_nats, self.rank, self.top_nats))
        time = None
        if self.pit:
            values = np.concatenate(self.pit)
            error = float(np.median(np.concatenate(self.error)))
            time = TimeScores(float(np.concatenate(self.time_nats).mean(dtype=np.float64)), error, histogram(values), distance_from_uniform(values))
        calibration = reliability(np.exp(-top.astype(np.float64)), rank == 1)
        mean = float(nats.mean(dtype=np.float64))
        return Scores(order, rank.size, mean, float((rank == 1).mean()), float((rank <= TOP).mean()), float((1 / rank).mean()), calibration, time)


def scores(
    backend: Backend, params: ModelParams, events: Sequences, config: ModelConfig, seed: int = 0, after: Marker | None = None
) -> list[Scores]:
    """One for each order, with a progress bar on stderr; the seed is that of the PIT, see calibration.py.

    Raises ValueError if there is no target, FloatingPointError if a prediction is no number.
    """
    from tqdm import tqdm

    parts: dict[TimeHeadOrder, Parts] = {}
    rng = np.random.default_rng(seed)
    with tqdm(total=int(np.maximum(events.lengths - 1, 0).sum()), desc="evaluating", unit="event", file=sys.stderr, disable=None) as bar:
        for batch in evaluation_batches(events, after=after):
            tick = config.block.time.resolution if batch.next_times.dtype == np.int64 else None
            for prediction in backend.predict(params, batch, config, True):
                parts.setdefault(prediction.order, Parts()).add(prediction, tick, rng)
            bar.update(int(batch.at.is_token.sum()))
    if not parts:
        raise ValueError("scores: there is nothing to predict")
    return [part.scores(order) for order, part in parts.items()]
