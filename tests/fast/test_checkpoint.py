"""Checkpoints on disk: whole or not there, damage is seen, older formats stay readable."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ttr_fast import durable
from ttr_fast.durable import sweep
from ttr_fast.errors import UserError
from ttr_fast.training.checkpoint import CheckpointConfig, Source, load_checkpoint, load_state, save_checkpoint, verified
from ttr_fast.training.saves import Best, Saves
from ttr_fast.training.step import TrainState, train_start
from ttr_ref.config import BlockConfig, DropoutConfig, ModelConfig, TrainConfig
from ttr_ref.float_dtype import FloatDType
from ttr_ref.tree import named_leaves, tree_map

MODEL = ModelConfig(5, 1, BlockConfig(8, 4, 2, window=4, float_dtype=FloatDType.F16, dropout=DropoutConfig(block=0.1)))
CONFIG = CheckpointConfig(MODEL, TrainConfig(), Source("who", "when", "what", "s"), ("a", "b", "c", "d", "e"), 0)


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


def test_a_state_comes_back_bit_by_bit(tmp_path: Path) -> None:
    saves = Saves(tmp_path / "saves")
    saves.save(state_at(3), CONFIG)
    state, config = saves.newest()
    assert same(state, state_at(3))
    assert (config.model, config.train, config.vocabulary) == (MODEL, TrainConfig(), CONFIG.vocabulary)


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    saves = Saves(tmp_path / "saves", keep=2)
    for step, nats in ((1, 3.0), (2, 1.0), (3, None), (4, 2.0), (5, None)):
        saves.save(state_at(step), CONFIG, nats)
    assert saves.steps() == [2, 4, 5]
    assert saves.best() == Best(2, 1.0)


def test_a_damaged_save_is_named_and_the_one_before_is_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saves = Saves(tmp_path / "saves")
    saves.save(state_at(1), CONFIG)
    saves.save(state_at(2), CONFIG)
    path = saves.path(2) / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    size = path.stat().st_size
    state, _ = saves.newest()
    assert same(state, state_at(1))
    assert capsys.readouterr().err == f"{path}: damaged: {size} bytes, expected {size + 1}; going on from the save before it\n"
    saves.save(state_at(2), CONFIG)  # the run comes to this step again
    assert same(saves.newest()[0], state_at(2))
    shutil.rmtree(saves.path(1))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"none of its 1 saves is whole, nothing to resume from"):
        saves.newest()


def test_one_flipped_bit_is_seen_anywhere(tmp_path: Path) -> None:
    """Every byte of the headers and of both JSON files, and 500 of the numbers in each file."""
    folder = Saves(tmp_path / "saves").save(state_at(1), CONFIG)
    rng = np.random.default_rng(0)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        header = 8 + int.from_bytes(content[:8], "little") if path.suffix == ".safetensors" else len(content)
        places = [*range(header), *(header + rng.integers(0, len(content) - header, 500) if header < len(content) else ())]
        assert len(places) > 100
        for place in places:
            flipped = bytearray(content)
            flipped[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(flipped)
            with pytest.raises(UserError):
                verified(folder)
        path.write_bytes(content)
    verified(folder)


CALLS = [(os, "fsync"), (os, "open"), (os, "mkdir"), (os, "rename"), (os, "write"), (os, "close")]


@pytest.mark.parametrize("owner, name", CALLS, ids=lambda x: getattr(x, "__name__", x))
def test_a_call_that_fails_leaves_all_earlier_saves_and_nothing_else(owner: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The n-th call of each kind says that the disk is full, for every n, until saving succeeds."""
    real: Callable[..., Any] = getattr(owner, name)
    for n in range(20):
        saves, count = Saves(tmp_path / f"saves{n}"), 0
        saves.save(state_at(1), CONFIG)

        def failing(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == n + 1:  # noqa: B023
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failing)
            told = ""
            try:
                saves.save(state_at(2), CONFIG)
            except UserError as error:
                told = str(error)
        if count <= n:
            assert not told
            assert n > 0
            return
        assert told == f"{saves.path(2)}: cannot be written: No space left on device"
        assert [p.name for p in saves.folder.iterdir() if p.name.startswith(".")] == []
        state, _ = saves.newest()
        assert state.step in (1, 2)
        assert same(state, state_at(state.step))
    pytest.fail("saving never succeeded")


def test_a_damaged_save_counts_for_none_that_is_kept(tmp_path: Path) -> None:
    """Else the only whole one would go in its favour."""
    saves = Saves(tmp_path / "saves", keep=1)
    saves.save(state_at(1), CONFIG)
    shutil.copytree(saves.path(1), saves.path(9))
    (saves.path(9) / "manifest.json").unlink()
    (saves.path(9) / "optimizer.safetensors").unlink()
    assert same(saves.newest()[0], state_at(1))
    saves.save(state_at(2), CONFIG)
    assert same(saves.newest()[0], state_at(2))


def test_a_disk_that_is_full_in_the_middle_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saves = Saves(tmp_path / "saves")
    saves.save(state_at(1), CONFIG)

    def half(path: Path, content: bytes) -> None:
        path.write_bytes(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable, "write_durably", half)
    with pytest.raises(UserError, match=r"cannot be written: No space left on device$"):
        saves.save(state_at(2), CONFIG)
    assert [p.name for p in saves.folder.iterdir()] == ["step-00000001"]


def test_what_was_never_finished_is_swept_away(tmp_path: Path) -> None:
    saves = Saves(tmp_path / "saves")
    saves.save(state_at(1), CONFIG)
    (saves.folder / ".tmp-step-00000002-77").mkdir()
    (saves.folder / ".tmp-best.json-77").write_bytes(b"{")
    sweep(saves.folder)
    assert [p.name for p in saves.folder.iterdir()] == ["step-00000001"]


def test_version_1_is_still_read() -> None:
    params, config = load_checkpoint(Path(__file__).parent / "checkpoints" / "version_1")
    assert (config.format_version, config.step, config.vocabulary) == (1, 2, ("a", "b"))
    assert all(np.isfinite(leaf).all() for leaf in named_leaves(params).values())


def test_a_model_alone_cannot_be_trained_on(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model", state_at(1).params, CONFIG)
    with pytest.raises(UserError, match=r"model: holds a model alone, expected optimizer\.safetensors too to go on with its training$"):
        load_state(tmp_path / "model")
