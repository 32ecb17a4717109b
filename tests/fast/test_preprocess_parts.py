"""The pieces of `ttr preprocess`: borders in time, hashes of names, cutting."""


import numpy as np
from hypothesis import given, strategies as st

from ttr_fast.data.preprocess.borders import time_borders
from ttr_fast.data.preprocess.hashing import Seen, name_hashes, partition_of
from ttr_fast.data.preprocess.segments import new_sequences, pieces


@given(
    times=st.lists(st.one_of(st.integers(-(2**62), 2**62), st.integers(-3, 3)), min_size=1, max_size=30),
    shares=st.tuples(*[st.integers(0, 10)] * 3).filter(sum),
    whole=st.booleans(),
)
def test_time_borders_are_order_statistics(times: list[int], shares: tuple[int, int, int], whole: bool) -> None:
    values = np.array(times, np.int64 if whole else np.float64)
    total = sum(shares)
    found = time_borders(lambda: np.array_split(values, 3), values.size, (shares[0] / total, shares[1] / total, shares[2] / total), not whole)
    for border, share in zip(found, (shares[0], shares[0] + shares[1]), strict=True):
        rank = values.size * share // total
        assert border == (None if rank == values.size else np.sort(values)[rank])


@given(first=st.integers(0, 100), second=st.integers(0, 100))
def test_a_share_in_hundredths_of_a_hundred_is_exact(first: int, second: int) -> None:
    """Though 0.29 · 100 and (0.7 + 0.2) · 100 are less than 29 and 90 in float64."""
    second = min(second, 100 - first)
    found = time_borders(lambda: [np.arange(100)], 100, (first / 100, second / 100, (100 - first - second) / 100), float_times=False)
    assert found == tuple(None if rank == 100 else rank for rank in (first, first + second))


def plain_hash(name: str) -> int:
    """As hashing.py says, in Python's integers."""
    content, most = name.encode(), 2**64

    def mixed(z: int) -> int:
        z = (z + 0x9E3779B97F4A7C15) % most
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % most
        z = (z ^ z >> 27) * 0x94D049BB133111EB % most
        return z ^ z >> 31

    state = mixed(len(content))
    for at in range(0, len(content), 8):
        state = mixed(state ^ int.from_bytes(content[at : at + 8], "little"))
    return state


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=10))
def test_hashes_of_names_depend_on_their_bytes_alone(names: list[str]) -> None:
    assert name_hashes(names).tolist() == [plain_hash(name) for name in names]
    assert partition_of(name_hashes(names), 8).tolist() == [plain_hash(name) >> 61 for name in names]


@given(st.lists(st.lists(st.integers(0, 15), max_size=10), max_size=5))
def test_a_name_is_new_when_it_comes_up_first(chunks: list[list[int]]) -> None:
    """With slots for all, exactly then; with few, it may be new again, but is never missed."""
    roomy, tight, before = Seen(16), Seen(3), set[int]()
    for chunk in chunks:
        hashes = np.array(chunk, np.uint64)
        new = roomy.new(hashes).tolist()
        assert sorted(chunk[i] for i in new) == sorted(set(chunk) - before)
        again = [chunk[i] for i in tight.new(hashes).tolist()]
        assert len(set(again)) == len(again)
        assert set(again) >= set(chunk) - before
        before |= set(chunk)


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    begins=st.lists(st.booleans(), min_size=8, max_size=8),
    length=st.one_of(st.none(), st.integers(1, 9)),
    overlap=st.integers(0, 8),
)
def test_pieces_lose_nothing_and_overlap_exactly(lengths: list[int], begins: list[bool], length: int | None, overlap: int) -> None:
    """Records of several tokens; where a record begins a sequence, and where pieces are cut again."""
    if length is not None:
        overlap = min(overlap, length - 1)
    bounds = np.cumsum([0, *lengths])
    starting = np.array([True, *begins[1 : len(lengths)]])
    found = pieces(bounds, starting, length, overlap)
    ends = [*bounds[:-1][starting][1:].tolist(), bounds[-1]]
    expected = []
    for a, b in zip(bounds[:-1][starting].tolist(), ends, strict=True):
        while length is not None and b - a > length:
            expected.append((a, a + length))
            a += length - overlap
        expected.append((a, b))
    assert list(zip(found.starts.tolist(), found.stops.tolist(), strict=True)) == expected
    assert all(bounds[r] <= start < bounds[r + 1] for r, start in zip(found.records.tolist(), found.starts.tolist(), strict=True))


def test_gaps_cut_where_they_are_longer() -> None:
    times = np.array([0, 10, 21, 31, 5])
    entities, sides = np.array([0, 0, 0, 0, 1]), np.zeros(5, np.int8)
    assert new_sequences(entities, times, sides, by_document=False, gap=10.0).tolist() == [True, False, True, False, True]
    assert new_sequences(entities, times / 2, sides, by_document=False, gap=5.0).tolist() == [True, False, True, False, True]
    far = np.array([0, 2**53 + 1])
    assert new_sequences(np.zeros(2, int), far, np.zeros(2, np.int8), False, 2.0**53).tolist() == [True, True]
