"""Timelines to check gradients on: UNIX seconds that repeat, rows of unequal length, packed documents, queries at the end of their keys."""

import numpy as np
from numpy import ndarray

from ttr_ref.config import TimeConfig
from ttr_ref.timeline import Timeline, timeline_from_cu_seqlens, timeline_from_lengths

START = 1_700_000_000
TIME = TimeConfig(origin=START, unit=3600.0, shortest=60.0, span=86_400.0, resolution=30.0)
GAPS = np.array([0, 1700, 900, 0, 0, 7300, 45, 2600, 11000, 0, 350])


def times(rows: int, places: int) -> ndarray:
    """int64 UNIX seconds that never fall; each row starts elsewhere among the gaps, some of which are 0."""
    gaps = GAPS[(np.arange(places) + 3 * np.arange(rows)[:, None]) % GAPS.size]
    return START + 5000 * np.arange(rows)[:, None] + np.cumsum(gaps, axis=1)


def padded(lengths: tuple[int, ...], places: int) -> Timeline:
    """One document a row, padding behind it; what stands there as a time is far off."""
    at = timeline_from_lengths(times(len(lengths), places), np.array(lengths), first_document=3)
    return at._replace(time=np.where(at.is_token, at.time, np.iinfo(np.int64).min))


def packed(cu_seqlens: tuple[int, ...], rows: int, places: int) -> Timeline:
    """Documents one after the other over the places of all rows."""
    return timeline_from_cu_seqlens(times(rows, places), np.array(cu_seqlens), first_document=3)


def queries_and_keys(lengths: tuple[int, ...], t_q: int, t_k: int) -> tuple[Timeline, Timeline]:
    """T_q queries at the end of each row's `lengths` keys. With more queries than keys the first stand before the first key and read nothing."""
    before, moment = max(t_q, t_k), times(len(lengths), 2 * max(t_q, t_k))
    shift = np.array(lengths) - t_q
    rows = np.arange(len(lengths))[:, None]
    at_q = timeline_from_lengths(moment[rows, before + shift[:, None] + np.arange(t_q)], np.full(len(lengths), t_q), shift)
    return at_q, timeline_from_lengths(moment[:, before : before + t_k], np.array(lengths))
