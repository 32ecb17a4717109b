"""Byte-level BPE: every text comes back, terminators and markers are single tokens, training is deterministic."""

import re

import pytest
from hypothesis import given, strategies as st

from ttr_fast.data.text_tokenizer import LEAST_SIZE, TERMINATOR, TextTokenizer
from ttr_fast.errors import UserError

TEXTS = ["User: where to? Assistant: north</s>", "User: and then? Assistant: home</s>"] * 5
TOKENIZER = TextTokenizer.train(TEXTS, 300, ["User:", "Assistant:"])


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_every_text_comes_back(text: str) -> None:
    tokens = TOKENIZER.encode(text)
    assert TOKENIZER.decode(tokens) == text
    assert ((tokens >= 0) & (tokens < TOKENIZER.size)).all()


def test_terminator_and_markers_are_single_tokens() -> None:
    tokens = TOKENIZER.encode("User: a</s>Assistant: b</s>").tolist()
    assert tokens.count(TOKENIZER.terminator) == 2
    assert tokens[0] == TOKENIZER.token("User:")
    assert TOKENIZER.token("Assistant:") in tokens
    assert TOKENIZER.token("nothing like it") is None


def test_the_same_texts_give_the_same_tokenizer_which_survives_json() -> None:
    again = TextTokenizer.train(TEXTS, 300, ["User:", "Assistant:"])
    assert again.json() == TOKENIZER.json()
    assert TextTokenizer.from_json(TOKENIZER.json()).encode(TEXTS[0]).tolist() == TOKENIZER.encode(TEXTS[0]).tolist()


def test_the_vocabulary_has_at_least_every_byte() -> None:
    assert TextTokenizer.train([], 1).size == LEAST_SIZE


def test_many_at_once_are_the_same_as_one_by_one() -> None:
    assert [t.tolist() for t in TOKENIZER.encode_many(TEXTS)] == [TOKENIZER.encode(text).tolist() for text in TEXTS]


@pytest.mark.parametrize("content", [b"{}", b"nothing", b"\xff"])
def test_what_is_no_tokenizer_is_refused(content: bytes) -> None:
    with pytest.raises(UserError, match="not a tokenizer's JSON"):
        TextTokenizer.from_json(content)


def test_a_tokenizer_without_terminator_is_refused() -> None:
    content = TOKENIZER.json().replace(TERMINATOR.encode(), b"<end>")
    with pytest.raises(UserError, match=re.escape("no token </s>")):
        TextTokenizer.from_json(content)
