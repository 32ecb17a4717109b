"""`ttr preprocess`: the same bytes however the work is done, nothing lost or doubled, nothing half-made, each choice does what it says."""

import csv
import gzip
import json
import os
import shutil
import subprocess
from collections import defaultdict
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from tests.fast.preprocessing import (
    START,
    contents,
    events_file,
    expected_sequences,
    preprocess,
    sequences,
    some_events,
)
from ttr_fast import cli
from ttr_fast.data.corpus import SPLITS
from ttr_fast.data.event_files import read_events
from ttr_fast.data.flights import flights_path
from ttr_fast.data.preprocess import reading
from ttr_fast.data.split import split_by_entity, uniform
from ttr_fast.errors import UserError


@pytest.mark.usefixtures("small_pieces")
def test_events_come_out_by_entity_and_time(two_files: tuple[Path, Path], tmp_path: Path) -> None:
    corpus = preprocess(*two_files, out=tmp_path / "out")
    events = some_events(1) + some_events(2)
    assert corpus.vocabulary == ("<unk>", *(f"k{n}" for n in range(9)))
    assert len(corpus.index.splits["train"].shards) > 1
    assert sorted(sequences(corpus)) == sorted(expected_sequences(events, corpus.vocabulary))
    counted = json.loads((tmp_path / "out" / "vocabulary.json").read_bytes())
    assert [entry["count"] for entry in counted] == [sum(token == k for _, _, token in events) for k in corpus.vocabulary]
    assert corpus.index.source.entity == "entity"
    assert corpus.index.source.tokens == ("token",)
    assert corpus.index.tick_seconds == 1


def test_one_partition_has_its_entities_in_order_of_their_names(two_files: tuple[Path, Path], tmp_path: Path) -> None:
    corpus = preprocess(*two_files, "--split", 1, 0, 0, out=tmp_path / "out")
    assert sequences(corpus) == expected_sequences(some_events(1) + some_events(2), corpus.vocabulary)


