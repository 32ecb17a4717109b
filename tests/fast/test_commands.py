"""`ttr train` and `ttr generate` as a user calls them: what they leave behind, what they print, what they say of bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from tests.fast.conftest import COLUMNS, SMALL, START, edited_copy
from ttr_fast import cli
from ttr_fast.commands.options import check_unused
from ttr_fast.errors import UserError
from ttr_fast.training.checkpoint import load_checkpoint, save_checkpoint
from ttr_ref.tree import named_leaves, tree_map


def called(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A whole process, as from a shell."""
    command = [sys.executable, "-c", "from ttr_fast.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_a_run_leaves_checkpoint_metrics_results_and_plots(run_folder: Path) -> None:
    assert {p.name for p in run_folder.iterdir()} == {
        "checkpoint", "saves", "run.json", "config.toml", "metrics.jsonl", "results.json",
        "held_out.png", "training_loss.png", "time_bias.png", "time2vec.png",
    }  # fmt: skip
    assert {p.name for p in (run_folder / "checkpoint").iterdir()} == {"config.json", "params.safetensors", "manifest.json"}
    for plot in run_folder.glob("*.png"):
        assert plot.read_bytes().startswith(b"\x89PNG")
    records = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in records if r["kind"] == "step"]
    assert [r["step"] for r in steps] == list(range(1, 151))
    assert steps[-1]["loss"] < steps[0]["loss"] - 1
    assert {r["order"] for r in records if r["kind"] == "held_out"} == {"token_then_time", "time_then_token"}


def test_the_model_learns_the_rhythm(run_folder: Path) -> None:
    """Tokens alternate, and the gap follows from the token: a log-normal of all gaps knows neither of its two lengths."""
    rows = {r["name"]: r for r in json.loads((run_folder / "results.json").read_text())["held_out"]}
    model = rows["model (time given the token)"]
    assert model["token_nats"] < 0.1 < rows["majority"]["token_nats"]
    assert model["time_nats"] < rows["log-normal of all gaps"]["time_nats"] - 1


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_checkpoint_comes_back_bit_by_bit(run_folder: Path, tmp_path: Path, order: Literal["C", "F"]) -> None:
    """Whatever the order of the arrays in memory."""
    params, config = load_checkpoint(run_folder / "checkpoint")
    save_checkpoint(tmp_path / "again", tree_map(lambda leaf: leaf.copy(order=order), params), config)
    again, same_config = load_checkpoint(tmp_path / "again")
    assert same_config == config
    for name, leaf in named_leaves(params).items():
        assert named_leaves(again)[name].dtype == leaf.dtype == (np.float64 if name.endswith("omega") else np.float32)
        np.testing.assert_array_equal(named_leaves(again)[name], leaf)


