"""What a finished run shows: the table of held-out nats, and the plots."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from ttr_fast.durable import replace_file
from ttr_fast.training.evaluation import OrderResult
from ttr_fast.training.metrics import MetricsFile
from ttr_fast.training.plots import plot_loss, plot_time2vec, plot_time_bias, plot_training
from ttr_ref.config import ModelConfig
from ttr_ref.model import ModelParams

HOUR_SECONDS = 3600.0
PAUSE = 19.0
"""Curves are drawn anew after so many times what drawing them took."""


@dataclass(frozen=True)
class Row:
    """One row of the table; None where a model does not predict that."""

    name: str
    token_nats: float | None = None
    time_nats: float | None = None
    median_time_error: float | None = None


def table(rows: list[Row], tick_seconds: float | None, what: str = "event") -> str:
    """Rows under a heading, errors in hours where times are calendar times; what: of which the nats are."""
    unit = "ticks" if tick_seconds is None else "hours"
    to_hours = 1.0 if tick_seconds is None else tick_seconds / HOUR_SECONDS
    title = f"held-out nats per {what}"
    width = max(map(len, (title, *(r.name for r in rows))))
    heading = f"{title:{width}}  next token   next time   median error of the time ({unit})"
    lines = [heading, "-" * len(heading)]
    for r in rows:
        error = None if r.median_time_error is None else r.median_time_error * to_hours
        lines.append(f"{r.name:{width}}  {number(r.token_nats, 10, 3)}  {number(r.time_nats, 10, 3)}  {number(error, 12, 2)}".rstrip())
    return "\n".join(lines)


def number(value: float | None, width: int, digits: int) -> str:
    """Right-aligned; blank for None."""
    return " " * width if value is None else f"{value:{width}.{digits}f}"


def model_rows(name: str, results: list[OrderResult]) -> list[Row]:
    """A model's results, one row for each order."""
    if results[0].time_nats is None:
        return [Row(name, results[0].token_nats)]
    given = {"token_then_time": " (time given the token)", "time_then_token": " (token given the time)"}
    return [Row(name + given[r.order], r.token_nats, r.time_nats, r.median_time_error) for r in results]


def save_results(folder: Path, rows: list[Row], **more: Any) -> bytes:
    """results.json: the table and what else the run found; given back for --json."""
    content = msgspec.json.encode({"held_out": [asdict(r) for r in rows], "folder": str(folder)} | more)
    replace_file(folder / "results.json", msgspec.json.format(content, indent=2))
    return content


class CurvePlots:
    """How a run learns, drawn anew while it trains, so seldom that drawing takes at most a twentieth of the time."""

    def __init__(self, folder: Path, metrics: MetricsFile, baselines: dict[str, float]) -> None:
        self.folder, self.metrics, self.baselines, self.not_before = folder, metrics, baselines, 0.0

    def refresh(self) -> None:
        """Draw both curves, unless it is too early."""
        start = time.perf_counter()
        if start < self.not_before:
            return
        save_curves(self.folder, self.metrics, self.baselines)
        end = time.perf_counter()
        self.not_before = end + PAUSE * (end - start)


def save_curves(folder: Path, metrics: MetricsFile, baselines: dict[str, float]) -> None:
    """held_out.png and training_loss.png."""
    records = metrics.read()
    plot_loss(folder / "held_out.png", records, baselines)
    plot_training(folder / "training_loss.png", records)


def save_plots(folder: Path, metrics: MetricsFile, baselines: dict[str, float], params: ModelParams, config: ModelConfig) -> None:
    """The plots of a run; those of time only for a model with time."""
    save_curves(folder, metrics, baselines)
    if config.block.time_bias != "none":
        plot_time_bias(folder / "time_bias.png", params, config.block)
    if config.block.time2vec:
        plot_time2vec(folder / "time2vec.png", params, config.block)
