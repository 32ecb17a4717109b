"""The second stage: the vocabulary of events with its counts, or the tokenizer of texts, from what all files hold."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ..corpus import TOKENIZER, VOCABULARY, Counted, read_file, read_tokenizer, read_vocabulary
from ..dates import dates
from ..event_files import UNKNOWN
from ..text_tokenizer import TextTokenizer
from .plan import Tokenizing
from .spill import Part, each_text


def vocabulary(parts: Sequence[Part], tokenizing: Tokenizing, loaded: Path | None) -> bytes:
    """vocabulary.json of events: <unk>, then the tokens in the order of their text, or those of the loaded file in its order.

    Counts are those of all splits. Raises UserError if the loaded file is no vocabulary.
    """
    counts = Counter[str]()
    for part in parts:
        for entry in part.tokens:
            counts[entry.token] += entry.count
    if loaded is not None:
        known = [entry.token for entry in read_vocabulary(loaded, read_file(loaded))[1:]]
    else:
        known = sorted(token for token, count in counts.items() if count >= tokenizing.min_count and token != UNKNOWN)
    entries = [Counted(token, counts[token]) for token in known]
    unknown = counts.total() - sum(entry.count for entry in entries)
    # one token a line
    return b"[\n" + b",\n".join(msgspec.json.encode(entry) for entry in [Counted(UNKNOWN, unknown), *entries]) + b"\n]\n"


def numbers_of(parts: Sequence[Part], content: bytes) -> list[NDArray[np.uint32]]:
    """For each part, the number in the vocabulary of each of its codes."""
    numbers = {entry.token: n for n, entry in enumerate(msgspec.json.decode(content, type=list[Counted]))}
    return [np.array([numbers.get(entry.token, 0) for entry in part.tokens], np.uint32) for part in parts]


def tokenizer(folders: Sequence[Path], parts: Sequence[Part], tokenizing: Tokenizing, loaded: Path | None, tick_seconds: float | None) -> bytes:
    """tokenizer.json of texts, trained on all of them, or loaded. tick_seconds: of the dates that texts will start with, None without.

    Raises UserError if the loaded file is no tokenizer.
    """
    if loaded is None:
        texts = chain.from_iterable(_dated(folder, part, tick_seconds) for folder, part in zip(folders, parts, strict=True))
        return TextTokenizer.train(texts, tokenizing.vocabulary_size, tokenizing.markers).json()
    found = read_tokenizer(loaded, read_file(loaded))
    for marker in tokenizing.markers:
        if found.token(marker) is None:
            raise UserError(f"{loaded}: the tokenizer has no token {marker!r}, which --markers names")
    return found.json()


def tokens_file(with_texts: bool) -> str:
    """Its name in a corpus."""
    return TOKENIZER if with_texts else VOCABULARY


def prefixes(texts_dates: Sequence[str]) -> list[str]:
    """What stands before a text."""
    return [f"<{date}>" for date in texts_dates]


def _dated(folder: Path, part: Part, tick_seconds: float | None) -> Iterator[str]:
    for texts, times in each_text(folder, part):
        if tick_seconds is None:
            yield from texts
        else:
            yield from (prefix + text for prefix, text in zip(prefixes(dates(times, tick_seconds)), texts, strict=True))
