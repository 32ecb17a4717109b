"""A text that appears while it is made, against the text as a whole."""

import pytest
from hypothesis import given, strategies as st

from ttr_fast.data.text_tokenizer import TextTokenizer
from ttr_fast.generation.text import TextStream

TEXTS = ["User: où? Assistant: là-bas, ça 日本語 🙂</s>", "User: naïve aab aabb Assistant: là</s>"] * 5
TOKENIZER = TextTokenizer.train(TEXTS, 330, ["User:", "Assistant:"])
TEXT = st.text(st.one_of(st.sampled_from("ab日🙂é "), st.characters(exclude_categories=["Cs"])), max_size=40)


@given(text=TEXT)
def test_bytes_of_tokens_are_those_of_the_text(text: str) -> None:
    assert b"".join(map(TOKENIZER.token_bytes, TOKENIZER.encode(text).tolist())) == text.encode()


def test_every_token_has_bytes_of_its_own() -> None:
    """Single bytes among them, and markers as they stand."""
    everything = [TOKENIZER.token_bytes(token) for token in range(TOKENIZER.size)]
    assert len(set(everything)) == TOKENIZER.size
    assert {bytes([b]) for b in range(256)} | {b"</s>", b"User:", b"Assistant:"} < set(everything)


def shown(tokens: list[int], stops: list[str], limit: int = 1000) -> tuple[str, str | None, list[str]]:
    """(the whole text, how it ended, its pieces), with what each piece must be: whole characters, never taken back."""
    stream, pieces = TextStream(TOKENIZER, stops, limit), []
    for n, token in enumerate(tokens):
        ended = stream.add(token)
        pieces.append(stream.take())
        assert stream.tokens == n + 1
        if ended:
            break
    return "".join(pieces), stream.ending, pieces


@given(text=TEXT, stops=st.lists(st.text("ab日é ", min_size=1, max_size=3), max_size=3), data=st.data())
def test_the_text_ends_before_the_first_stop(text: str, stops: list[str], data: st.DataObject) -> None:
    """Wherever tokens begin and end. Of two stops that are complete with the same token, the one that begins first counts."""
    single = data.draw(st.booleans())
    tokens = [TOKENIZER.encode(text).tolist(), list(bytes_as_tokens(text))][single]
    found, ending, _ = shown([*tokens, TOKENIZER.terminator], stops)
    before = 0
    for n in range(len(tokens) + 1):  # the first token with which some stop is complete
        so_far = b"".join(map(TOKENIZER.token_bytes, tokens[:n])).decode(errors="ignore")
        at = [so_far.find(stop) for stop in stops if stop in so_far]
        if at:
            assert (found, ending) == (so_far[: min(at)], "stop")
            return
        before = n
    assert before == len(tokens)
    assert (found, ending) == (text, "</s>")


def bytes_as_tokens(text: str) -> list[int]:
    """A token for each byte, whatever merges there are."""
    of_byte = {TOKENIZER.token_bytes(token): token for token in range(TOKENIZER.size)}
    return [of_byte[bytes([b])] for b in text.encode()]


def test_a_character_appears_when_it_is_complete() -> None:
    text, ending, pieces = shown([*bytes_as_tokens("é🙂!"), TOKENIZER.terminator], [])
    assert pieces == ["", "é", "", "", "", "🙂", "!", ""]
    assert (text, ending) == ("é🙂!", "</s>")


def test_what_may_become_a_stop_is_held_back() -> None:
    text, ending, pieces = shown(bytes_as_tokens("xaaybaab"), ["aab"])
    assert pieces == ["x", "", "", "aay", "b", "", "", ""]
    assert (text, ending) == ("xaayb", "stop")
    assert shown([*bytes_as_tokens("xa"), TOKENIZER.terminator], ["aab"])[0] == "xa"


@pytest.mark.parametrize(("limit", "text"), [(1, "\ufffd"), (2, "é"), (3, "é\ufffd")])
def test_the_limit(limit: int, text: str) -> None:
    """What was cut inside a character ends in U+FFFD, as does what is no UTF-8 at all."""
    assert shown(bytes_as_tokens("éé"), ["\ufffd\ufffd"], limit)[:2] == (text, "tokens")
