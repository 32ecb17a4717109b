"""Times as dates."""

import numpy as np

from .sequences import Times


def dates(times: Times, tick_seconds: float) -> list[str]:
    """Each time as `2023-11-14T22:13:20Z`, without the fraction of its second; years may have a sign or more than four digits."""
    ticks = round(1 / tick_seconds)
    seconds = np.floor(times / ticks) if times.dtype == np.float64 else times // ticks
    return [f"{text}Z" for text in np.datetime_as_string(seconds.astype("datetime64[s]")).tolist()]
