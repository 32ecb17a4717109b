"""One arm: a model that is trained on fresh samples of a known process and measured against the best that anyone could do with what it sees."""

import sys
from pathlib import Path
from time import perf_counter
from typing import Literal, NamedTuple

import numpy as np
from numpy import ndarray

from ttr_fast.data.batches import evaluation_batches
from ttr_fast.data.sequences import EventSequences
from ttr_fast.model import Backend
from ttr_fast.training.loop import train
from ttr_fast.training.metrics import MetricsFile
from ttr_ref.config import ModelConfig, TrainConfig
from ttr_ref.model import ModelParams

LIMIT = 0.02
"""Nats per event that a trained model may lie above its optimum."""
SURE = 4.0
"""Standard errors by which it may seem to lie below: more would be a wrong optimum."""

Part = Literal["token", "time"]


class Entropy(NamedTuple):
    """Nats per event that the best predictor pays on average over the process, and their standard error (0: in closed form)."""

    nats: float
    error: float


def mean_and_error(nats: ndarray) -> Entropy:
    """Of (sequences, events) nats, whose rows are independent of each other but not within."""
    means = nats.mean(axis=1)
    return Entropy(float(means.mean()), float(means.std(ddof=1) / np.sqrt(means.size)))


class Arm(NamedTuple):
    """What is trained on what, and what the held-out sequences, all of one length, cost who knows the process but sees no more than the model."""

    process: str
    sees: str
    part: Part
    model: ModelConfig
    train: TrainConfig
    training: EventSequences
    held_out: EventSequences
    optimum: ndarray
    """(sequences, events − 1) nats."""
    entropy: Entropy


class Row(NamedTuple):
    """A line of the table."""

    process: str
    sees: str
    predicts: Part
    nats: float
    optimum: float
    excess: float
    error: float
    """Standard error of the excess, from the differences of whole sequences."""
    entropy: float
    entropy_error: float
    seconds: float

    @property
    def reached(self) -> bool:
        """Whether the model is as near to its optimum as it has to be, and not impossibly below."""
        return -SURE * self.error <= self.excess <= LIMIT


def event_sequences(tokens: ndarray, times: ndarray, kinds: int) -> EventSequences:
    """Rows of equal length as sequences, with names that ascend."""
    rows, length = times.shape
    names = tuple(f"{i:08}" for i in range(rows))
    offsets = np.arange(rows + 1, dtype=np.int64) * length
    return EventSequences(names, tokens.astype(np.int32).ravel(), times.ravel(), offsets, tuple(str(k) for k in range(kinds)))


def nats_of(backend: Backend, params: ModelParams, events: EventSequences, config: ModelConfig, part: Part) -> ndarray:
    """(sequences, events − 1): what the model pays for each event, in the one order that it is trained in."""
    found = []
    for batch in evaluation_batches(events):
        (prediction,) = backend.predict(params, batch, config, False)
        found.append(prediction.token_nats if part == "token" else prediction.time_nats)
    return np.concatenate(found).reshape(events.n_sequences, -1)


def trained(arm: Arm, backend: Backend, folder: Path) -> Row:
    """Train, measure, compare event by event. The learning curve goes to metrics.jsonl in the folder."""
    start = perf_counter()
    label = f"{arm.process}, {arm.sees}"
    state = train(backend, arm.training, arm.held_out, arm.model, arm.train, MetricsFile(folder / "metrics.jsonl"), label)
    nats = nats_of(backend, state.params, arm.held_out, arm.model, arm.part)
    excess = mean_and_error(nats - arm.optimum)
    return Row(arm.process, arm.sees, arm.part, float(nats.mean()), float(arm.optimum.mean()), *excess, *arm.entropy, perf_counter() - start)


def print_table(rows: list[Row]) -> None:
    """Aligned, with the limit and what was missed."""
    wide = max(len(row.process) for row in rows)
    wide_sees = max(len(row.sees) for row in rows)
    head = f"{'process':{wide}}  {'the model sees':{wide_sees}}  {'predicts':8}"
    print(f"{head}  {'nats':>7}  {'optimum':>7}  {'excess':>7}  {'± s.e.':>6}  {'limit':>5}  {'entropy of the process':>22}  {'seconds':>7}")
    for row in rows:
        entropy = f"{row.entropy:.4f} " + (f"± {row.entropy_error:.4f}" if row.entropy_error else "exactly")
        verdict = "" if row.reached else "  MISSED"
        name = f"{row.process:{wide}}  {row.sees:{wide_sees}}  {row.predicts:8}"
        print(
            f"{name}  {row.nats:7.4f}  {row.optimum:7.4f}  {row.excess:7.4f}  {row.error:6.4f}  {LIMIT:5}  {entropy:>22}  {row.seconds:7.0f}{verdict}"
        )


def save_plot(path: Path, rows: list[Row], metrics: MetricsFile) -> None:
    """Held-out nats above the optimum along the training of each arm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    lines = [line for line in metrics.read() if line["kind"] == "held_out"]
    for row in rows:
        label = f"{row.process}, {row.sees}"
        points = [(line["step"], line[f"{row.predicts}_nats"] - row.optimum) for line in lines if line["run"] == label]
        axes.plot(*zip(*points, strict=True), marker="o", label=f"{label}: {row.predicts}")
    axes.axhline(LIMIT, color="black", linewidth=0.8, linestyle="dashed", label="limit")
    axes.set(xlabel="step", ylabel="held-out nats per event above the optimum", yscale="log", title="How near to what can be known")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def say(text: str) -> None:
    """Progress goes to stderr, results to stdout."""
    print(text, file=sys.stderr, flush=True)

