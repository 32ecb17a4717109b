"""Times as they stand in a file → numbers, exact or refused.

An integer stays an integer and a decimal becomes float64: at 1.7e9 seconds float32 is 128 seconds coarse. The unit is stated, or inferred from
the first time, and a value that can hardly be a date in that unit is refused: seconds taken for milliseconds spoil a model without any other sign.
"""

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import quoted
from ..sequences import Times

TimeUnit = Literal["s", "ms", "us", "ns", "iso8601"]

EXPECTED = {
    "s": "UNIX seconds such as 1700000000 or 1700000000.5",
    "ms": "UNIX milliseconds such as 1700000000000 or 1700000000000.5",
    "us": "UNIX microseconds such as 1700000000000000",
    "ns": "UNIX nanoseconds such as 1700000000000000000",
    "iso8601": "ISO 8601 with a zone such as 2023-11-14T22:13:20Z",
}
EXPECTED_ANY = "a UNIX time such as 1700000000, or ISO 8601 with a zone such as 2023-11-14T22:13:20Z"
NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
# below each limit a number can be this unit and no finer one: 1e11 s is the year 5138, 1e11 ms is 1973
LIMIT = {"s": 10**11, "ms": 10**14, "us": 10**17, "ns": 2**63}
TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
# 1985 to 2128 as seconds; as milliseconds it is 6 January to 27 February 1970
OUR_TIME = (5 * 10**8, 5 * 10**9)

INTEGER = re.compile(r"[+-]?[0-9]{1,99}")  # int() may refuse thousands of digits
DECIMAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock:
    """The times of one file, in the order of the file.

    unit is None until it is inferred: by the first time that is a number or a date, from nothing but its own magnitude. If the first good time is of
    our days in that unit (1985 to 2128), later ones that are of our days in a coarser unit are refused; a clock that starts near 0 may pass there.
    """

    def __init__(self, unit: TimeUnit | None) -> None:
        if unit is not None and unit not in EXPECTED:
            raise ValueError(f"Clock: unit is {unit!r}, expected one of {', '.join(map(repr, EXPECTED))}")
        self.unit: TimeUnit | None = unit
        self.of_our_days: bool | None = None

    def column(self, values: Sequence[Any]) -> tuple[Times, dict[int, str]]:
        """int, float or str of each record → (n,) times, and what is wrong with those that are bad (0 stands in their places).

        int64 if each good one is whole as written, otherwise float64; ISO 8601 gives UNIX seconds, with a fraction kept to the microsecond.
        """
        if self.unit is not None and self.of_our_days is not None:
            times = _all_numbers(values)
            if times is not None and self._plausible(times):
                return times, {}
        found: list[int | float] = []
        bad: dict[int, str] = {}
        for i, value in enumerate(values):
            try:
                found.append(self.time(value))
            except ValueError as error:
                found.append(0)
                bad[i] = str(error)
        return (np.array(found, np.float64) if float in set(map(type, found)) else np.array(found, np.int64)), bad

    def time(self, value: Any) -> int | float:
        """One time. Raises ValueError, whose text says what came and what was expected."""
        text = str(value)
        if value is None or value == "":
            raise ValueError(f"the time is {'null' if value is None else 'empty'}, expected {self.expected}")
        unit = self.unit or _unit_of(text)
        if unit == "iso8601":
            time = _parse_iso8601(text)
            self.of_our_days = True
        else:
            time = _parse_unix(text, unit)
            of_our_days = _looks_like(time)
            if self.of_our_days is not False and of_our_days is not None and TICKS[of_our_days] < TICKS[unit]:
                raise _refused(text, f"looks like {NAMES[of_our_days]}", unit)
            if self.of_our_days is None:
                self.of_our_days = of_our_days == unit
        self.unit = unit
        return time

    def text(self, time: int | float) -> str:
        """A time as it is shown in a message."""
        if self.unit == "iso8601":
            return (EPOCH + timedelta(seconds=time)).isoformat()
        return str(int(time) if time == int(time) else time)

    @property
    def expected(self) -> str:
        """Times of which kind."""
        return EXPECTED[self.unit] if self.unit else EXPECTED_ANY

    def _plausible(self, times: Times) -> bool:
        """Whether it is clear at a glance that all are good."""
        if self.unit is None or self.unit == "iso8601" or times.size == 0:
            return False
        low, high = times.min().item(), times.max().item()
        if not -LIMIT[self.unit] < low <= high < LIMIT[self.unit]:  # so NaN is none
            return False
        return not self.of_our_days or self.unit == "s" or low >= OUR_TIME[1] * TICKS[self.unit] // 1000


