"""The text of one time → a number, exact or refused.

An integer stays an integer and a decimal becomes float64: at 1.7e9 seconds float32 is 128 seconds coarse. The unit is
stated by the user, and a value that can hardly be a date in that unit is refused, because seconds taken for
milliseconds spoil a model without any other sign.
"""

import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

from ...errors import quoted

TimeUnit = Literal["s", "ms", "us", "ns", "iso8601"]

EXPECTED = {
    "s": "UNIX seconds such as 1700000000 or 1700000000.5",
    "ms": "UNIX milliseconds such as 1700000000000 or 1700000000000.5",
    "iso8601": "ISO 8601 with a zone such as 2023-11-14T22:13:20Z",
}
# below each limit a number can be this unit and no finer one: 1e11 s is the year 5138, 1e11 ms is 1973
UNITS_BELOW = ((1e11, "seconds"), (1e14, "milliseconds"), (1e17, "microseconds"), (1e20, "nanoseconds"))
LIMIT = {"s": 1e11, "ms": 1e14}
# as seconds 1985 to 2128, as milliseconds 6 January to 27 February 1970
SECONDS_OF_OUR_TIME = (5e8, 5e9)

INTEGER = re.compile(r"[+-]?[0-9]{1,99}")  # int() may refuse thousands of digits
DECIMAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def time_parser(unit: TimeUnit) -> Callable[[str], int | float]:
    """The function from text to a time: int if the text is whole, float if it has a fraction or an exponent.

    "s" and "ms" keep their unit; "iso8601" gives UNIX seconds, with a fraction kept to the microsecond. The function
    raises ValueError, whose text says what the time looks like and what was expected.
    """
    if unit == "iso8601":
        return _parse_iso8601
    if unit in LIMIT:
        return lambda text: _parse_unix(text, unit)
    raise ValueError(f"time_parser: unit is {unit!r}, expected 's', 'ms' or 'iso8601'")


def unit_complaint(low: float, high: float, unit: TimeUnit) -> str | None:
    """What is wrong if all times of a file lie in [low, high]; None if that can be so."""
    first, end = SECONDS_OF_OUR_TIME
    if unit == "ms" and first <= low and high < end:
        return f"times from {low} to {high} look like seconds, expected {EXPECTED['ms']}"
    return None


def _parse_unix(text: str, unit: Literal["s", "ms"]) -> int | float:
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
    looks_like = next((name for limit, name in UNITS_BELOW if abs(value) < limit), None)
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
