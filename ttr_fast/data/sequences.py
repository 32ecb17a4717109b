"""Many sequences of tokens with times: what training and evaluation ask of them, and those that lie in memory in one set of flat arrays."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32] | NDArray[np.uint32]
Times = NDArray[np.int64] | NDArray[np.float64]


class Sequences(Protocol):
    """n sequences, in memory or mapped from a file."""

    @property
    def n_sequences(self) -> int:
        """n."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) int64, tokens in each sequence."""

    @property
    def n_tokens(self) -> int:
        """Tokens in all of them."""

    def sequence(self, i: int) -> tuple[Tokens, Times]:
        """Views of the tokens and times of sequence i, 0 <= i < n_sequences; the times never decrease."""


class EventSequences(NamedTuple):
    """n sequences of N events in all; sequence i is the slice offsets[i]:offsets[i + 1] of tokens and times.

    entities    n names in ascending order, one for each sequence
    tokens      (N,) int32, index into vocabulary
    times       (N,) int64 or float64 in the unit of the source (seconds for ISO 8601), never decreasing in a sequence
    offsets     (n + 1,) int64, from 0 to N
    vocabulary  text of each token id
    """

    entities: tuple[str, ...]
    tokens: NDArray[np.int32]
    times: Times
    offsets: NDArray[np.int64]
    vocabulary: tuple[str, ...]

    @property
    def n_sequences(self) -> int:
        """Number of sequences (len() of a NamedTuple counts its fields)."""
        return len(self.entities)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) int64, events in each sequence."""
        return np.diff(self.offsets)

    @property
    def n_tokens(self) -> int:
        """N."""
        return int(self.tokens.size)

    def sequence(self, i: int) -> tuple[NDArray[np.int32], Times]:
        """Views of the tokens and times of sequence i, 0 <= i < n_sequences."""
        part = slice(self.offsets[i], self.offsets[i + 1])
        return self.tokens[part], self.times[part]

    def select(self, indices: Sequence[int] | NDArray[np.intp]) -> "EventSequences":
        """Copy of the sequences at these indices, which ascend, with the whole vocabulary."""
        chosen = np.asarray(indices, np.int64)
        lengths = self.lengths[chosen]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[chosen] - offsets[:-1], lengths)
        names = tuple(self.entities[i] for i in chosen)
        return EventSequences(names, self.tokens[rows], self.times[rows], offsets, self.vocabulary)
