"""States of training whose every number is told by their step, and what must be equal at the end of two runs."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from ttr_fast.durable import TEMPORARY
from ttr_fast.training.checkpoint import CheckpointConfig, EventSource
from ttr_fast.training.saves import BEST, Saves
from ttr_fast.training.step import TrainState, train_start
from ttr_ref.config import BlockConfig, DropoutConfig, ModelConfig, TrainConfig
from ttr_ref.float_dtype import FloatDType
from ttr_ref.tree import named_leaves, tree_map

MODEL = ModelConfig(5, 1, BlockConfig(8, 4, 2, window=4, float_dtype=FloatDType.F16, dropout=DropoutConfig(block=0.1)))
CONFIG = CheckpointConfig(MODEL, TrainConfig(), EventSource("who", "when", ("what",), "s"), ("a", "b", "c", "d", "e"), 0)
CLOCKED = ("tokens_per_second", "model_gflops")
"""What a clock says in a line of metrics."""


def state_at(step: int) -> TrainState:
    """Numbers of its own in every leaf."""
    start = train_start(MODEL, TrainConfig())
    rng = np.random.default_rng(step)

    def random(a: np.ndarray) -> np.ndarray:
        return rng.standard_normal(a.shape).astype(a.dtype)

    optimizer = start.optimizer._replace(m=tree_map(random, start.params), v=tree_map(random, start.params), steps=step - 1)
    return TrainState(tree_map(random, start.params), optimizer, start.loss_scale._replace(scale=2.0**step, good_steps=step), step)


def same(a: Any, b: Any) -> bool:
    """Every leaf, bit by bit, and every number."""
    mine, theirs = (named_leaves((x.params, x.optimizer.m, x.optimizer.v)) for x in (a, b))
    arrays = mine.keys() == theirs.keys() and all(x.dtype == theirs[n].dtype and x.tobytes() == theirs[n].tobytes() for n, x in mine.items())
    return arrays and (a.optimizer.steps, a.loss_scale, a.step) == (b.optimizer.steps, b.loss_scale, b.step)


def metrics_of(folder: Path) -> list[dict[str, object]]:
    """The lines of a run without what a clock says."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in CLOCKED} for line in lines]


def digest(content: bytes) -> str:
    """As much of a SHA-256 as is shown."""
    return hashlib.sha256(content).hexdigest()[:12]


def outcome(folder: Path) -> dict[str, str]:
    """What must be equal at the end of two runs, as hashes: the last save with its moments and loss scale, the best, model, metrics, results."""
    saves = Saves(folder / "saves")
    last = saves.path(saves.steps()[-1])
    found = {name: digest((last / name).read_bytes()) for name in ("params.safetensors", "optimizer.safetensors", "config.json")}
    found["best"] = digest((saves.folder / BEST).read_bytes())
    found["model"] = digest((folder / "checkpoint" / "params.safetensors").read_bytes())
    found["metrics"] = digest(json.dumps(metrics_of(folder)).encode())
    found["results"] = digest(json.dumps(json.loads((folder / "results.json").read_bytes())["held_out"]).encode())
    return found


def leftovers(folder: Path) -> list[str]:
    """Temporary names anywhere below."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(f"{TEMPORARY}*"))
