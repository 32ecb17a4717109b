"""`ttr preprocess` of texts: dates, terminators, streams of an entity."""

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from tests.fast.preprocessing import START, contents, preprocess, sequences
from ttr_fast import cli
from ttr_fast.data.corpus import SPLITS
from ttr_fast.data.dates import dates
from ttr_fast.data.text_tokenizer import TERMINATOR
from ttr_fast.errors import UserError

TEXTS = [("a", START + 60 * n, f"User: where {n}? Assistant: north {n % 3}" + ("</s>" if n % 2 else "")) for n in range(20)]


def texts_file(path: Path) -> Path:
    path.write_text("".join(json.dumps({"entity": f"{e}{n % 3}", "time": t, "text": text}) + "\n" for n, (e, t, text) in enumerate(TEXTS)))
    return path


@pytest.mark.usefixtures("small_pieces")
def test_texts_start_with_their_date_and_end_once(tmp_path: Path) -> None:
    corpus = preprocess(texts_file(tmp_path / "a.jsonl"), "--markers", "User:", "Assistant:", out=tmp_path / "out")
    tokenizer = corpus.tokenizer()
    assert tokenizer is not None
    assert corpus.index.kind == "texts"
    assert corpus.vocabulary == ()
    assert corpus.vocabulary_size == tokenizer.size
    decoded = []
    for tokens, times in sequences(corpus):
        assert tokens.count(tokenizer.terminator) == 1
        assert tokens[-1] == tokenizer.terminator
        assert tokens.count(tokenizer.token("User:")) == 1
        assert len(set(times)) == 1
        decoded.append((times[0], tokenizer.decode(tokens)))
    assert sorted(decoded) == [(t, f"<{dates(np.array([t]), 1.0)[0]}>{text.removesuffix(TERMINATOR)}{TERMINATOR}") for _, t, text in TEXTS]


def test_the_texts_of_an_entity_as_one_stream_cut_by_length(tmp_path: Path) -> None:
    """Each piece starts with the date of its first token; without prefixes the stream is whole."""
    path = texts_file(tmp_path / "a.jsonl")
    options = ["--segment", "entity", "--split", 1, 0, 0, "--length", 7]
    dated = preprocess(path, *options, out=tmp_path / "dated")
    tokenizer = dated.tokenizer()
    assert tokenizer is not None
    plain = preprocess(path, *options, "--no-prefix", "--tokenizer", tmp_path / "dated" / "tokenizer.json", out=tmp_path / "plain")
    assert (tmp_path / "plain" / "tokenizer.json").read_bytes() == (tmp_path / "dated" / "tokenizer.json").read_bytes()
    for (tokens, times), (bare, bare_times) in zip(sequences(dated), sequences(plain), strict=True):
        prefix = tokenizer.encode(f"<{dates(np.array(times[:1]), 1.0)[0]}>").tolist()
        assert tokens == prefix + bare
        assert times == [bare_times[0]] * len(prefix) + bare_times
        assert len(bare) <= 7
    stream = "".join(tokenizer.decode(tokens) for tokens, _ in sequences(plain))
    assert stream == "".join(text.removesuffix(TERMINATOR) + TERMINATOR for n in range(3) for _, _, text in TEXTS[n::3])


def test_texts_without_times_or_entities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON strings; the same text is never on two sides, whatever files it is in."""
    texts = [f"text {n % 30}" for n in range(60)]
    (tmp_path / "a.json").write_text(json.dumps(texts))
    corpus = preprocess(tmp_path / "a.json", out=tmp_path / "out")
    assert "no times" in capsys.readouterr().err
    assert (corpus.time_unit, corpus.index.tick_seconds, corpus.index.time_dtype) == (None, None, "int64")
    tokenizer = corpus.tokenizer()
    assert tokenizer is not None
    sides = [sorted(tokenizer.decode(tokens) for tokens, _ in sequences(corpus, name)) for name in SPLITS]
    assert sorted(chain.from_iterable(sides)) == sorted(f"{text}</s>" for text in texts)
    assert len(set(sides[0]) | set(sides[1]) | set(sides[2])) == sum(len(set(side)) for side in sides) == 30
    assert all(set(times) == {0} for _, times in sequences(corpus))
    with pytest.raises(UserError, match="a.json: the texts have no 'entity', but --segment entity wants"):
        cli.run(["preprocess", str(tmp_path / "a.json"), "--segment", "entity", "--workers", "1", "--out", str(tmp_path / "elsewhere" / "stream")])
    for n in range(2):
        (tmp_path / f"b{n}.json").write_text(json.dumps(texts[30 * n : 30 * n + 30]))
    preprocess(tmp_path / "b0.json", tmp_path / "b1.json", out=tmp_path / "divided")
    assert contents(tmp_path / "divided") == contents(tmp_path / "out")