def _all_numbers(values: Sequence[Any]) -> Times | None:
    """The numbers, if it is clear at a glance that all values are some."""
    kinds = set(map(type, values))
    try:
        if kinds == {str}:
            joined = "".join(values)
            return _integers(list(map(int, values))) if joined.isascii() and joined.isdigit() and all(values) else None
        if kinds == {int}:
            return _integers(values)
        if kinds == {float} or kinds == {int, float}:
            return np.array(values, np.float64)
    except (OverflowError, ValueError):  # beyond int64, beyond float64, or thousands of digits
        pass
    return None


def _integers(values: Sequence[int]) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def _unit_of(text: str) -> TimeUnit:
    if INTEGER.fullmatch(text) or DECIMAL.fullmatch(text):
        size = abs(float(text))
        unit: TimeUnit
        for unit in ("s", "ms", "us"):
            if size < LIMIT[unit]:
                return unit
        return "ns"
    if DATE.match(text) or re.match("[0-9]{8}T", text):
        return "iso8601"
    problem = "is not finite" if NOT_FINITE.fullmatch(text) else "is neither a number nor a date"
    raise ValueError(f"time {quoted(text)} {problem}, expected {EXPECTED_ANY}")


def _looks_like(time: int | float) -> TimeUnit | None:
    """The unit in which this is a time of our days; None if there is none."""
    unit: TimeUnit
    for unit in ("s", "ms", "us", "ns"):
        if OUR_TIME[0] * TICKS[unit] <= time < OUR_TIME[1] * TICKS[unit]:
            return unit
    return None


def _parse_unix(text: str, unit: TimeUnit) -> int | float:
    value: int | float
    if INTEGER.fullmatch(text):
        value = int(text)
    elif DECIMAL.fullmatch(text):
        value = float(text)
    elif NOT_FINITE.fullmatch(text):
        raise _refused(text, "is not finite", unit)
    else:
        raise _refused(text, "looks like a date" if DATE.match(text) else "is not a number", unit)
    if abs(value) >= LIMIT[unit]:
        raise _refused(text, _too_large(text, value), unit)
    return value


def _too_large(text: str, value: int | float) -> str:
    if text.lstrip("+-").isdigit() and not -(2**63) <= value < 2**63:
        return "is beyond int64"
    if math.isinf(value):
        return "is not finite"
    looks_like = next((NAMES[unit] for unit, limit in LIMIT.items() if abs(value) < limit or abs(value) == limit == 2**63), None)
    return f"looks like {looks_like}" if looks_like else "is too large for a time"


def _parse_iso8601(text: str) -> int | float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        if DECIMAL.fullmatch(text):
            problem = "looks like a number"
        else:
            problem = "is not a valid date" if DATE.match(text) else "is not a date"
        raise _refused(text, problem, "iso8601") from None
    if moment.tzinfo is None:
        raise _refused(text, "has no zone", "iso8601")
    since = moment - EPOCH
    return since.total_seconds() if "." in text or "," in text else since.days * 86400 + since.seconds


def _refused(text: str, problem: str, unit: TimeUnit) -> ValueError:
    return ValueError(f"time {quoted(text)} {problem}, expected {EXPECTED[unit]}")
