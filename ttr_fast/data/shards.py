"""One shard: a safetensors file of sequences that lie end to end, written by us and read where it lies, through one memory map.

    offsets   i64 (n + 1,)   from 0 to N; sequence i is the slice offsets[i]:offsets[i + 1] of the others
    times     i64 or f64 (N,)
    tokens    u32 (N,)

The file is 8 bytes with the length of a JSON header, the header, and the arrays; the header is padded so that they are aligned. Our bytes are those
that the library `safetensors` writes. Its own reader makes a copy of each slice, and np.memmap costs microseconds for each; a view costs neither.
"""

import hashlib
import mmap
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..durable import told, write_durably
from ..errors import UserError
from .sequences import Times

TimeDType = Literal["int64", "float64"]
Tokens = NDArray[np.uint32]

ALIGNMENT = 8
MOST_HEADER_BYTES = 4096
"""A header of three tensors is far shorter; a damaged length is not to be allocated."""
CODES = {"int64": "I64", "float64": "F64", "uint32": "U32"}


class ShardEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the index says of a shard; times are those of its earliest and latest token."""

    file: str
    sequences: int
    tokens: int
    first_time: int | float
    last_time: int | float
    largest_token: int
    bytes: int
    sha256: str


class Shard(NamedTuple):
    """The arrays of a shard, as views that cannot be written to."""

    tokens: Tokens
    times: Times
    offsets: NDArray[np.int64]


class _Tensor(msgspec.Struct, forbid_unknown_fields=True):
    """What a header says of a tensor."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def write_shard(path: Path, tokens: Tokens, times: Times, offsets: NDArray[np.int64]) -> ShardEntry:
    """Write the file, which is on the disk when this returns. There is at least one sequence and one token."""
    arrays = (offsets.astype("<i8", copy=False), times.astype(times.dtype.newbyteorder("<"), copy=False), tokens.astype("<u4", copy=False))
    contents: list[bytes | memoryview] = [_header(offsets.size - 1, tokens.size, str(times.dtype)), *map(_memory, arrays)]
    write_durably(path, *contents)
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    size = sum(map(len, contents))
    first, last = times.min().item(), times.max().item()
    return ShardEntry(path.name, offsets.size - 1, tokens.size, first, last, int(tokens.max()), size, digest.hexdigest())


def open_shard(path: Path, entry: ShardEntry, time_dtype: TimeDType) -> Shard:
    """The shard, checked against its entry as far as that needs its header and its offsets.

    Raises UserError if it is missing or not what the entry says.
    """
    content = _mapped(path, entry)
    view = memoryview(content)
    start = ALIGNMENT + int.from_bytes(view[:ALIGNMENT], "little")
    tensors = _tensors(path, bytes(view[ALIGNMENT : min(start, ALIGNMENT + MOST_HEADER_BYTES)]))
    expected = {"offsets": ("int64", entry.sequences + 1), "times": (time_dtype, entry.tokens), "tokens": ("uint32", entry.tokens)}
    arrays, end = dict[str, NDArray[Any]](), 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        dtype, length = expected[name]
        until = end + length * np.dtype(dtype).itemsize
        if (tensor.dtype, tensor.shape, tensor.data_offsets) != (CODES[dtype], [length], (end, until)) or start + until > entry.bytes:
            raise UserError(f"{path}: the header is damaged: {name} is not {length} of {CODES[dtype]} from byte {end}, as the index says")
        arrays[name] = np.frombuffer(content, np.dtype(dtype).newbyteorder("<"), length, start + end)
        end = until
    if start + end != entry.bytes:
        raise UserError(f"{path}: the header is damaged: its tensors end at byte {start + end}, expected {entry.bytes}")
    shard = Shard(arrays["tokens"], arrays["times"], arrays["offsets"])
    if problem := offsets_problem(shard):
        raise UserError(f"{path}: damaged: {problem}")
    return shard


def verify_shard(path: Path, entry: ShardEntry, time_dtype: TimeDType) -> None:
    """Read everything. Raises UserError if it cannot be read, a byte differs from what was written, or the contents are no sequences in time."""
    shard = open_shard(path, entry, time_dtype)
    with told(path, "read"), path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != entry.sha256:
        raise UserError(f"{path}: damaged: its SHA-256 is {digest[:16]}…, expected {entry.sha256[:16]}…")
    if problem := contents_problem(shard):
        raise UserError(f"{path}: {problem}")
    found = (shard.times.min().item(), shard.times.max().item(), int(shard.tokens.max()))
    if found != (entry.first_time, entry.last_time, entry.largest_token):
        raise UserError(f"{path}: earliest time, latest time and largest token are {found}, not those in the index")


def offsets_problem(shard: Shard) -> str | None:
    """What is wrong with the offsets; None if nothing is."""
    offsets, end = shard.offsets, shard.tokens.size
    if offsets[0] != 0 or offsets[-1] != end:
        return f"the offsets go from {offsets[0]} to {offsets[-1]}, expected 0 to {end}"
    descents = np.flatnonzero(offsets[1:] <= offsets[:-1])
    if descents.size:
        i = int(descents[0])
        return f"offset {i + 1} is {offsets[i + 1]} after {offsets[i]}, expected ascending ones"
    return None


def contents_problem(shard: Shard) -> str | None:
    """What is wrong with the times; None if nothing is."""
    times = shard.times
    infinite = np.flatnonzero(~np.isfinite(times))
    if infinite.size:
        return f"time {int(infinite[0])} is {times[infinite[0]]}, expected finite ones"
    back = times[1:] < times[:-1]
    back[shard.offsets[1:-1] - 1] = False  # from one sequence to the next
    if back.any():
        i = int(np.flatnonzero(back)[0])
        return f"time {times[i + 1]} follows {times[i]} in a sequence, expected times that never decrease"
    return None


def _header(sequences: int, tokens: int, time_dtype: str) -> bytes:
    """The length of the JSON and the JSON, as the library writes them."""
    tensors, end = dict[str, _Tensor](), 0
    for name, dtype, length in (("offsets", "int64", sequences + 1), ("times", time_dtype, tokens), ("tokens", "uint32", tokens)):
        begin, end = end, end + length * np.dtype(dtype).itemsize
        tensors[name] = _Tensor(CODES[dtype], [length], (begin, end))
    text = msgspec.json.encode(tensors)
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(ALIGNMENT, "little") + text


def _memory(array: NDArray[Any]) -> memoryview:
    """Its bytes, without a copy."""
    return np.ascontiguousarray(array).view(np.uint8).data


def _mapped(path: Path, entry: ShardEntry) -> mmap.mmap:
    """The file in memory, if its size is right."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry.bytes:
                raise UserError(f"{path}: damaged: {size} bytes, expected {entry.bytes}")
            if size < ALIGNMENT:
                raise UserError(f"{path}: damaged: {size} bytes hold no header")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing, expected {entry.bytes} bytes") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def _tensors(path: Path, header: bytes) -> dict[str, _Tensor]:
    """The three that a shard has."""
    try:
        tensors = msgspec.json.decode(header, type=dict[str, _Tensor])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: the header is damaged: {error}") from error
    if sorted(tensors) != ["offsets", "times", "tokens"]:
        raise UserError(f"{path}: the header is damaged: it names {', '.join(sorted(map(repr, tensors)))}, expected offsets, times, tokens")
    return tensors
