"""Many event sequences in one set of flat arrays, so that slicing and saving cost nothing per sequence."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.int64] | NDArray[np.float64]


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
