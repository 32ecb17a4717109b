"""Names → 64-bit hashes, thousands at once: a dictionary of all entities costs more than everything else that is done with an event.

Each 8 bytes are mixed in by the finalizer of splitmix64 (Steele, Lea, Flood 2014), which is a bijection, so names of one length of up to 8 bytes
never collide; among n others two have the same hash with probability n²/2⁶⁵, 3 in a million for ten million names. They would be one entity.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
WORD = 8


def name_hashes(names: Sequence[str]) -> Hashes:
    """(n,) of the names in UTF-8."""
    joined = "".join(names)
    content = joined.encode()
    ascii_only = len(content) == len(joined)
    sizes = np.fromiter(map(len, names) if ascii_only else (len(name.encode()) for name in names), np.int64, len(names))
    padded = content + bytes(WORD)
    at_byte = np.ndarray((len(padded) - WORD + 1,), "<u8", padded, strides=(1,))  # the word that starts at each byte
    starts = np.cumsum(sizes) - sizes
    hashes = _mixed(sizes.astype(np.uint64))
    rows = np.arange(sizes.size)
    for word in range(0, int(sizes.max(initial=0)), WORD):
        left = sizes[rows] - word
        rows, left = rows[left > 0], left[left > 0]
        words = at_byte[starts[rows] + word]
        beyond = (WORD * np.maximum(0, WORD - left)).astype(np.uint64)  # bits that belong to the next name
        hashes[rows] = _mixed(hashes[rows] ^ (words << beyond >> beyond))
    return hashes


def partition_of(hashes: Hashes, partitions: int) -> NDArray[np.uint16]:
    """(n,) below `partitions`, by the leading bits."""
    return ((hashes >> np.uint64(32)) * np.uint64(partitions) >> np.uint64(32)).astype(np.uint16)


class Seen:
    """Which names came up before: exact for most, and never a new one that counts as seen."""

    def __init__(self, slots: int) -> None:
        self.slots = np.arange(1, slots + 1, dtype=np.uint64)  # none of which belongs where it stands

    def new(self, hashes: Hashes) -> NDArray[np.int64]:
        """The places of names that are new, or whose slot another name has taken; each name once."""
        slot = hashes % np.uint64(self.slots.size)
        fresh = np.flatnonzero(self.slots[slot] != hashes)
        _, first = np.unique(hashes[fresh], return_index=True)
        self.slots[slot[fresh]] = hashes[fresh]
        return fresh[first]


def _mixed(z: Hashes) -> Hashes:
    """The next of splitmix64 from each state."""
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
