"""Pictures of a run, as PNG files: how it learned, and what it learned about time."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from ttr_fast.durable import replace_file
from ttr_fast.training.scores import Scores
from ttr_ref.config import BlockConfig
from ttr_ref.model import ModelParams
from ttr_ref.time2vec import TURN
from ttr_ref.time_bias import NoBias, TimeBias, time_bias_forward, time_bias_init

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCALES = (("1 min", 60.0), ("1 h", 3600.0), ("1 day", 86_400.0), ("1 week", 604_800.0), ("30 days", 2_592_000.0), ("1 year", 31_556_952.0))


LEAST_BIAS = -12.0
"""A score this much lower gets less than 1/100,000 of the weight; what lies below is not drawn."""


def new_figure(width: float, height: float, columns: int = 1, alike: bool = True) -> tuple["Figure", list["Axes"]]:
    """A figure that needs no display; alike: its columns have one vertical axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False, sharey=alike and columns > 1)
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure, list(axes[0])


def save_figure(path: Path, figure: "Figure") -> None:
    """As a PNG file that is whole whenever it is looked at."""
    content = io.BytesIO()
    figure.savefig(content, dpi=130, format="png")
    replace_file(path, content.getvalue())


def plot_loss(path: Path, metrics: Sequence[dict[str, Any]], baselines: dict[str, float]) -> None:
    """Nats per token: each run's held-out curves in each order, and the count models as lines across."""
    figure, (axis,) = new_figure(7, 4.2)
    curves: dict[str, list[tuple[int, float]]] = {}
    for m in metrics:
        if m["kind"] == "held_out":
            given = ", given the next time" if m["order"] == "time_then_token" else ""
            curves.setdefault(m["run"] + given, []).append((m["step"], m["token_nats"]))
    for label, points in curves.items():
        axis.plot(*zip(*points, strict=True), marker="o", label=label)
    for label, nats in baselines.items():
        axis.axhline(nats, color="0.6", linestyle="--", linewidth=1)
        axis.annotate(label, (0.99, nats), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="0.4")
    axis.set(xlabel="step", ylabel="held-out nats per next token", title="What time buys")
    axis.legend(frameon=False)
    save_figure(path, figure)


def plot_training(path: Path, metrics: Sequence[dict[str, Any]]) -> None:
    """The training loss of each run, step by step and smoothed. The losses of runs with and without a time head count different things."""
    runs = list(dict.fromkeys(m["run"] for m in metrics))
    figure, axes = new_figure(4.2 * len(runs), 3.8, len(runs))
    for axis, run in zip(axes, runs, strict=True):
        axis.set(xlabel="step", title=run)
        axis.tick_params(labelleft=True)
        points = [(m["step"], m["loss"]) for m in metrics if m["run"] == run and m["kind"] == "step" and m["targets"]]
        if not points:  # no step has had a target yet
            continue
        step, loss = np.array(points).T
        axis.plot(step, loss, alpha=0.3)
        width = min(20, loss.size)
        axis.plot(step[width - 1 :], np.convolve(loss, np.full(width, 1 / width), "valid"), color="C0")
    axes[0].set_ylabel("training loss")
    save_figure(path, figure)


def plot_time_bias(path: Path, params: ModelParams, config: BlockConfig) -> None:
    """Learned b_h(Δ) of every block and head against Δ on a logarithmic axis; dashed, where it started."""
    time = config.time
    delta = np.geomspace(time.shortest, time.span, 300)

    def curves(bias: TimeBias) -> ndarray:
        """(H, 300): every head's bias at these Δ."""
        return time_bias_forward(delta[None, None], bias, time)[0][0, :, 0]

    figure, axes = new_figure(4.2 * len(params.blocks), 3.8, len(params.blocks))
    for layer, (axis, block) in enumerate(zip(axes, params.blocks, strict=True)):
        if isinstance(block.attention.time_bias, NoBias):
            continue
        for head, (b, before) in enumerate(zip(curves(block.attention.time_bias), curves(time_bias_init(config)), strict=True)):
            axis.plot(delta, b, color=f"C{head}", label=f"head {head}")
            axis.plot(delta, before, color=f"C{head}", linestyle="--", linewidth=1, alpha=0.6)
        axis.set_xscale("log")
        axis.set(title=f"block {layer}", xlabel="Δ between query and key")
        axis.set_ylim(bottom=max(axis.get_ylim()[0], LEAST_BIAS))
        label_time_axis(axis, time.tick_seconds, time.shortest, time.span)
    axes[0].set_ylabel("added to the score")
    axes[-1].legend(frameon=False, fontsize="small")
    save_figure(path, figure)


def plot_time2vec(path: Path, params: ModelParams, config: BlockConfig) -> None:
    """The period of every Time2Vec feature, against how strongly the block's norm lets it through."""
    time = config.time
    figure, (axis,) = new_figure(7, 3.8)
    for layer, block in enumerate(params.blocks):
        if block.time2vec is None:
            continue
        omega = np.abs(block.time2vec.omega[1:])
        turning = omega > TURN * time.unit / (100 * time.span)  # what turns less than 1/100 over the span is a constant
        period = TURN * time.unit / omega[turning]
        axis.scatter(period, np.abs(block.norm_attention[1:][turning]), label=f"block {layer}", alpha=0.7)
    axis.set_xscale("log")
    axis.set(xlabel="period", ylabel="|weight| in the norm", title="Time2Vec after training")
    label_time_axis(axis, time.tick_seconds, time.shortest, 100 * time.span)
    axis.legend(frameon=False)
    save_figure(path, figure)


def plot_calibration(path: Path, results: Sequence[Scores]) -> None:
    """The PIT histogram of the times, and of the tokens how often the likeliest was right against how likely it was said to be."""
    figure, (left, right) = new_figure(8.4, 3.8, 2, alike=False)
    for n, result in enumerate(results):
        label, color = result.order.replace("_", " "), f"C{n}"
        if result.time is not None:
            shares = result.time.pit
            name = f"{label}, distance {result.time.pit_distance:.3f}"
            left.stairs(shares * shares.size, np.linspace(0, 1, shares.size + 1), color=color, label=name)
        some = result.reliability.predictions > 0
        sizes = 10 + 200 * result.reliability.predictions[some] / result.targets
        x, y = result.reliability.confidence[some], result.reliability.accuracy[some]
        right.plot(x, y, color=color, label=f"{label}, ECE {result.reliability.error():.3f}")
        right.scatter(x, y, sizes, color=color, alpha=0.6)
    left.axhline(1, color="0.6", linestyle="--", linewidth=1)
    left.set(xlabel="predicted probability of an earlier time", ylabel="density", title="PIT of the next time", ylim=(0, None))
    right.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    right.set(xlabel="probability of the likeliest token", ylabel="how often it came", title="Reliability of the next token")
    for axis in (left, right):
        if axis.get_legend_handles_labels()[1]:
            axis.legend(frameon=False, fontsize="small")
    save_figure(path, figure)


def label_time_axis(axis: "Axes", tick_seconds: float | None, low: float, high: float) -> None:
    """Ticks at a minute, an hour, a day … where times are calendar times."""
    if tick_seconds is None:
        return
    shown: Iterable[tuple[str, float]] = [(name, s / tick_seconds) for name, s in SCALES if low <= s / tick_seconds <= high]
    axis.set_xticks([at for _, at in shown], labels=[name for name, _ in shown], rotation=30)
    axis.minorticks_off()
