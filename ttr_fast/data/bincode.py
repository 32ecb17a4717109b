"""Shards as Bincode, the form of the Rust original: bincode 1.x, fixed-width integers, little endian. docs/SHARDS.md has it for Rust readers.

    struct Shard { tokens: Vec<u32>, times: Vec<i64>, offsets: Vec<u64> }        // times: Vec<f64> where they have fractions

A Vec is its length as a u64 and then its elements; a struct is its fields one after the other, with nothing between them.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .shards import Shard, TimeDType, contents_problem, offsets_problem

LENGTH_BYTES = 8


def shard_to_bincode(shard: Shard) -> bytes:
    """The struct's bytes."""
    vectors = (shard.tokens.astype("<u4"), shard.times.astype(shard.times.dtype.newbyteorder("<")), shard.offsets.astype("<u8"))
    return b"".join(part for vector in vectors for part in (vector.size.to_bytes(LENGTH_BYTES, "little"), vector.tobytes()))


def shard_from_bincode(path: Path, content: bytes, time_dtype: TimeDType) -> Shard:
    """The struct in these bytes, which come from the file `path`.

    Raises UserError if they hold anything else, or no sequences of tokens in order of time.
    """
    tokens, at = _vector(path, content, 0, "tokens", "uint32")
    times, at = _vector(path, content, at, "times", time_dtype)
    offsets, at = _vector(path, content, at, "offsets", "uint64")
    if at != len(content):
        raise UserError(f"{path}: {len(content) - at} bytes are left after the offsets at byte {at}, expected none")
    if times.size != tokens.size:
        raise UserError(f"{path}: {times.size} times for {tokens.size} tokens, expected one for each")
    if offsets.size < 2 or offsets.max() > tokens.size:  # so that they fit int64
        raise UserError(f"{path}: the {offsets.size} offsets do not go from 0 to {tokens.size}, the number of tokens")
    shard = Shard(tokens, times, offsets.astype(np.int64))
    if problem := offsets_problem(shard) or contents_problem(shard):
        raise UserError(f"{path}: {problem}")
    return shard


def _vector(path: Path, content: bytes, at: int, name: str, dtype: str) -> tuple[NDArray[Any], int]:
    """The Vec that starts at a byte, copied so that it is aligned, and where it ends."""
    kind, left = np.dtype(dtype), len(content) - at - LENGTH_BYTES
    if left < 0:
        raise UserError(f"{path}: the file ends at byte {len(content)}, expected the length of {name} at byte {at}")
    length = int.from_bytes(content[at : at + LENGTH_BYTES], "little")
    if length * kind.itemsize > left:  # before anything is allocated
        raise UserError(f"{path}: the length of {name} at byte {at} is {length} of {kind.itemsize} bytes, but {left} bytes are left")
    start = at + LENGTH_BYTES
    vector = np.frombuffer(content, kind.newbyteorder("<"), length, start).astype(kind)
    return vector, start + length * kind.itemsize
