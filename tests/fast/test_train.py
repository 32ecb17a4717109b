"""`ttr train` beyond a CSV: corpora, units that are inferred, early stopping, schedules and losses from the command line, TensorBoard, speed."""

import builtins
import json
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fast.conftest import COLUMNS, SMALL, START
from tests.ref.bounds import same_bits
from ttr_fast import cli
from ttr_fast.commands.configuration import from_toml
from ttr_fast.commands.dataset import read_dataset
from ttr_fast.commands.options import Columns
from ttr_fast.commands.report import Row, table
from ttr_fast.commands.train import NOT_IN_FILES, Command
from ttr_fast.data.batches import Marker
from ttr_fast.data.corpus import open_corpus
from ttr_fast.errors import UserError
from ttr_fast.training.checkpoint import EventSource, TextSource, load_checkpoint, load_state, load_tokenizer
from ttr_fast.training.evaluation import OrderResult, evaluate
from ttr_fast.training.flops import model_flops
from ttr_fast.training.loop import is_measured
from ttr_fast.training.metrics import MetricsFile
from ttr_fast.training.plots import plot_training
from ttr_fast.training.saves import Saves
from ttr_ref.config import BlockConfig, ModelConfig, TimeHeadConfig, TrainConfig
from ttr_ref.model import model_init
from ttr_ref.next_event import Batch
from ttr_ref.timeline import timeline_from_cu_seqlens

TINY = [*SMALL, "--backend", "reference", "--train.steps", "12", "--train.rows", "2", "--train.length", "16"]


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [r for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if r["kind"] == kind]


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of texts with times: who asks for a letter is told the letter."""
    folder, rng = tmp_path_factory.mktemp("chats"), random.Random(0)
    texts = [{"text": f"User: {letter} Assistant: {letter}{letter}", "time": START + 1000 * n} for n in range(120) for letter in [rng.choice("abc")]]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, texts)))
    cli.run(["preprocess", str(folder / "chats.jsonl"), "--out", str(folder / "corpus"), "--vocab-size", "300", "--markers", "User:", "Assistant:"])
    return folder / "corpus"


def test_a_corpus_of_texts(chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Answers alone are trained on; the checkpoint has the tokenizer; the time of the next token is not asked for, and that is said."""
    folder = tmp_path / "run"
    cli.run(["train", "--data", str(chats), "--out", str(folder), *TINY, "--train.targets-after", "Assistant:"])
    said = capsys.readouterr().err
    assert "the tokens of a text share its time: the time of the next one is not predicted (--model.no-next-time)\n" in said
    params, config = load_checkpoint(folder / "checkpoint")
    assert (config.source, config.vocabulary, config.model.time_head) == (TextSource("s"), (), None)
    assert params.blocks[0].time2vec is not None
    assert (config.model.block.time.unit, config.model.block.time.tick_seconds) == (1000.0, 1.0)
    corpus = open_corpus(chats)
    mine, theirs = load_tokenizer(folder / "checkpoint"), corpus.tokenizer()
    assert mine is not None
    assert theirs is not None
    assert mine.json() == theirs.json()
    assert load_tokenizer(Saves(folder / "saves").path(12)) is not None
    assert from_toml(Command, folder / "config.toml", NOT_IN_FILES).model.next_time is False
    train = corpus.split("train")
    texts = [train.sequence(i)[0].tolist() for i in range(train.n_sequences)]
    answers = sum(text.index(mine.terminator) - text.index(mine.token("Assistant:")) for text in texts)
    share = answers / (train.n_tokens - train.n_sequences)
    assert sum(r["targets"] for r in records(folder, "step")) == pytest.approx(12 * 32 * share, rel=0.1)


