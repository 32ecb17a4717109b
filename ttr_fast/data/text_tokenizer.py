"""Text ↔ tokens: byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909; on bytes as in Radford et al. 2019, §2.2), by the library `tokenizers`.

Every text can be encoded and comes back as it was, whatever its bytes. The terminator `</s>` and the markers are single tokens that no merge crosses.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError

TERMINATOR = "</s>"
LEAST_SIZE = 257
"""The 256 bytes and the terminator."""


class TextTokenizer:
    """A trained tokenizer. Raises UserError if the library is not installed."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.terminator = int(inner.token_to_id(TERMINATOR))
        self.whole = {token: added.content.encode() for token, added in inner.get_added_tokens_decoder().items()}

    @classmethod
    def train(cls, texts: Iterable[str], size: int, markers: Sequence[str] = ()) -> "TextTokenizer":
        """A vocabulary of at most `size` tokens, from texts that are gone through once. The same texts in the same order give the same tokens."""
        library = the_library()
        inner = library.Tokenizer(library.models.BPE())
        inner.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=max(size, LEAST_SIZE + len(markers)),
            special_tokens=[TERMINATOR, *markers],
            initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        inner.train_from_iterator(texts, trainer)
        return cls(inner)

    @classmethod
    def from_json(cls, content: bytes) -> "TextTokenizer":
        """What `json` gave. Raises UserError if it is something else."""
        try:
            inner = the_library().Tokenizer.from_str(content.decode())
        except UserError:
            raise
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"not a tokenizer's JSON: {error}") from error
        if inner.token_to_id(TERMINATOR) is None:
            raise UserError(f"the tokenizer has no token {TERMINATOR}, expected one that ends texts with it")
        return cls(inner)

    def json(self) -> bytes:
        """All of it."""
        return str(self.inner.to_str()).encode()

    @property
    def size(self) -> int:
        """V, how many tokens there are."""
        return int(self.inner.get_vocab_size())

    def token(self, text: str) -> int | None:
        """The token that is this text alone, such as a marker; None if there is none."""
        found = self.inner.token_to_id(text)
        return None if found is None else int(found)

    def encode(self, text: str) -> NDArray[np.int32]:
        """(n,) int32."""
        return np.array(self.inner.encode(text).ids, np.int32)

    def encode_many(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Each text's tokens."""
        return [np.array(e.ids, np.int32) for e in self.inner.encode_batch_fast(list(texts))]

    def decode(self, tokens: Sequence[int] | NDArray[np.int32]) -> str:
        """The text; bytes that are no UTF-8 (where a token ends inside a character) become U+FFFD."""
        return str(self.inner.decode(list(map(int, tokens)), skip_special_tokens=False))

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token, which may end inside a character."""
        if token in self.whole:  # terminator and markers stand as they are
            return self.whole[token]
        return bytes(BYTE_OF[character] for character in self.inner.id_to_token(token))


def byte_letters() -> dict[str, int]:
    """The letter that stands for each byte in byte-level BPE: those that print are themselves, the others follow from U+0100 on."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF = byte_letters()


def the_library() -> Any:
    """The library, with what is used of it."""
    try:
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers, trainers  # noqa: F401  # submodules that the first line does not bring along
    except ImportError:
        raise UserError("texts need the library tokenizers:  pip install 'temporal-transformer[text]'") from None
    return tokenizers
