"""Tokens as a text that appears while it is made: whole characters only, and nothing that may yet turn out to be a stop text."""

import codecs
from collections.abc import Sequence
from typing import Literal

from ttr_fast.data.text_tokenizer import TextTokenizer

Ending = Literal["</s>", "stop", "tokens"]


class TextStream:
    """One text in the making. `add` takes its tokens, `take` gives the text as far as it is settled."""

    def __init__(self, tokenizer: TextTokenizer, stops: Sequence[str], limit: int) -> None:
        """It ends at the terminator, at the first of the stop texts (none is empty), neither of which is part of it, or after `limit` tokens."""
        self.tokenizer, self.stops, self.limit = tokenizer, stops, limit
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.pending, self.settled, self.tokens = "", "", 0
        self.ending: Ending | None = None

    def add(self, token: int) -> bool:
        """Whether the text has ended."""
        self.tokens += 1
        if token == self.tokenizer.terminator:
            self.ending = "</s>"
        self.pending += self.decoder.decode(b"" if self.ending else self.tokenizer.token_bytes(token), final=self.ending is not None)
        if not self.ending and self.tokens == self.limit:
            self.pending += self.decoder.decode(b"", final=True)
            self.ending = "tokens"
        at = min((n for stop in self.stops if (n := self.pending.find(stop)) >= 0), default=None)
        if at is not None:
            self.pending, self.ending = self.pending[:at], "stop"
        held = 0 if self.ending else self.held()
        self.settled += self.pending[: len(self.pending) - held]
        self.pending = self.pending[len(self.pending) - held :]
        return self.ending is not None

    def held(self) -> int:
        """How many characters at the end may be the beginning of a stop text."""
        return max((n for stop in self.stops for n in range(1, len(stop)) if self.pending.endswith(stop[:n])), default=0)

    def take(self) -> str:
        """What was settled since it was last asked for."""
        text, self.settled = self.settled, ""
        return text
