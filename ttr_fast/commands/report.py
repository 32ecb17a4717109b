"""What a finished run shows: the table of held-out nats, and the plots."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from ttr_fast.durable import replace_file
from ttr_fast.training.evaluation import OrderResult
from ttr_fast.training.loop import MetricsFile
from ttr_fast.training.plots import plot_loss, plot_time2vec, plot_time_bias, plot_training
from ttr_ref.config import ModelConfig
from ttr_ref.model import ModelParams

HOUR_SECONDS = 3600.0


@dataclass(frozen=True)
class Row:
    """One row of the table; None where a model does not predict that."""

    name: str
    token_nats: float | None = None
    time_nats: float | None = None
    median_time_error: float | None = None


def table(rows: list[Row], tick_seconds: float | None) -> str:
    """Rows under a heading, errors in hours where times are calendar times."""
    unit = "ticks" if tick_seconds is None else "hours"
    to_hours = 1.0 if tick_seconds is None else tick_seconds / HOUR_SECONDS
    width = max(len(r.name) for r in rows)
    heading = f"{'held-out nats per event':{width}}  next token   next time   median error of the time ({unit})"
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


def save_plots(folder: Path, metrics: MetricsFile, baselines: dict[str, float], params: ModelParams, config: ModelConfig) -> list[Path]:
    """The plots of a run; those of time only for a model with time."""
    records = metrics.read()
    paths = [folder / "held_out.png", folder / "training_loss.png"]
    plot_loss(paths[0], records, baselines)
    plot_training(paths[1], records)
    if config.block.time_bias != "none":
        paths.append(folder / "time_bias.png")
        plot_time_bias(paths[-1], params, config.block)
    if config.block.time2vec:
        paths.append(folder / "time2vec.png")
        plot_time2vec(paths[-1], params, config.block)
    return paths