def test_generated_events_go_on_from_the_last(run_folder: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    call = ["generate", str(run_folder / "checkpoint"), "--data", str(corpus), "--entity", "e03", "--events", "6"]
    cli.run([*call, "--json"])
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    last = max(int(line.split(",")[1]) for line in corpus.read_text().splitlines() if line.startswith("e03,"))
    times = [e["time"] for e in events]
    assert len(events) == 6
    assert all(later > earlier for earlier, later in zip([last, *times], times, strict=False))
    assert [e["token"] for e in events] == ["a", "b"] * 3  # the past ends with b
    assert [gap > 10_000 for gap in np.diff([last, *times])] == [True, False] * 3

    cli.run(call)
    text = capsys.readouterr().out
    assert "e03: 30 events known" in text
    assert all(e["date"] in text for e in events), "the same seed gives the same events"
    cli.run([*call, "--json", "--seed", "1"])
    assert [json.loads(line)["time"] for line in capsys.readouterr().out.splitlines()] != times


HEADER = "entity,time,token\n"
GOOD = HEADER + "".join(f"{e},{START + 100 * n},x\n" for e in "abcdefgh" for n in range(3))
SECONDS = ["--columns.time-unit", "s"]
BAD_TRAINING = {
    "missing file": (None, [], "d.csv: there is no such file, expected a .csv, .json, .jsonl (each also .gz) or .parquet file"),
    "empty file": ("", [], "d.csv: the file is empty, expected a header and rows"),
    "header only": (HEADER, [], "d.csv: the file has a header only, expected rows"),
    "wrong column": (
        GOOD, ["--columns.token", "tokn"],
        "d.csv:1: there is no column 'tokn' (did you mean 'token'?), expected one of 'entity', 'time', 'token'",
    ),
    "unparsable time": (
        HEADER + "a,yesterday,x\n", SECONDS,
        "d.csv:2:2: time 'yesterday' is not a number, expected UNIX seconds such as 1700000000 or 1700000000.5",
    ),
    "no number": (HEADER + "a,nan,x\n", SECONDS, "d.csv:2:2: time 'nan' is not finite, expected UNIX seconds such as 1700000000 or 1700000000.5"),
    "infinite": (HEADER + "a,1e999,x\n", SECONDS, "d.csv:2:2: time '1e999' is not finite, expected UNIX seconds such as 1700000000 or 1700000000.5"),
    "backwards": (
        HEADER + f"a,{START},x\na,{START - 5},x\n", [],
        f"d.csv:3:2: time '{START - 5}' of entity 'a' comes after {START}, expected records in order of time or --sort",
    ),
    "other unit": (
        HEADER + f"a,{START},x\n", ["--columns.time-unit", "iso8601"],
        f"d.csv:2:2: time '{START}' looks like a number, expected ISO 8601 with a zone such as 2023-11-14T22:13:20Z",
    ),
    "sizes that do not fit": (GOOD, ["--model.heads", "3"], "BlockConfig: embed_dim 64 is not a multiple of heads 3"),
    "all times alike": (
        HEADER + "".join(f"{e},{START},x\n" * 2 for e in "abcdefgh"), [],
        "there is nothing to learn from: no entity has two events at different times",
    ),
    "a folder in use": (GOOD, ["--out", "."], ".: there is something already; name another folder with --out"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TRAINING)
def test_bad_input_is_one_sentence_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    text, options, sentence = BAD_TRAINING[name]
    if text is not None:
        (tmp_path / "d.csv").write_text(text)
    before = sorted(tmp_path.iterdir())
    done = called("train", "--data", "d.csv", *options, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"ttr: {sentence}\n")
    assert sorted(tmp_path.iterdir()) == before


def test_bad_calls_of_generate(run_folder: Path, corpus: Path, tmp_path: Path) -> None:
    checkpoint = run_folder / "checkpoint"
    (tmp_path / "hollow").mkdir()
    damaged = edited_copy(checkpoint, tmp_path / "damaged", lambda config: config)
    (damaged / "params.safetensors").write_bytes((checkpoint / "params.safetensors").read_bytes()[:-7])
    strange = edited_copy(checkpoint, tmp_path / "strange", lambda _: '{"model": 3}')
    new_token = tmp_path / "new.csv"
    new_token.write_text(f"who,when,what\ne03,{START},c\n")
    cases = {
        (tmp_path / "none", corpus, "e03"): "not a checkpoint, expected a folder with config.json and params.safetensors",
        (tmp_path / "hollow", corpus, "e03"): "not a checkpoint, expected a folder with config.json and params.safetensors",
        (damaged, corpus, "e03"): "params.safetensors: damaged: ",
        (strange, corpus, "e03"): "config.json: not a checkpoint's configuration: Expected `object`, got `int` - at `$.model`",
        (checkpoint, corpus, "nobody"): f"{corpus}: column 'who' has no 'nobody'",
        (checkpoint, new_token, "e03"): "new.csv:2:3: ",
    }
    for (folder, data, entity), sentence in cases.items():
        with pytest.raises(UserError) as caught:
            cli.run(["generate", str(folder), "--data", str(data), "--entity", entity])
        assert sentence in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_model_without_time_trains_and_says_why_it_cannot_generate(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "plain"
    cli.run(["train", "--data", str(corpus), "--out", str(folder), *COLUMNS, *SMALL, "--train.steps", "3", "--model.no-with-time", "--json"])
    (without,) = [r for r in json.loads(capsys.readouterr().out)["held_out"] if r["name"] == "model"]
    assert without["time_nats"] is None
    with pytest.raises(UserError, match="predicts no times"):
        cli.run(["generate", str(folder / "checkpoint"), "--data", str(corpus), "--entity", "e03"])
    assert capsys.readouterr().out == ""


def test_the_overview_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    cli.run([])
    overview = capsys.readouterr().out
    assert all(name in overview for name in cli.COMMANDS)
    with pytest.raises(UserError, match="there is no command 'trian': did you mean 'train'"):
        cli.run(["trian"])


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_shows_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.run([name, "--help"])
    assert stopped.value.code == 0
    assert f"ttr {name} " in capsys.readouterr().out.split("Examples:")[1]


def test_a_closed_output_is_no_traceback() -> None:
    command = [sys.executable, "-c", "from ttr_fast.cli import main; main()", "--version"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, preexec_fn=lambda: os.close(1))
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_what_a_run_left_at_its_very_start_goes(tmp_path: Path) -> None:
    (tmp_path / ".tmp-x").mkdir()
    check_unused(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_missing_name_without_ending_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: there is no such file, expected a .csv"):
        cli.run(["train", "--data", str(tmp_path / "nowhere")])
