"""Bincode: hand-written bytes, every shard comes back, every damaged length is refused before it is allocated."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, strategies as st

from ttr_fast.data.bincode import shard_from_bincode, shard_to_bincode
from ttr_fast.data.shards import Shard
from ttr_fast.errors import UserError

PATH = Path("x.bincode")
# Written by hand from the specification: tokens [1, 2, 2³² − 1], times [.5, 1.5, 2.5], offsets [0, 1, 3].
FLOATS = bytes.fromhex(
    "0300000000000000 01000000 02000000 ffffffff"
    "0300000000000000 000000000000e03f 000000000000f83f 0000000000000440"
    "0300000000000000 0000000000000000 0100000000000000 0300000000000000"
)
# tokens [258], times [−2], offsets [0, 1]
INTEGERS = bytes.fromhex("0100000000000000 02010000 0100000000000000 feffffffffffffff 0200000000000000 0000000000000000 0100000000000000")


def test_hand_written_bytes() -> None:
    floats = Shard(np.array([1, 2, 2**32 - 1], np.uint32), np.array([0.5, 1.5, 2.5]), np.array([0, 1, 3]))
    integers = Shard(np.array([258], np.uint32), np.array([-2]), np.array([0, 1]))
    assert shard_to_bincode(floats) == FLOATS
    assert shard_to_bincode(integers) == INTEGERS
    assert_equal(shard_from_bincode(PATH, FLOATS, "float64"), floats)
    assert_equal(shard_from_bincode(PATH, INTEGERS, "int64"), integers)


def assert_equal(one: Shard, other: Shard) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.booleans(), st.integers(0, 2**32 - 1))
def test_every_shard_comes_back(lengths: list[int], whole: bool, seed: int) -> None:
    n, rng = sum(lengths), np.random.default_rng(seed)
    times = np.sort(rng.integers(-(2**60), 2**60, n)) if whole else np.sort(rng.standard_normal(n))
    shard = Shard(rng.integers(0, 2**32, n).astype(np.uint32), times, np.concatenate([[0], np.cumsum(lengths)]))
    assert_equal(shard_from_bincode(PATH, shard_to_bincode(shard), "int64" if whole else "float64"), shard)


@pytest.mark.parametrize("size", range(len(FLOATS)))
def test_what_is_cut_short_is_refused(size: int) -> None:
    with pytest.raises(UserError, match="x.bincode: (the file ends at byte|the length of)"):
        shard_from_bincode(PATH, FLOATS[:size], "float64")


@pytest.mark.parametrize("at, name", [(0, "tokens"), (20, "times"), (52, "offsets")])
def test_a_length_beyond_the_file_is_refused_before_it_is_allocated(at: int, name: str) -> None:
    content = FLOATS[:at] + (2**63).to_bytes(8, "little") + FLOATS[at + 8 :]
    with pytest.raises(UserError, match=f"the length of {name} at byte {at} is 9223372036854775808"):
        shard_from_bincode(PATH, content, "float64")


def damaged(time_dtype: Literal["int64", "float64"], tokens: list[int], times: list[float], offsets: list[int], tail: bytes = b"") -> str:
    """What is said of it."""
    shard = Shard(np.array(tokens, np.uint32), np.array(times, time_dtype), np.array(offsets))
    with pytest.raises(UserError) as error:
        shard_from_bincode(PATH, shard_to_bincode(shard) + tail, time_dtype)
    return str(error.value)


def test_what_is_no_shard_is_refused() -> None:
    assert "1 bytes are left after the offsets at byte 84" in damaged("float64", [1, 2, 3], [1, 2, 3], [0, 1, 3], b"x")
    assert "2 times for 1 tokens" in damaged("int64", [1], [1, 2], [0, 1])
    assert "the 1 offsets do not go from 0 to 1" in damaged("int64", [1], [1], [0])
    assert "the 2 offsets do not go from 0 to 1" in damaged("int64", [1], [1], [0, -1])
    assert "the offsets go from 0 to 1, expected 0 to 2" in damaged("int64", [1, 2], [1, 2], [0, 1])
    assert "offset 2 is 1 after 1" in damaged("int64", [1, 2], [1, 2], [0, 1, 1, 2])
    assert "time 1 follows 2" in damaged("int64", [1, 2], [2, 1], [0, 2])
    assert "time 1 is nan" in damaged("float64", [1, 2], [1, float("nan")], [0, 2])
    damaged_only_within = Shard(np.array([1, 2], np.uint32), np.array([2, 1]), np.array([0, 1, 2]))
    assert_equal(shard_from_bincode(PATH, shard_to_bincode(damaged_only_within), "int64"), damaged_only_within)
