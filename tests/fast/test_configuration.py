"""Options as TOML: what is written is read again, what is wrong is told with its key, presets are configurations."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from tests.fast.conftest import COLUMNS
from ttr_fast import cli
from ttr_fast.commands.configuration import PRESETS, from_toml, to_toml
from ttr_fast.commands.options import Columns, ModelOptions
from ttr_fast.commands.train import NOT_IN_FILES, NOT_STORED, Command
from ttr_fast.errors import UserError
from ttr_ref.config import DropoutConfig, TrainConfig

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
COMMANDS = st.builds(
    Command,
    data=TEXTS.map(Path),
    columns=st.builds(Columns, token=st.lists(TEXTS, min_size=1, max_size=3).map(tuple)),
    model=st.builds(ModelOptions, window=st.none() | st.integers(1, 9), next_time=st.booleans(), dropout=st.just(DropoutConfig(0.1, ff=1e-17))),
    train=st.builds(
        TrainConfig, learning_rate=st.floats(1e-300, 1e300), targets_after=st.none() | TEXTS, patience=st.none() | st.integers(1, 9),
        schedule=st.sampled_from(["constant", "cosine", "wsd"]),
    ),
)  # fmt: skip


@given(command=COMMANDS)
def test_what_is_written_is_read_again(command: Command, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("toml") / "config.toml"
    path.write_text(to_toml(command, NOT_STORED), encoding="utf-8", newline="")
    assert from_toml(Command, path, NOT_IN_FILES) == command


def test_every_option_is_written() -> None:
    """In the spelling of the command line; where none is set, as far as TOML can say so."""
    written = tomllib.loads(to_toml(Command(), NOT_STORED))
    assert "save-every" in written
    assert written["train"]["evaluate-every"] == written["model"]["kv-heads"] == "none"
    assert set(written["model"]) == {name.replace("_", "-") for name in ModelOptions.__dataclass_fields__}
    assert set(written["train"]) == {name.replace("_", "-") for name in TrainConfig.__dataclass_fields__} - {"targets-after"}
    assert not {"out", "json", "resume", "config", "data"} & set(written)


WRONG = {
    "[train\n": "not TOML: Expected ']' at the end of a table declaration (at line 1, column 7)",
    "steps = 3": "there is no option 'steps': expected one of data, columns, sort, held-out, out, backend, json, tensorboard, save-every, keep, "
    "model, train",
    "[train]\nlerning_rate = 1.0": "there is no option 'train.lerning_rate': did you mean 'train.learning-rate'?",
    "[model.dropout]\natt = 0.1": "there is no option 'model.dropout.att': did you mean 'model.dropout.attn'?",
    "[train]\nsteps = '3'": "'train.steps': Expected `int`, got `str`",
    "[train]\nsteps = 3.5": "'train.steps': Expected `int`, got `float`",
    "[train]\nschedule = 'linear'": "'train.schedule': Invalid enum value 'linear'",
    "[train]\nsteps = 'none'": "'train.steps': Expected `int`, got `str`",
    "sort = 1": "'sort': Expected `bool`, got `int`",
    "data = 3": "'data': Expected `str`, got `int`",
    "train = 3": "'train': expected a table, got '3'",
    "keep = 1\n[train]\nsteps = 0": "TrainConfig: steps must be positive, got 0",
    "[model.dropout]\nff = 1.0": "DropoutConfig: ff must be in [0, 1), got 1.0",
    "save-every = 1\nsave_every = 2": "'save-every' is there twice, with '-' and with '_'",
    "resume = 'x'": "there is no option 'resume': expected one of data, columns, sort, held-out, out, backend, json, tensorboard, save-every, keep, "
    "model, train",
}


@pytest.mark.parametrize("content", WRONG)
def test_what_is_wrong_is_told(content: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(content)
    with pytest.raises(UserError) as told:
        cli.run(["train", str(path)])
    assert str(told.value) == f"{path}: {WRONG[content]}"


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match="c.toml: not TOML: 'utf-8' codec"):
        from_toml(Command, path)


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.toml")), ids=lambda p: p.stem)
def test_presets_are_configurations(path: Path) -> None:
    command = from_toml(Command, path, NOT_IN_FILES)
    assert command != Command()
    assert Command.starting_point([path.stem, "--keep", "3"]) == (command, ["--keep", "3"])


def test_the_original_preset() -> None:
    """What the quick example of the original says."""
    model = from_toml(Command, PRESETS / "original.toml").model
    assert (model.embed_dim, model.hidden_dim, model.heads, model.dtype) == (256, 1024, 8, "bf16")
    assert model.dropout == DropoutConfig(attn=0.1, ff=0.05, block=0.1)


def test_the_command_line_goes_before_the_file(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the run's own config.toml says what they came to: trained on again, it is the same run."""
    path = tmp_path / "c.toml"
    path.write_text(to_toml(replace(Command(), data=corpus, columns=Columns("who", "when", ("what",)), backend="reference", train=TrainConfig(
        steps=2, rows=2, length=8, learning_rate=0.5)), NOT_STORED))  # fmt: skip
    first, second = tmp_path / "first", tmp_path / "second"
    cli.run(["train", str(path), "--train.learning-rate", "3e-4", "--model.embed-dim", "8", "--model.hidden-dim", "8", "--out", str(first)])
    stored = from_toml(Command, first / "config.toml", NOT_IN_FILES)
    assert (stored.train.learning_rate, stored.train.steps, stored.model.embed_dim, stored.data) == (3e-4, 2, 8, corpus)
    cli.run(["train", str(first / "config.toml"), "--out", str(second)])
    assert (second / "config.toml").read_bytes() == (first / "config.toml").read_bytes()
    assert (second / "checkpoint/params.safetensors").read_bytes() == (first / "checkpoint/params.safetensors").read_bytes()


def test_a_configuration_that_is_not_first_or_not_there() -> None:
    with pytest.raises(UserError) as told:
        cli.run(["train", "--keep", "3", "text"])
    assert str(told.value) == "text: a configuration stands before all options, as in  ttr train CONFIG --train.steps 100"
    with pytest.raises(UserError) as told:
        cli.run(["train", "fligths", *COLUMNS])
    expected = "expected a TOML file or one of 'flights', 'original', 'text'"
    assert str(told.value) == f"fligths: there is no such file or preset (did you mean 'flights'?), {expected}"
