"""Where and when tokens stand: the two layouts, their errors, key sets and elapsed time."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tests.ref.bounds import same_bits
from tests.ref.cases import NOW, seeds
from ttr_ref.config import TimeConfig
from ttr_ref.timeline import PADDING, Timeline, elapsed, key_set, time_differences, timeline_from_cu_seqlens, timeline_from_lengths


def test_lengths():
    at = timeline_from_lengths(np.arange(8).reshape(2, 4), np.array([3, 0]), first_document=5)
    assert at.document.tolist() == [[5, 5, 5, PADDING], [PADDING] * 4]
    assert at.position[0].tolist() == [0, 1, 2, 3]
    assert at.is_token.tolist() == [[True, True, True, False], [False] * 4]
    assert at.time.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_cu_seqlens():
    """Positions start again in each document, an empty document takes no place but an index, the rest is padding."""
    at = timeline_from_cu_seqlens(np.zeros((2, 5)), np.array([0, 2, 2, 5, 8]), first_document=10)
    assert at.document.tolist() == [[10, 10, 12, 12, 12], [13, 13, 13, PADDING, PADDING]]
    assert at.position.tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 0, 0]]


@given(seed=seeds, lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_full_rows_are_the_same_either_way(seed, lengths):
    """One document a row that fills it: lengths and cu_seqlens give the same timeline."""
    places = max(lengths) + 1
    time = np.random.default_rng(seed).integers(0, 9, (len(lengths), places))
    by_lengths = timeline_from_lengths(time, np.full(len(lengths), places))
    assert same_bits(timeline_from_cu_seqlens(time, places * np.arange(len(lengths) + 1)), by_lengths)


def test_shift_aligns_queries_to_the_end_of_the_keys():
    """Two queries of five keys are the places 3 and 4, so the first does not see the last key; a shift may differ from row to row."""
    keys = timeline_from_lengths(np.zeros((2, 5)), np.array([5, 3]))
    queries = timeline_from_lengths(np.zeros((2, 2)), np.array([2, 2]), shift=np.array([3, 1]))
    read = key_set(queries, keys, True, None)
    assert read.astype(int).tolist() == [[[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]]
    packed = timeline_from_cu_seqlens(np.zeros((1, 4)), np.array([0, 2, 4]), shift=np.array([3, 1]))
    assert packed.position.tolist() == [[3, 4, 1, 2]]


@pytest.mark.parametrize("window, causal, row", [
    (None, True, [1, 1, 1, 1, 0, 0]), (1, True, [0, 0, 0, 1, 0, 0]), (2, True, [0, 0, 1, 1, 0, 0]), (9, True, [1, 1, 1, 1, 0, 0]),
    (None, False, [1, 1, 1, 1, 1, 1]), (2, False, [0, 0, 1, 1, 1, 1]),
])
def test_a_window_of_w_is_w_keys_with_the_current_one(window, causal, row):
    at = timeline_from_lengths(np.zeros((1, 6)), np.array([6]))
    assert key_set(at, at, causal, window)[0, 3].astype(int).tolist() == row


def test_padding_reads_nothing_and_is_not_read():
    at = timeline_from_lengths(np.zeros((1, 4)), np.array([2]))
    assert key_set(at, at, False, None)[0].astype(int).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0] * 4, [0] * 4]


def test_places_cut_out_a_rectangle():
    at = timeline_from_lengths(np.arange(12).reshape(3, 4), np.array([4, 2, 3]))
    cut = at.places(slice(1, 3), slice(0, 2))
    assert same_bits(cut, Timeline(at.document[1:3, :2], at.position[1:3, :2], at.time[1:3, :2]))


def test_elapsed_subtracts_before_it_rounds():
    """2⁶² + 1 and 2⁶² are one float64, but differ by one tick from an origin nearby."""
    at = timeline_from_lengths(np.array([[2**62, 2**62 + 1, 99]]), np.array([2]))
    assert elapsed(at, TimeConfig(origin=2**62, unit=0.5)).tolist() == [[0.0, 2.0, 0.0]]
    quarter = timeline_from_lengths(np.array([[NOW + 0.25, np.nan]]), np.array([1]))
    assert elapsed(quarter, TimeConfig(origin=NOW, unit=2.0)).tolist() == [[0.125, 0.0]]


def test_differences_are_zero_where_nothing_is_read():
    at = timeline_from_lengths(np.array([[5, 9, -7]]), np.array([2]))
    read = key_set(at, at, True, None)
    assert time_differences(at, at, read, True)[0].tolist() == [[0, 0, 0], [4, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.uint64, np.float16])
def test_types_that_cannot_hold_times(dtype):
    message = rf"timeline: times must be int64 or float64 \({np.dtype(dtype)} cannot tell seconds of UNIX time apart\)"
    with pytest.raises(TypeError, match=message):
        timeline_from_lengths(np.zeros((1, 2), dtype), np.array([2]))
    with pytest.raises(TypeError, match=message):
        timeline_from_cu_seqlens(np.zeros((1, 2), dtype), np.array([0, 2]))


@pytest.mark.parametrize("lengths", [[-1, 2], [0, 4]])
def test_lengths_that_do_not_fit(lengths):
    with pytest.raises(ValueError, match=rf"timeline: lengths must be in 0 … 3, got {lengths[0]} … {lengths[1]}"):
        timeline_from_lengths(np.zeros((2, 3)), np.array(lengths))


@pytest.mark.parametrize("cu_seqlens", [[1, 2], [0, 3, 2], [0, 7]])
def test_cu_seqlens_that_do_not_fit(cu_seqlens):
    with pytest.raises(ValueError, match="timeline: cu_seqlens must rise from 0 to at most 6, got"):
        timeline_from_cu_seqlens(np.zeros((2, 3)), np.array(cu_seqlens))


def test_a_document_across_two_rows():
    with pytest.raises(ValueError, match="timeline: document 1 crosses from one row of 3 places into the next"):
        timeline_from_cu_seqlens(np.zeros((2, 3)), np.array([0, 2, 4]))
