"""Events as a person reads them."""

from datetime import UTC, datetime

from ttr_fast.generation.sample import Event

HOUR, DAY = 3600.0, 86_400.0


def itinerary_line(event: Event, previous: int | float | None, vocabulary: tuple[str, ...], tick_seconds: float | None) -> str:
    """`Fri 2013-11-15 14:25 UTC  +  5 h 10 min  ORD`; plain numbers for times that are no calendar times."""
    gap = "" if previous is None else f"+ {gap_text(event.time - previous, tick_seconds)}"
    return f"{time_text(event.time, tick_seconds)}  {gap:>14}  {vocabulary[event.token]}"


def time_text(time: int | float, tick_seconds: float | None) -> str:
    """A date with hours and minutes, in UTC."""
    if tick_seconds is None:
        return f"{time}"
    return f"{datetime.fromtimestamp(time * tick_seconds, UTC):%a %Y-%m-%d %H:%M} UTC"


def gap_text(gap: int | float, tick_seconds: float | None) -> str:
    """The two largest units of a length of time."""
    if tick_seconds is None:
        return f"{gap:g}"
    seconds = gap * tick_seconds
    if seconds >= DAY:
        return f"{int(seconds // DAY)} d {int(seconds % DAY // HOUR):2} h"
    if seconds >= HOUR:
        return f"{int(seconds // HOUR)} h {int(seconds % HOUR // 60):2} min"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.3g} s"