@pytest.mark.usefixtures("small_pieces")
def test_the_bytes_depend_on_neither_workers_nor_the_order_of_the_files(two_files: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = two_files
    one = preprocess(a, b, out=tmp_path / "one")
    preprocess(b, a, "--workers", 2, out=tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert sum(split.sequences for split in one.index.splits.values()) == 30


def test_all_flights_of_the_package(tmp_path: Path) -> None:
    """As `ttr train` reads them, with the same aircraft held out."""
    columns = ["--columns.entity", "tail", "--columns.token", "origin", "destination"]
    corpus = preprocess(flights_path(), *columns, "--time-unit", "s", out=tmp_path / "out")
    with gzip.open(flights_path(), "rt") as file:
        rows = list(csv.DictReader(file))
    events = [(row["tail"], int(row["time"]), f"{row['origin']}|{row['destination']}") for row in rows]
    assert sorted(sequences(corpus)) == sorted(expected_sequences(events, corpus.vocabulary))
    read = read_events(flights_path(), entity="tail", time="time", token="destination", time_unit="s")
    train, held_out = split_by_entity(read, 0.2)
    assert sorted(times for _, times in sequences(corpus, "train")) == sorted(train.sequence(i)[1].tolist() for i in range(train.n_sequences))
    assert len(sequences(corpus, "valid", "test")) == held_out.n_sequences


@pytest.mark.parametrize("stage", ["spill_part", "tokens", "write_partition", "assemble"])
@pytest.mark.usefixtures("small_pieces")
def test_a_run_that_died_goes_on_with_what_it_had_finished(
    two_files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Whatever it was at; the bytes are those of a run that did not die."""
    from ttr_fast.data.preprocess import make

    whole, out = tmp_path / "whole", tmp_path / "out"
    preprocess(*two_files, out=whole)
    calls: list[Any] = []

    def dying(real: Any, after: int) -> Any:
        def wrapped(*arguments: Any) -> Any:
            calls.append(arguments)
            if len(calls) > after:
                raise KeyboardInterrupt
            return real(*arguments)

        return wrapped

    with monkeypatch.context() as patch:
        if stage in ("spill_part", "write_partition"):
            patch.setattr(make, stage, dying(getattr(make, stage), 1))
        elif stage == "tokens":
            patch.setattr(make, "vocabulary", dying(make.vocabulary, 0))
        else:
            patch.setattr(make, "write_index", dying(make.write_index, 0))
        with pytest.raises(KeyboardInterrupt):
            preprocess(*two_files, out=out)
    assert not out.exists()
    (work,) = tmp_path.glob(".tmp-*")
    (work / "part-of-something-else").mkdir()
    finished = len(calls) - 1
    calls.clear()
    with monkeypatch.context() as patch:
        for name in ("spill_part", "write_partition"):
            patch.setattr(make, name, dying(getattr(make, name), 1000))
        preprocess(*two_files, out=out)
    parts = sum(isinstance(arguments[0], reading.PartJob) for arguments in calls)
    assert parts == (2 - finished if stage == "spill_part" else 0)
    partitions = 8
    assert len(calls) - parts == (partitions - finished if stage == "write_partition" else 0 if stage == "assemble" else partitions)
    assert contents(out) == contents(whole)


def test_a_changed_file_is_read_again_and_the_others_are_not(
    two_files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if its size is the same."""
    from ttr_fast.data.preprocess import make

    a, b = two_files
    with monkeypatch.context() as patch:
        patch.setattr(make, "vocabulary", interrupt)
        with pytest.raises(KeyboardInterrupt):
            preprocess(a, b, out=tmp_path / "out")
    b.write_text(b.read_text().replace("k1", "k2"))
    os.utime(b, ns=(0, b.stat().st_mtime_ns + 1))
    paths = []
    monkeypatch.setattr(make, "spill_part", lambda job, advance: paths.append(job.path) or reading.spill_part(job, advance))
    preprocess(a, b, out=tmp_path / "out")
    assert paths == [str(b)]
    preprocess(a, b, out=tmp_path / "again")
    assert contents(tmp_path / "out") == contents(tmp_path / "again")


@pytest.mark.parametrize("pattern", ["part-*/part.json", "part-*/rows.bin", "tokens-*.json", "shards-*/done.json", "bad-*.jsonl"])
def test_what_cannot_be_read_again_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pattern: str
) -> None:
    """Not the corpus, which nobody has written to; and where the same command cannot go on, that is not promised."""
    from ttr_fast.data.preprocess import make

    path = events_file(tmp_path / "a.jsonl", some_events(1))
    path.write_text(path.read_text() + "{}\n")
    arguments = ["preprocess", str(path), "--out", str(tmp_path / "out"), "--workers", "1", "--on-error", "quarantine"]
    with monkeypatch.context() as patch:
        patch.setattr(make, "write_index", interrupt)
        with pytest.raises(KeyboardInterrupt):
            cli.run(arguments)
    (work,) = tmp_path.glob(".tmp-*")
    assert f"what is finished stays in {work}: the same command goes on from there" in capsys.readouterr().err
    if pattern.endswith("rows.bin"):
        for folder in work.glob("shards-*"):  # it is not read again otherwise
            shutil.rmtree(folder)
    (found,) = work.glob(pattern)
    found.unlink()
    found.mkdir()
    with pytest.raises(UserError) as caught:
        cli.run(arguments)
    assert str(caught.value) == f"{found}: cannot be read: Is a directory"
    said = capsys.readouterr().err
    assert f"what is finished stays in {work}: the command, once that is mended, goes on from there" in said
    assert "same command" not in said


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    path = events_file(tmp_path / "a.jsonl", some_events(1))
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(UserError, match=r"a\.jsonl:401"):
        cli.run(["preprocess", str(path), "--out", str(tmp_path / "out"), "--workers", "1"])
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("policy", ["fail", "skip"])
@pytest.mark.usefixtures("small_pieces")
def test_times_that_go_back_are_told_with_their_line_or_sorted(
    tmp_path: Path, policy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --sort, the run that stopped goes on, and reads nothing again."""
    from ttr_fast.data.preprocess import make

    events = some_events(1)
    late = [("é3", START, "k1")]
    files = [events_file(tmp_path / "a.jsonl", some_events(2)), events_file(tmp_path / "b.jsonl", events[:300] + late + events[300:])]
    if policy == "skip":
        corpus = preprocess(*files, "--on-error", "skip", out=tmp_path / "skipped")
        assert "1 bad records left out" in capsys.readouterr().out
        assert sorted(sequences(corpus)) == sorted(expected_sequences(some_events(2) + events, corpus.vocabulary))
        return
    with pytest.raises(UserError, match=r"b\.jsonl:301:.* comes after"):
        cli.run(["preprocess", *map(str, files), "--out", str(tmp_path / "out"), "--workers", "1"])
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(make, "spill_part", None)
    corpus = preprocess(*files, "--sort", out=tmp_path / "out")
    assert sorted(sequences(corpus)) == sorted(expected_sequences(some_events(2) + events + late, corpus.vocabulary))


def test_two_processes_do_not_make_the_same_corpus(tmp_path: Path) -> None:
    from ttr_fast.data.preprocess.make import _work_folder

    path = events_file(tmp_path / "a.jsonl", some_events(1))
    with _work_folder(tmp_path / "out"), pytest.raises(UserError, match="another process is making it"):
        cli.run(["preprocess", str(path), "--out", str(tmp_path / "out"), "--workers", "1"])


def test_the_side_of_an_entity_is_told_by_its_hash(tmp_path: Path) -> None:
    """The test set by the smallest numbers, then validation, so that another share for training moves few entities."""
    names = [f"e{n}" for n in range(300)]
    events = [(name, START + n, "x") for n, name in enumerate(names)]
    corpus = preprocess(events_file(tmp_path / "a.jsonl", events), "--split", 0.5, 0.4, 0.1, out=tmp_path / "out")
    for split, low, high in (("test", 0, 0.1), ("valid", 0.1, 0.5), ("train", 0.5, 1)):
        expected = [START + n for n, name in enumerate(names) if low <= uniform(name, 0) < high]
        assert sorted(times[0] for _, times in sequences(corpus, split)) == expected


def test_an_entity_is_in_one_split(two_files: tuple[Path, Path], tmp_path: Path) -> None:
    corpus = preprocess(*two_files, "--length", 3, "--split", 0.5, 0.25, 0.25, out=tmp_path / "out")
    by_rows = defaultdict(set)
    for entity, time, token in some_events(1) + some_events(2):
        by_rows[time, corpus.vocabulary.index(token)].add(entity)
    of_split = []
    for name in SPLITS:
        rows = {row for tokens, times in sequences(corpus, name) for row in zip(times, tokens, strict=True)}
        of_split.append({next(iter(by_rows[t, k])) for t, k in rows if len(by_rows[t, k]) == 1})
    assert all(of_split)
    assert sum(map(len, of_split)) == len(set.union(*of_split))


@pytest.mark.parametrize("divide", [1, 2])
def test_the_split_by_time_is_exact(tmp_path: Path, divide: int) -> None:
    """With whole times and with fractions: nothing in one split is later than anything in the next, and shares are as asked for."""
    events = [(e, t / divide if divide > 1 else t, k) for e, t, k in some_events(3, rows=1000)]
    corpus = preprocess(events_file(tmp_path / "a.jsonl", events), "--split-by", "time", "--split", 0.5, 0.3, 0.2, "--time-unit", "s",
                        out=tmp_path / "out")  # fmt: skip
    assert corpus.index.time_dtype == ("int64" if divide == 1 else "float64")
    of_split = [[time for _, times in sequences(corpus, name) for time in times] for name in SPLITS]
    assert max(of_split[0]) < min(of_split[1])
    assert max(of_split[1]) < min(of_split[2])
    times = sorted(t for _, t, _ in events)
    assert [min(of_split[1]), min(of_split[2])] == [times[500], times[800]]
    assert sorted(chain.from_iterable(of_split)) == times



def test_length_overlap_and_gap_in_the_unit_of_the_times(tmp_path: Path) -> None:
    times = [START * 1000 + t for t in (0, 1000, 2000, 3000, 5001, 6000)]
    path = events_file(tmp_path / "a.jsonl", [("e", t, f"k{n}") for n, t in enumerate(times)])
    corpus = preprocess(path, "--split", 1, 0, 0, "--length", 3, "--overlap", 1, "--gap", 2, out=tmp_path / "out")
    assert corpus.time_unit == "ms"
    assert [tokens for tokens, _ in sequences(corpus)] == [[1, 2, 3], [3, 4], [5, 6]]


def test_rare_and_unknown_tokens_become_unk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = events_file(tmp_path / "a.jsonl", [("e", START + n, k) for n, k in enumerate(["x", "y", "x", "<unk>", "z"])])
    corpus = preprocess(path, "--min-count", 2, "--split", 1, 0, 0, out=tmp_path / "out")
    assert corpus.vocabulary == ("<unk>", "x")
    assert json.loads((tmp_path / "out" / "vocabulary.json").read_bytes()) == [{"token": "<unk>", "count": 3}, {"token": "x", "count": 2}]
    assert sequences(corpus)[0][0] == [1, 0, 1, 0, 0]
    assert "3 events have the token <unk>" in capsys.readouterr().out
    other = events_file(tmp_path / "b.jsonl", [("e", START + n, k) for n, k in enumerate(["w", "y", "x"])])
    again = preprocess(other, "--vocabulary", tmp_path / "out" / "vocabulary.json", "--split", 1, 0, 0, out=tmp_path / "again")
    assert again.vocabulary == ("<unk>", "x")
    assert sequences(again)[0][0] == [0, 0, 1]



def test_what_a_file_holds_is_seen(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    contents = {
        "a.csv": "time,text\n", "b.csv": "entity,time,token,mytext\n", "a.json": '[ "x"]', "b.json": '[{"text": 1}]', "c.json": '[{"token": "text"}]',
        "a.jsonl": '{"time": 1, "text" : "x"}', "b.jsonl": '{"entity": "text"}', "broken.parquet": "PAR1",
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    write_table(pa.table({"text": ["x"]}), tmp_path / "a.parquet")
    write_table(pa.table({"token": ["text"]}), tmp_path / "b.parquet")
    found = {path.name for path in tmp_path.iterdir() if reading.kind_of(str(path)) == "texts"}
    assert found == {"a.csv", "a.json", "b.json", "a.jsonl", "a.parquet"}


def test_bad_records_are_put_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [events_file(tmp_path / name, some_events(1, rows=20)) for name in ("a.jsonl", "b.jsonl")]
    for path in paths:
        path.write_text(path.read_text() + '{"entity":"e","time":"soon","token":"x"}\n')
    corpus = preprocess(*paths, "--on-error", "quarantine", "--json", out=tmp_path / "out")
    summary = json.loads(capsys.readouterr().out)
    assert (summary["records"], summary["bad"], summary["quarantine"]) == (40, 2, str(tmp_path / "out.quarantine.jsonl"))
    assert summary["index"]["splits"]["train"]["tokens"] == corpus.split("train").n_tokens
    lines = [json.loads(line) for line in (tmp_path / "out.quarantine.jsonl").read_text().splitlines()]
    assert [line["where"].partition(".jsonl:21")[0] for line in lines] == [str(path.with_suffix("")) for path in paths]
    with pytest.raises(UserError, match="2 records of 2 files are bad, expected at most 1"):
        cli.run(["preprocess", *map(str, paths), "--on-error", "skip", "--max-bad", "1", "--out", str(tmp_path / "two"), "--workers", "1"])
    assert not (tmp_path / "two").exists()


def test_the_history_of_a_repository(tmp_path: Path) -> None:
    """The README's line, on messages that have quotes, line breaks and more than ASCII."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (line,) = (line for line in readme.splitlines() if line.startswith("git log -z"))
    messages = ['say "hello"\n\nand \\ go', "größer\n\n</s>", "one line"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    for name in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{name}_NAME": "n", f"GIT_{name}_EMAIL": "e"}
    repository = tmp_path / "repository"
    subprocess.run(["git", "init", "-q", str(repository)], check=True, env=environment)
    for n, message in enumerate(messages):
        subprocess.run(["git", "commit", "-q", "--allow-empty", "-m", message], cwd=repository, check=True,
                       env=environment | {"GIT_COMMITTER_DATE": f"{START + n} +0000"})  # fmt: skip
    subprocess.run(["bash", "-c", line], cwd=repository, check=True, env=environment)
    corpus = preprocess(repository / "commits.jsonl", "--split", 1, 0, 0, "--no-prefix", out=tmp_path / "out")
    tokenizer = corpus.tokenizer()
    assert tokenizer is not None
    found = {times[0]: tokenizer.decode(tokens) for tokens, times in sequences(corpus)}
    assert {time: text.removesuffix("</s>").rstrip() for time, text in found.items()} == {
        START + n: message.removesuffix("</s>").rstrip() for n, message in enumerate(messages)
    }


def test_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to read: name one file or more"):
        cli.run(["preprocess", "--out", str(tmp_path / "out")])


def test_a_wrong_unit_is_told_with_its_place(tmp_path: Path) -> None:
    file = events_file(tmp_path / "a.jsonl", some_events(1, rows=20))
    with pytest.raises(UserError, match=r"none of its records is good.*a.jsonl:1:.*looks like seconds, expected UNIX milliseconds"):
        cli.run(["preprocess", str(file), "--time-unit", "ms", "--out", str(tmp_path / "out")])


MISTAKES: dict[str, tuple[list[str], str]] = {
    "overlap": (["--overlap", "3"], "--overlap must be at least 0 and below --length, got 3"),
    "length": (["--length", "0"], "--length must be at least 1, got 0"),
    "gap": (["--gap", "-1"], "--gap must be a number of seconds"),
    "split": (["--split", "0.5", "0.1", "0.1"], "--split is 0.5 0.1 0.1, expected three shares"),
    "nothing to train on": (["--split", "1e-9", "0.999999999", "0"], "--split leaves nothing for training"),
    "workers": (["--workers", "0"], "--workers must be at least 1, got 0"),
    "a folder": (["."], r"^\.: this is a folder, expected a file to read"),
    "twice": (["A"], "a file is named twice"),
    "missing": (["nowhere.csv"], "nowhere.csv: there is no such file"),
    "both": (["--columns.text", "t", "--columns.token", "k"], "expected one kind"),
    "kind": (["--kind", "texts", "--columns.token", "k"], "--kind is texts, but the columns that are named are of events"),
    "markers": (["--markers", "x"], "are for texts, but these are events"),
    "vocabulary of texts": (["--kind", "texts", "--min-count", "2"], "are for events, but these are texts"),
    "no vocabulary": (["--vocabulary", "A"], "not a vocabulary"),
    "documents": (["--kind", "texts", "--gap", "3"], "wants --segment entity"),
    "units": (["B"], "b.jsonl: times are UNIX milliseconds, but in .*a.jsonl times are UNIX seconds"),
    "empty": (["C"], "c.jsonl"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_sentence_and_leave_nothing(tmp_path: Path, name: str) -> None:
    a = events_file(tmp_path / "a.jsonl", some_events(1, rows=20))
    b = events_file(tmp_path / "b.jsonl", [("e", START * 1000, "x")])
    c = events_file(tmp_path / "c.jsonl", [])
    options, sentence = MISTAKES[name]
    filled = [{"A": str(a), "B": str(b), "C": str(c)}.get(option, option) for option in options]
    with pytest.raises(UserError, match=sentence):
        cli.run(["preprocess", str(a), *filled, "--out", str(tmp_path / "out")] + ([] if "--workers" in options else ["--workers", "1"]))
    assert not (tmp_path / "out").exists()