def test_texts_without_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.json").write_text(json.dumps([f"the {n % 7} of {n % 5}" for n in range(60)]))
    cli.run(["preprocess", str(tmp_path / "t.json"), "--out", str(tmp_path / "corpus"), "--vocab-size", "270"])
    capsys.readouterr()
    cli.run(["train", "--data", str(tmp_path / "corpus"), "--out", str(tmp_path / "run"), *TINY])
    said = capsys.readouterr().err
    assert "the texts carry no times: the model sees their order alone (--model.no-with-time)\n" in said
    params, config = load_checkpoint(tmp_path / "run/checkpoint")
    assert config.source == TextSource(None)
    assert all(block.time2vec is None for block in params.blocks)
    assert config.model.block.time.tick_seconds is None
    with pytest.raises(UserError) as told:
        cli.run(["train", "--data", str(tmp_path / "corpus"), "--out", str(tmp_path / "other"), *TINY, "--train.targets-after", "the answer"])
    assert str(told.value) == "--train.targets-after: 'the answer' is not one token of the data, expected a marker that is"
    assert not (tmp_path / "other").exists()


def test_a_corpus_of_events(corpus: Path, tmp_path: Path) -> None:
    """It is mapped, split already, and one with another index is not the run's."""
    folder = tmp_path / "corpus"
    cli.run(["preprocess", str(corpus), "--out", str(folder), *COLUMNS])
    cli.run(["train", "--data", str(folder), "--out", str(tmp_path / "run"), *TINY])
    _, config = load_checkpoint(tmp_path / "run/checkpoint")
    assert config.source == EventSource("who", "when", ("what",), "s")
    assert config.vocabulary == ("<unk>", "a", "b")
    with pytest.raises(UserError) as told:
        cli.run(["train", "--data", str(folder), *TINY, "--held-out", "0.5"])
    assert str(told.value) == f"{folder}: a corpus, which is read and split already; leave out --columns, --sort and --held-out"
    (folder / "index.json").write_text((folder / "index.json").read_text() + " ")
    with pytest.raises(UserError, match="damaged: its SHA-256"):
        cli.run(["train", "--resume", str(tmp_path / "run")])


def test_the_unit_is_inferred_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f'{{"entity":"{e}","time":{1000 * (START + 60 * n)},"token":"x{n % 2}"}}' for e in "abcdefgh" for n in range(4)]
    (tmp_path / "e.jsonl").write_text("\n".join(rows))
    cli.run(["train", "--data", str(tmp_path / "e.jsonl"), "--out", str(tmp_path / "run"), *TINY])
    assert "times are UNIX milliseconds, by the look of the first (--columns.time-unit names another)\n" in capsys.readouterr().err
    _, config = load_checkpoint(tmp_path / "run/checkpoint")
    assert (config.source.time_unit, config.model.block.time.tick_seconds) == ("ms", 1e-3)
    assert from_toml(Command, tmp_path / "run/config.toml", NOT_IN_FILES).columns.time_unit == "ms"


OPTIONS = {
    "wsd": ["--train.schedule", "wsd", "--train.decay-steps", "4"],
    "constant": ["--train.schedule", "constant"],
    "z-loss": ["--train.z-loss", "1e-2"],
    "f16": ["--model.dtype", "f16"],
    "accumulate": ["--train.accumulate", "2"],
    "checkpointing": ["--train.checkpointing", "block"],
}


