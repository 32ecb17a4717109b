"""Checkpoints on disk: whole or not there, damage is seen, older formats stay readable."""

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.faults.states import CONFIG, MODEL, same, state_at
from ttr_fast.data.text_tokenizer import TextTokenizer
from ttr_fast.durable import sweep
from ttr_fast.errors import UserError
from ttr_fast.training.checkpoint import (
    EventSource,
    TextSource,
    decoded_config,
    load_checkpoint,
    load_state,
    load_tokenizer,
    save_checkpoint,
    verified,
)
from ttr_fast.training.saves import Best, Saves
from ttr_ref.config import TrainConfig
from ttr_ref.tree import named_leaves


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


def test_a_damaged_save_counts_for_none_that_is_kept(tmp_path: Path) -> None:
    """Else the only whole one would go in its favour."""
    saves = Saves(tmp_path / "saves", keep=1)
    saves.save(state_at(1), CONFIG)
    shutil.copytree(saves.path(1), saves.path(9))
    (saves.path(9) / "optimizer.safetensors").unlink()
    assert same(saves.newest()[0], state_at(1))
    saves.save(state_at(2), CONFIG)
    assert same(saves.newest()[0], state_at(2))


def test_only_version_1_may_lack_its_manifest(tmp_path: Path) -> None:
    folder = Saves(tmp_path / "saves").save(state_at(1), CONFIG)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json: missing, expected what the other files have to be$"):
        verified(folder)


def test_what_was_never_finished_is_swept_away(tmp_path: Path) -> None:
    saves = Saves(tmp_path / "saves")
    saves.save(state_at(1), CONFIG)
    (saves.folder / ".tmp-step-00000002-77").mkdir()
    (saves.folder / ".tmp-best.json-77").write_bytes(b"{")
    sweep(saves.folder)
    assert [p.name for p in saves.folder.iterdir()] == ["step-00000001"]


FIXTURES = Path(__file__).parent / "checkpoints"


@pytest.mark.parametrize("name, step, vocabulary", [("version_1", 2, ("a", "b")), ("version_2", 4, ("x", "y"))])
def test_older_versions_are_still_read(name: str, step: int, vocabulary: tuple[str, ...], tmp_path: Path) -> None:
    """As if the present one had been written, so that what was loaded can be saved."""
    params, config = load_checkpoint(FIXTURES / name)
    assert (config.format_version, config.step, config.vocabulary) == (3, step, vocabulary)
    assert config.source == EventSource("who", "when", ("what",), "s")
    assert all(np.isfinite(leaf).all() for leaf in named_leaves(params).values())
    assert load_tokenizer(FIXTURES / name) is None
    save_checkpoint(tmp_path / "again", params, config)
    assert load_checkpoint(tmp_path / "again")[1] == config


def test_a_state_of_version_2_can_be_trained_on() -> None:
    state, config = load_state(FIXTURES / "version_2")
    assert (state.step, state.optimizer.steps, state.loss_scale.scale) == (4, 4, 65536.0)
    assert all(np.any(leaf) for name, leaf in named_leaves(state.optimizer.v).items() if name.endswith("w_qkv"))
    assert config.train.steps == 4


def test_a_newer_version_is_told(tmp_path: Path) -> None:
    """And a damaged one is no configuration."""
    path = tmp_path / "config.json"
    for text, told in (
        ('{"format_version": 4}', "format version 4, expected 1 to 3: a newer ttr wrote it"),
        ('{"format_version": 2}', "not a checkpoint's configuration: Object missing required field `model`"),
        ("{}", "not a checkpoint's configuration: Object missing required field `model`"),
        ("3", "not a checkpoint's configuration: Expected `object`, got `int`"),
    ):
        with pytest.raises(UserError) as caught:
            decoded_config(tmp_path, {"config.json": text.encode()})
        assert str(caught.value) == f"{path}: {told}"


def test_a_tokenizer_comes_back(tmp_path: Path) -> None:
    """From a model and from a save; without it a model of texts is not whole."""
    texts = ["User: hello Assistant: hello you</s>"] * 3
    tokenizer = TextTokenizer.train(texts, 270, ["Assistant:"])
    config = msgspec.structs.replace(CONFIG, source=TextSource("ms"), vocabulary=())
    save_checkpoint(tmp_path / "model", state_at(1).params, config, tokenizer=tokenizer)
    saved = Saves(tmp_path / "saves", tokenizer=tokenizer).save(state_at(1), config)
    for folder in (tmp_path / "model", saved):
        found = load_tokenizer(folder)
        assert found is not None
        assert found.json() == tokenizer.json()
        assert load_checkpoint(folder)[1].source == TextSource("ms")
    (saved / "tokenizer.json").write_bytes(tokenizer.json().replace(b"Assistant:", b"Assistent:"))
    with pytest.raises(UserError, match=r"tokenizer\.json: damaged: its SHA-256"):
        load_tokenizer(saved)
    save_checkpoint(tmp_path / "without", state_at(1).params, config)
    with pytest.raises(UserError, match=r"tokenizer\.json: missing, expected the tokenizer of a model of texts$"):
        load_tokenizer(tmp_path / "without")


def test_a_model_alone_cannot_be_trained_on(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model", state_at(1).params, CONFIG)
    with pytest.raises(UserError, match=r"model: holds a model alone, expected optimizer\.safetensors too to go on with its training$"):
        load_state(tmp_path / "model")
