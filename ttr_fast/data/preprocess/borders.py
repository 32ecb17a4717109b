"""Where the earliest share of all times ends, exactly, without holding them: four passes over what was spilled, one for each 16 bits."""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from ..sequences import Times

EachTime = Callable[[], Iterable[Times]]
Borders = tuple[int | float | None, int | float | None]
"""The times at which valid and test begin; None where everything is before."""
DIGIT = 16
SIGN = np.uint64(1 << 63)


def time_borders(each_time: EachTime, count: int, shares: tuple[float, float, float], float_times: bool) -> Borders:
    """Before the first lies the share of train of all `count` times, before the second that of train and valid; or fewer, where times are equal."""
    ranks = (int(count * share + 1e-9 * count) for share in (shares[0], shares[0] + shares[1]))  # 0.29 · 100 is 28.999…
    first, second = (None if rank >= count else _of_rank(each_time, rank, float_times) for rank in ranks)
    return first, second


def _of_rank(each_time: EachTime, rank: int, float_times: bool) -> int | float:
    """The time that has `rank` others before it."""
    leading = np.uint64(0)
    for shift in range(64 - DIGIT, -1, -DIGIT):
        counts = np.zeros(1 << DIGIT, np.int64)
        for times in each_time():
            keys = _keys(times, float_times)
            if shift + DIGIT < 64:
                keys = keys[keys >> np.uint64(shift + DIGIT) == leading]
            counts += np.bincount((keys >> np.uint64(shift)).astype(np.uint16), minlength=1 << DIGIT)
        ends = np.cumsum(counts)
        digit = int(np.searchsorted(ends, rank, side="right"))
        rank -= int(ends[digit - 1]) if digit else 0
        leading = leading << np.uint64(DIGIT) | np.uint64(digit)
    bits = np.array([leading ^ SIGN if leading & SIGN or not float_times else ~leading], np.uint64)
    return bits.view(np.float64 if float_times else np.int64)[0].item()


def _keys(times: Times, float_times: bool) -> NDArray[np.uint64]:
    """Unsigned integers in the same order."""
    bits = times.astype(np.float64 if float_times else np.int64).view(np.uint64)
    return np.where(bits & SIGN, ~bits, bits ^ SIGN) if float_times else bits ^ SIGN