def test_a_damaged_corpus_is_neither_trained_on_nor_evaluated(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    cli.run(["preprocess", str(corpus), "--out", str(folder), *COLUMNS])
    cli.run(["train", "--data", str(folder), "--out", str(tmp_path / "before"), *TINY])
    shard = folder / "train-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    for command in (["train", "--out", str(tmp_path / "run"), *TINY], ["eval", str(tmp_path / "before" / "checkpoint"), "--split", "train"]):
        with pytest.raises(UserError, match="train-00000.safetensors: damaged: its SHA-256 is"):
            cli.run([*command, "--data", str(folder)])
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def plain(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The steps of a run without any of them."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    cli.run(["train", "--data", str(corpus), "--out", str(folder), *COLUMNS, *TINY])
    return records(folder, "step")


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_change_training(name: str, plain: list[dict[str, Any]], corpus: Path, tmp_path: Path) -> None:
    """Each can be had from the command line, and does what its name says to the first steps."""
    cli.run(["train", "--data", str(corpus), "--out", str(tmp_path / "run"), *COLUMNS, *TINY, *OPTIONS[name]])
    run = records(tmp_path / "run", "step")
    rates, losses = [r["learning_rate"] for r in run], [(r["loss"], p["loss"]) for r, p in zip(run, plain, strict=True)]
    match name:
        case "wsd":
            assert rates[4] == max(rates) == rates[7] > rates[9] > rates[11] == pytest.approx(0.05 * max(rates))
        case "constant":
            assert rates[4:] == [max(rates)] * 8
        case "z-loss":
            assert losses[0][0] > losses[0][1]
        case "f16":
            assert load_state(Saves(tmp_path / "run/saves").path(12))[0].loss_scale.scale >= 2.0**10
        case "accumulate":
            np.testing.assert_allclose(*np.array(losses).T, rtol=1e-4)
            assert losses[-1][0] != losses[-1][1], "sums in another order"
        case "checkpointing":
            assert all(a == b for a, b in losses)


class FixedNats:
    """In place of `evaluate`: the token's nats are given, one after the other."""

    def __init__(self, *nats: float) -> None:
        self.left = list(nats)

    def __call__(self, *arguments: Any, **named: Any) -> list[OrderResult]:
        nats = self.left.pop(0)
        return [result._replace(token_nats=nats) for result in evaluate(*arguments, **named)]


def test_early_stopping(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What is as good as the best is no improvement. The best is kept and becomes the checkpoint, and that is told."""
    monkeypatch.setattr("ttr_fast.training.loop.evaluate", FixedNats(3.0, 2.0, 2.0, 2.5))
    folder = tmp_path / "run"
    more = ["--train.steps", "40", "--train.evaluate-every", "3", "--train.patience", "2", "--save-every", "2", "--keep", "1"]
    cli.run(["train", "--data", str(corpus), "--out", str(folder), *COLUMNS, *TINY, *more])
    assert records(folder, "step")[-1]["step"] == 12
    assert Saves(folder / "saves").steps() == [6, 12]
    params, config = load_checkpoint(folder / "checkpoint")
    assert config.step == 6
    assert same_bits(params, load_state(Saves(folder / "saves").path(6))[0].params)
    ended = "held-out nats were no better for 2 evaluations"
    assert f"{ended}; the checkpoint is the best model, that of step 6\n" in capsys.readouterr().err
    cli.run(["train", "--resume", str(folder)])
    assert capsys.readouterr().out == f"{folder} is finished: {ended}, and its model is in {folder / 'checkpoint'}\n"


def test_a_damaged_best_save_does_not_keep_a_run_from_ending(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed between its last step and its end, and then the best save is damaged."""
    monkeypatch.setattr("ttr_fast.training.loop.evaluate", FixedNats(3.0, 2.0, 2.0, 2.5))
    folder = tmp_path / "run"
    more = ["--train.steps", "40", "--train.evaluate-every", "3", "--train.patience", "2", "--keep", "1"]
    cli.run(["train", "--data", str(corpus), "--out", str(folder), *COLUMNS, *TINY, *more])
    (folder / "results.json").unlink()
    shutil.rmtree(folder / "checkpoint")
    damaged = Saves(folder / "saves").path(6) / "params.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    capsys.readouterr()
    cli.run(["train", "--resume", str(folder)])
    assert load_checkpoint(folder / "checkpoint")[1].step == 12
    said = capsys.readouterr().err
    assert f"{damaged}: damaged: " in said
    assert "taking the last state instead of the best" in said
    assert "the checkpoint is the last model, that of step 12\n" in said


def test_early_stopping_is_resumed(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How often it was no better is known again, also where the last save was of the last step."""
    nats, straight = (3.0, 2.0, 2.0, 2.5), tmp_path / "straight"
    more = ["--train.steps", "40", "--train.evaluate-every", "3", "--train.patience", "2", "--save-every", "1", "--keep", "40"]
    monkeypatch.setattr("ttr_fast.training.loop.evaluate", FixedNats(*nats))
    cli.run(["train", "--data", str(corpus), "--out", str(straight), *COLUMNS, *TINY, *more])
    for last_save in (4, 9, 12):
        folder = tmp_path / f"killed{last_save}"
        shutil.copytree(straight, folder)
        (folder / "results.json").unlink()
        shutil.rmtree(folder / "checkpoint")
        for step in range(last_save + 1, 13):
            shutil.rmtree(Saves(folder / "saves").path(step))
        monkeypatch.setattr("ttr_fast.training.loop.evaluate", FixedNats(*nats[last_save // 3 :]))
        cli.run(["train", "--resume", str(folder)])
        assert [r["step"] for r in records(folder, "step")] == list(range(1, 13))
        for file in ("params.safetensors", "config.json"):
            assert (folder / "checkpoint" / file).read_bytes() == (straight / "checkpoint" / file).read_bytes()


def test_killed_before_the_best_was_noted(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The save of the best step is there, but best.json is of the one before, or not there at all: the model is the best all the same."""
    nats = (3.0, 2.0, 2.5, 2.5)
    more = ["--train.evaluate-every", "3", "--train.patience", "2", "--save-every", "1", "--keep", "40"]
    for at, before in ((0, None), (1, b'{"step":3,"nats":3.0}')):
        folder, step = tmp_path / f"killed{at}", 3 * at + 3
        given = (2.0, 3.0, 3.0) if before is None else nats
        monkeypatch.setattr("ttr_fast.training.loop.evaluate", FixedNats(*given))
        cli.run(["train", "--data", str(corpus), "--out", str(folder), *COLUMNS, *TINY, *more])
        expected = (folder / "checkpoint/params.safetensors").read_bytes()
        (folder / "results.json").unlink()
        shutil.rmtree(folder / "checkpoint")
        for later in range(step + 1, 13):
            shutil.rmtree(Saves(folder / "saves").path(later), ignore_errors=True)
        (folder / "saves/best.json").unlink()
        if before is not None:
            (folder / "saves/best.json").write_bytes(before)
        monkeypatch.setattr("ttr_fast.training.loop.evaluate", FixedNats(*given[at + 1 :]))
        cli.run(["train", "--resume", str(folder)])
        assert load_checkpoint(folder / "checkpoint")[1].step == step
        assert (folder / "checkpoint/params.safetensors").read_bytes() == expected


def test_when_it_is_measured() -> None:
    assert [s for s in range(1, 101) if is_measured(s, TrainConfig(steps=100))] == [17, 33, 50, 67, 83, 100]
    assert [s for s in range(1, 11) if is_measured(s, TrainConfig(steps=10, evaluate_every=4))] == [4, 8, 10]


def test_stale_evaluations(tmp_path: Path) -> None:
    """Of one run, in its first order; as good as the best is no improvement."""
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    assert metrics.stale_evaluations("a") == 0
    for step, (first, second) in enumerate([(2.0, 9.0), (1.0, 8.0), (1.0, 7.0), (1.5, 6.0)], 1):
        for run, nats in (("a", first), ("a", second), ("b", -first)):
            metrics.write(run=run, kind="held_out", step=step, token_nats=nats)
        metrics.write(run="a", kind="step", step=step, loss=0.0)
    assert (metrics.stale_evaluations("a"), metrics.stale_evaluations("b")) == (2, 3)


def test_lines_are_on_the_disk_before_the_save(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no step that a save acknowledges lacks its line."""
    calls: list[tuple[str, int]] = []
    flush, save = MetricsFile.flush, Saves.save

    def flushed(self: MetricsFile) -> None:
        flush(self)
        calls.append(("flush", self.read()[-1]["step"]))

    def saved(self: Saves, state: Any, *more: Any) -> Path:
        calls.append(("save", state.step))
        return save(self, state, *more)

    monkeypatch.setattr(MetricsFile, "flush", flushed)
    monkeypatch.setattr(Saves, "save", saved)
    cli.run(["train", "--data", str(corpus), "--out", str(tmp_path / "run"), *COLUMNS, *TINY, "--save-every", "5", "--train.evaluate-every", "6"])
    assert calls == [(what, step) for step in (5, 6, 10, 12) for what in ("flush", "save")]


def test_curves_are_drawn_while_it_trains(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first evaluation; later ones that come too soon are left out."""
    folder, drawn = tmp_path / "run", list[int]()
    save = Saves.save

    def saved(self: Saves, state: Any, *more: Any) -> Path:
        if (folder / "held_out.png").exists():
            drawn.append(state.step)
        return save(self, state, *more)

    monkeypatch.setattr(Saves, "save", saved)
    cli.run(["train", "--data", str(corpus), "--out", str(folder), *COLUMNS, *TINY, "--save-every", "1"])
    assert drawn == list(range(3, 13))


def test_curves_of_steps_without_targets(tmp_path: Path) -> None:
    """A marker may be so rare that the first evaluation comes before the first target."""
    plot_training(tmp_path / "loss.png", [{"run": "a", "kind": "step", "step": 1, "loss": 0.0, "targets": 0}])
    assert (tmp_path / "loss.png").exists()


def test_tensorboard(corpus: Path, tmp_path: Path) -> None:
    """Event files hold the numbers of metrics.jsonl: each record is a length, a protobuf and their checksums."""
    folder = tmp_path / "run"
    cli.run(["train", "--data", str(corpus), "--out", str(folder), *COLUMNS, *TINY, "--tensorboard"])
    (path,) = (folder / "tensorboard").iterdir()
    content, tags, at = path.read_bytes(), list[bytes](), 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        tags.append(content[at + 12 : at + 12 + length])
        at += length + 16
    for name, count in ((b"with_time/step/loss", 12), (b"with_time/held_out/time_then_token/token_nats", 6), (b"with_time/speed/model_gflops", 6)):
        assert sum(name in record for record in tags) == count, name


def test_without_tensorboardx_it_is_told(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *more: Any, **named: Any) -> Any:
        if name == "tensorboardX":
            raise ImportError(name)
        return real(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"^--tensorboard needs the library tensorboardX:  pip install 'temporal-transformer\[tb\]'$"):
        cli.run(["train", "--data", str(corpus), "--out", str(tmp_path / "run"), *COLUMNS, *TINY, "--tensorboard"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("window, pairs", [(None, 6 + 10 + 10 + 1), (3, 6 + 9 + 9 + 1)])
def test_model_flops_by_hand(window: int | None, pairs: int) -> None:
    """Documents of 3, 4, 4 and 1 tokens in two rows; E 8, F 5, H 2 and G 1, two blocks, V 7, three components; five tokens are predicted."""
    config = ModelConfig(7, 2, BlockConfig(8, 5, 2, 1, window=window), time_head=TimeHeadConfig(3, "token_then_time"))
    times = np.arange(14).reshape(2, 7)
    at = timeline_from_cu_seqlens(times, np.array([0, 3, 7, 11, 12]))
    target = np.zeros((2, 7), bool)
    target[0, :5] = True
    batch = Batch(np.zeros((2, 7), np.int64), at, np.zeros((2, 7), np.int64), times + 1, target)
    block = 8 * (8 + 2 * 4) + 8 * 8 + 8 * 10 + 5 * 8
    expected = 6 * (2 * block * 12 + (7 * 8 + 8 * 9) * 5) + 12 * 8 * 2 * pairs
    assert model_flops(model_init(config, 0), batch, config) == expected


def test_the_table_is_aligned() -> None:
    """Also where all names are short; what a model does not predict stays empty."""
    heading, _, row = table([Row("model", 1.25)], None, "token").splitlines()
    assert heading == "held-out nats per token  next token   next time   median error of the time (ticks)"
    assert row == "model                         1.250"
    assert len(row) == heading.index("next token") + len("next token")


def test_markers_of_events(tmp_path: Path) -> None:
    """Where the vocabulary has </s>, targets end with it; a side without a target is told."""
    rows = [f"{e},{START + n},{token}" for e in "abcdefgh" for n, token in enumerate(["x", "ask", "y", "</s>", "x"])]
    (tmp_path / "e.csv").write_text("\n".join(["entity,time,token", *rows, f"a,{START + 9},last"]))
    data = read_dataset(tmp_path / "e.csv", Columns(), False, 0.5)
    assert data.vocabulary == ("</s>", "ask", "last", "x", "y")
    assert data.marker("ask") == Marker(1, 0)
    assert data.marker(None) is None
    with pytest.raises(UserError) as told:
        data.marker("last")
    assert str(told.value) == "there is nothing to learn from: no sequence of the training data has a token after 'last'"
