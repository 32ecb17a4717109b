"""Shards and their index: what was written comes back, as views; a flipped bit anywhere is noticed; `ttr shards`."""

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, strategies as st
from safetensors.numpy import load_file

from ttr_fast import cli
from ttr_fast.data.corpus import SPLITS, CorpusSplit, Index, open_corpus, verify_corpus, write_index
from ttr_fast.data.shards import ShardEntry, open_shard, verify_shard, write_shard
from ttr_fast.errors import UserError

START = 1_700_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus of events in several shards."""
    base = tmp_path_factory.mktemp("corpus")
    rows = [f"e{e},{START + 100 * n},{'xyz'[(e + n) % 3]}" for e in range(40) for n in range(5)]
    (base / "events.csv").write_text("\n".join(["entity,time,token", *rows]) + "\n")
    cli.run(["preprocess", str(base / "events.csv"), "--out", str(base / "out"), "--workers", "1", "--shard-tokens", "50", "--time-unit", "s",
             "--split", "0.6", "0.2", "0.2"])  # fmt: skip
    return base / "out"


def copied(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def verify(folder: Path) -> list[ShardEntry]:
    return list(verify_corpus(folder))


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=6), whole=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_a_shard_comes_back_and_others_read_it(tmp_path_factory: pytest.TempPathFactory, lengths: list[int], whole: bool, seed: int) -> None:
    path, n, rng = tmp_path_factory.mktemp("s") / "s.safetensors", sum(lengths), np.random.default_rng(seed)
    tokens = rng.integers(0, 2**32, n).astype(np.uint32)
    times = np.sort(rng.integers(-(2**60), 2**60, n)) if whole else np.sort(rng.standard_normal(n))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    entry = write_shard(path, tokens, times, offsets)
    shard = open_shard(path, entry, "int64" if whole else "float64")
    verify_shard(path, entry, "int64" if whole else "float64")
    theirs = load_file(path)
    for name, written in (("tokens", tokens), ("times", times), ("offsets", offsets)):
        ours = getattr(shard, name)
        assert ours.dtype == written.dtype == theirs[name].dtype
        assert ours.flags.aligned
        assert not ours.flags.writeable
        np.testing.assert_array_equal(ours, written)
        np.testing.assert_array_equal(theirs[name], written)


def test_our_bytes_are_those_of_the_library(tmp_path: Path) -> None:
    from safetensors.numpy import save

    arrays = {"tokens": np.arange(3, dtype=np.uint32), "times": np.arange(3.0), "offsets": np.array([0, 1, 3])}
    write_shard(tmp_path / "s", **arrays)
    assert (tmp_path / "s").read_bytes() == save(arrays)


def test_a_split_over_many_shards_is_one_list_of_sequences(folder: Path) -> None:
    corpus = open_corpus(folder)
    assert corpus.vocabulary == ("<unk>", "x", "y", "z")
    assert corpus.vocabulary_size == 4
    assert corpus.time_unit == "s"
    assert corpus.tokenizer() is None
    train = corpus.split("train")
    entries = corpus.index.splits["train"].shards
    assert len(entries) > 1
    assert all(entry.tokens == 50 for entry in entries[:-1])
    assert train.n_sequences == sum(entry.sequences for entry in entries) == corpus.index.splits["train"].sequences
    assert train.lengths.dtype == np.int64
    assert train.lengths.tolist() == [5] * train.n_sequences
    assert train.n_tokens == 5 * train.n_sequences
    whole = [load_file(folder / entry.file) for entry in entries]
    for i in range(train.n_sequences):
        tokens, times = train.sequence(i)
        shard, k = whole[i // 10], i % 10 * 5
        np.testing.assert_array_equal(tokens, shard["tokens"][k : k + 5])
        np.testing.assert_array_equal(times, shard["times"][k : k + 5])
        assert not tokens.flags.owndata


def test_a_corpus_may_have_more_shards_than_files_may_be_open(folder: Path) -> None:
    """In a process that may open few."""
    code = (
        "import resource, sys; from pathlib import Path; from msgspec.structs import replace; from ttr_fast.data.corpus import open_corpus;"
        "corpus = open_corpus(Path(sys.argv[1])); split = corpus.index.splits['train'];"
        "split = replace(split, shards=split.shards * 50); corpus = replace(corpus, index=replace(corpus.index, splits={'train': split}));"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]));"
        "print(len(corpus.split('train').shards))"
    )
    process = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert process.stderr == ""
    assert int(process.stdout) >= 100


def test_a_split_may_be_empty() -> None:
    empty = CorpusSplit([])
    assert (empty.n_sequences, empty.n_tokens, empty.lengths.tolist()) == (0, 0, [])


def test_a_flipped_bit_in_any_byte_of_a_header_is_noticed_when_it_is_opened(folder: Path, tmp_path: Path) -> None:
    entry = open_corpus(folder).index.splits["test"].shards[0]
    content = (folder / entry.file).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    path = tmp_path / entry.file
    for at, bit in [(at, bit) for at in range(8) for bit in range(8)] + [(at, at % 8) for at in range(8, end)]:
        flipped = bytearray(content)
        flipped[at] ^= 1 << bit
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=re.escape(f"{path}: ")):
            open_shard(path, entry, "int64")


def test_a_header_that_ends_in_its_padding_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    entry = write_shard(path, np.arange(5, dtype=np.uint32), np.arange(5), np.array([0, 5]))
    content = bytearray(path.read_bytes())
    assert content[8:].startswith(b'{"offsets"')
    content[0] -= 4
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"its tensors end at byte {len(content) - 4}, expected {len(content)}"):
        open_shard(path, entry, "int64")


def test_a_flipped_bit_elsewhere_is_noticed_when_it_is_verified(folder: Path, tmp_path: Path) -> None:
    broken = copied(folder, tmp_path / "broken")
    assert sum(entry.sequences for entry in verify(broken)) == 40
    for path in sorted(broken.iterdir()):
        content = path.read_bytes()
        for at in range(0, len(content), 7 if path.name.startswith("index") else 29):
            path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
            with pytest.raises(UserError):
                verify(broken)
        path.write_bytes(content)
    assert len(verify(broken)) == sum(len(split.shards) for split in open_corpus(broken).index.splits.values())


def test_a_shard_that_cannot_be_read_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the folder that is being written."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(hashlib, "file_digest", refuse)
    with pytest.raises(UserError, match=re.escape(f"{folder / 'train-00000.safetensors'}: cannot be read: Input/output error")):
        cli.run(["shards", "export", str(folder), "--out", str(tmp_path / "rust")])
    assert list(tmp_path.iterdir()) == []


def rewritten(change: Callable[[dict], object]) -> Callable[[Path], object]:
    """Change the index, with its checksum."""

    def damage(folder: Path) -> None:
        index = json.loads((folder / "index.json").read_bytes())
        change(index)
        write_index(folder, msgspec.convert(index, Index))

    return damage


def reshaped(folder: Path) -> None:
    """A shard with other offsets, and the same size."""
    entry = open_corpus(folder).index.splits["train"].shards[0]
    arrays = load_file(folder / entry.file)
    arrays["offsets"][1] = arrays["offsets"][2]
    write_shard(folder / entry.file, arrays["tokens"], arrays["times"], arrays["offsets"])


def backwards(folder: Path) -> None:
    """A shard with times that go back, and an index that believes it."""
    index = open_corpus(folder).index
    arrays = load_file(folder / "train-00000.safetensors")
    arrays["times"][1] = arrays["times"][0] - 1
    entry = write_shard(folder / "train-00000.safetensors", arrays["tokens"], arrays["times"], arrays["offsets"])
    train = index.splits["train"]
    shards = (entry, *train.shards[1:])
    write_index(folder, msgspec.structs.replace(index, splits=index.splits | {"train": msgspec.structs.replace(train, shards=shards)}))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda f: (f / "index.json").unlink(), r"not a corpus, expected a folder with index\.json"),
    "no checksum": (lambda f: (f / "index.sha256").unlink(), r"index\.sha256: cannot be read: No such file"),
    "index cut": (lambda f: (f / "index.json").write_bytes(b"{"), r"index\.json: damaged: its SHA-256 is not the one in index\.sha256"),
    "shard missing": (lambda f: (f / "test-00000.safetensors").unlink(), r"test-00000\.safetensors: missing, expected \d+ bytes"),
    "shard cut": (lambda f: (f / "test-00000.safetensors").write_bytes(b"x"), r"test-00000\.safetensors: damaged: 1 bytes, expected \d+"),
    "vocabulary missing": (lambda f: (f / "vocabulary.json").unlink(), r"vocabulary\.json: cannot be read"),
    "vocabulary cut": (lambda f: (f / "vocabulary.json").write_bytes(b"[]"), r"vocabulary\.json: damaged: 2 bytes, expected \d+"),
    "counts": (rewritten(lambda i: i["splits"]["valid"].update(tokens=1)), r"counts of split valid are not the sums"),
    "split": (rewritten(lambda i: i["splits"].pop("test")), r"split test is missing"),
    "tokens": (rewritten(lambda i: i["vocabulary"].update(size=2)), r"train-00000\.safetensors: token 3 is beyond the vocabulary of 2"),
    "dtype": (rewritten(lambda i: i.update(time_dtype="float64")), r"the header is damaged: times is not \d+ of F64 from byte \d+"),
    "offsets": (reshaped, r"train-00000\.safetensors: damaged: offset 2 is 10 after 10, expected ascending ones"),
    "times": (backwards, r"train-00000\.safetensors: time 1699999999 follows 1700000000 in a sequence"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_told_in_one_sentence(folder: Path, tmp_path: Path, name: str) -> None:
    broken = copied(folder, tmp_path / "broken")
    damage, sentence = DAMAGES[name]
    damage(broken)
    with pytest.raises(UserError, match=sentence):
        cli.run(["shards", "verify", str(broken)])


def test_sha256sum_reads_the_checksum(folder: Path) -> None:
    assert subprocess.run(["sha256sum", "-c", "index.sha256"], cwd=folder, capture_output=True, text=True, check=True).stdout == "index.json: OK\n"


def test_info_and_verify(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["shards", "info", str(folder), "--json"])
    assert msgspec.json.decode(capsys.readouterr().out, type=Index) == open_corpus(folder).index
    cli.run(["shards", "info", str(folder)])
    text = capsys.readouterr().out
    assert text.startswith("events: 4 tokens, times in s as int64\n")
    assert "2023-11-14T22:13:20Z … 2023-11-14T22:20:00Z" in text
    cli.run(["shards", "verify", str(folder)])
    shards = [path.stat().st_size for path in folder.glob("*.safetensors")]
    assert capsys.readouterr().out == f"{folder}: whole, {len(shards)} shards of {sum(shards):,} bytes\n"


def test_export_and_import_give_the_same_bytes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["shards", "export", str(folder), "--out", str(tmp_path / "rust")])
    names = {path.name for path in (tmp_path / "rust").iterdir()}
    assert names == {"description.json", "vocabulary.json"} | {path.with_suffix(".bincode").name for path in folder.glob("*.safetensors")}
    cli.run(["shards", "import", str(tmp_path / "rust"), "--out", str(tmp_path / "again")])
    assert "events: 4 tokens" in capsys.readouterr().out
    assert {p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()} == {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(UserError, match="there is something already"):
        cli.run(["shards", "export", str(folder), "--out", str(tmp_path / "rust")])


def test_shards_are_imported_in_the_order_of_their_numbers(folder: Path, tmp_path: Path) -> None:
    """A program that writes no zeros before them means 2 before 10."""
    cli.run(["shards", "export", str(folder), "--out", str(tmp_path / "rust")])
    for name in ("train-10", "train-2"):
        (tmp_path / "rust" / f"{name}.bincode").write_bytes((tmp_path / "rust" / "train-00000.bincode").read_bytes())
    cli.run(["shards", "import", str(tmp_path / "rust"), "--out", str(tmp_path / "again")])
    names = [entry.file for entry in open_corpus(tmp_path / "again").index.splits["train"].shards]
    assert names.index("train-2.safetensors") < names.index("train-10.safetensors")
    assert verify(tmp_path / "again")


def test_a_tokenizer_of_another_size_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(f'{{"text": "text number {n}", "time": {START + n}}}\n' for n in range(40)))
    cli.run(["preprocess", str(tmp_path / "texts.jsonl"), "--out", str(tmp_path / "corpus"), "--workers", "1", "--vocab-size", "300"])
    cli.run(["shards", "export", str(tmp_path / "corpus"), "--out", str(tmp_path / "rust")])
    size = open_corpus(tmp_path / "corpus").vocabulary_size
    described(tmp_path / "rust", "size", size + 1)
    with pytest.raises(UserError, match=rf"tokenizer\.json: {size} tokens, expected {size + 1} as description\.json says"):
        cli.run(["shards", "import", str(tmp_path / "rust"), "--out", str(tmp_path / "again")])
    rewritten(lambda index: index["vocabulary"].update(size=size + 1))(tmp_path / "corpus")
    with pytest.raises(UserError, match=rf"tokenizer\.json: {size} tokens, expected {size + 1} as index\.json says"):
        verify(tmp_path / "corpus")


def described(folder: Path, field: str, value: object) -> None:
    """description.json says something else of the vocabulary."""
    description = json.loads((folder / "description.json").read_bytes())
    description["vocabulary"][field] = value
    (folder / "description.json").write_text(json.dumps(description))


BAD_IMPORTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no description": (lambda f: (f / "description.json").unlink(), "no shards to import, expected a folder with description.json"),
    "description": (lambda f: (f / "description.json").write_bytes(b"{}"), "description.json: not the description of a corpus"),
    "no shards": (lambda f: [path.unlink() for path in f.glob("*.bincode")], "there are no shards, expected files such as train-00000.bincode"),
    "vocabulary": (lambda f: (f / "vocabulary.json").write_bytes(b"[]"), "vocabulary.json: its size or SHA-256 is not the one in description.json"),
    "size of the vocabulary": (lambda f: described(f, "bytes", 7), "vocabulary.json: its size or SHA-256 is not the one in description.json"),
    "number of tokens": (lambda f: described(f, "size", 5), "vocabulary.json: 4 tokens, expected 5 as description.json says"),
    "no number": (lambda f: (f / "train-00000.bincode").rename(f / "train-last.bincode"),
        "train-last.bincode: no number follows the name of the split, expected one as in train-00000.bincode"),
    "a file elsewhere": (lambda f: described(f, "file", "../vocabulary.json"),
        "description.json: the file of its tokens is '../vocabulary.json', expected 'vocabulary.json'"),
    "token": (lambda f: (f / "test-00000.bincode").write_bytes(
        bytes.fromhex("0100000000000000 04000000 0100000000000000 0000000000000000 0200000000000000 0000000000000000 0100000000000000")),
        "test-00000.bincode: token 4 is beyond the vocabulary of 4"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_IMPORTS)
def test_what_cannot_be_imported_leaves_nothing(folder: Path, tmp_path: Path, name: str) -> None:
    cli.run(["shards", "export", str(folder), "--out", str(tmp_path / "rust")])
    damage, sentence = BAD_IMPORTS[name]
    damage(tmp_path / "rust")
    with pytest.raises(UserError, match=sentence):
        cli.run(["shards", "import", str(tmp_path / "rust"), "--out", str(tmp_path / "again")])
    assert [path.name for path in tmp_path.iterdir()] == ["rust"]


def test_the_documented_layout_is_the_written_one(folder: Path) -> None:
    """docs/SHARDS.md names the tensors and the splits."""
    text = (Path(__file__).parents[2] / "docs" / "SHARDS.md").read_text()
    for name in (*load_file(folder / "train-00000.safetensors"), *SPLITS, *(path.name for path in folder.iterdir() if path.suffix != ".safetensors")):
        assert name in text
    for field in json.loads((folder / "index.json").read_bytes()):
        assert f"`{field}`" in text
