"""A small corpus with a rhythm, and one model trained on it for all tests that need a model."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.fast.preprocessing import events_file, some_events
from ttr_fast import cli
from ttr_fast.data.preprocess import partition, plan, spill

START = 1_700_000_000


def write_events(path: Path, entities: int = 40, events: int = 30) -> Path:
    """Entities that alternate between a short gap after `a` and a long one after `b`."""
    rng = np.random.default_rng(7)
    lines = ["who,when,what"]
    for e in range(entities):
        time = START + int(rng.integers(0, 10_000_000))
        for n in range(events):
            lines.append(f"e{e:02},{time},{'ab'[n % 2]}")
            time += int(rng.integers(60, 120)) if n % 2 == 0 else int(rng.integers(40_000, 80_000))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_events(tmp_path_factory.mktemp("corpus") / "events.csv")


COLUMNS = ["--columns.entity", "who", "--columns.time", "when", "--columns.token", "what"]
SMALL = ["--model.embed-dim", "16", "--model.hidden-dim", "16", "--model.heads", "2", "--model.window", "8", "--model.components", "3",
         "--train.rows", "4", "--train.length", "32", "--train.warmup", "5"]  # fmt: skip


@pytest.fixture(scope="session")
def run_folder(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished `ttr train`."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    cli.run(["train", "--data", str(corpus), "--out", str(folder), *COLUMNS, *SMALL, "--train.steps", "150", "--train.learning-rate", "0.01"])
    return folder


def edited_copy(checkpoint: Path, folder: Path, edit: Callable[[str], str]) -> Path:
    """A whole checkpoint whose config.json is another: `folder`, which may be there already."""
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    content = edit((folder / "config.json").read_text()).encode()
    (folder / "config.json").write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["config.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def two_files(tmp_path: Path) -> tuple[Path, Path]:
    """The same entities in both, at times that mix."""
    return events_file(tmp_path / "a.jsonl", some_events(1)), events_file(tmp_path / "b.jsonl", some_events(2))


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many partitions, many blocks, and names that are forgotten, from a few rows."""
    monkeypatch.setattr(plan, "BYTES_PER_PARTITION", {"events": 8 << 10, "texts": 1 << 10})
    monkeypatch.setattr(spill, "ROWS", 50)
    monkeypatch.setattr(spill, "NAME_SLOTS", 20)
    monkeypatch.setattr(spill, "TEXT_BYTES", 100)
    monkeypatch.setattr(partition, "ENCODED_AT_ONCE", 3)
