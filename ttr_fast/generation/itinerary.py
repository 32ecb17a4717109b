"""Events as a person reads them."""

from datetime import UTC, datetime

from ttr_fast.generation.sample import Event

HOUR, DAY = 3600.0, 86_400.0


def itinerary_line(event: Event, previous: int | float | None, vocabulary: tuple[str, ...], tick_seconds: float | None) -> str:
    """`Fri 2013-11-15 14:25 UTC  +  5 h 10 min  ORD`; plain numbers for times that are no calendar times."""
    gap = "" if previous is None else f"+ {gap_text(event.time - previous, tick_seconds)}"
    return f"{time_text(event.time, tick_seconds)}  {gap:>14}  {vocabulary[event.token]}"


def itinerary_lines(events: list[Event], previous: int | float | None, vocabulary: tuple[str, ...], tick_seconds: float | None) -> str:
    """One line each, with the gap to the one before."""
    lines = []
    for event in events:
        lines.append(f"  {itinerary_line(event, previous, vocabulary, tick_seconds)}\n")
        previous = event.time
    return "".join(lines)


def time_text(time: int | float, tick_seconds: float | None) -> str:
    """A date with hours and minutes, in UTC; the number itself where there is no such date."""
    if tick_seconds is None:
        return f"{time}"
    try:
        return f"{datetime.fromtimestamp(time * tick_seconds, UTC):%a %Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError, OSError):  # years beyond 9999, which a model may draw
        return f"{time}"


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
