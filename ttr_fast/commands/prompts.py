"""The texts that a user wants continued, and when they are written."""

import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from ttr_fast.data.dates import dates
from ttr_fast.data.measures import TICK_SECONDS
from ttr_fast.data.preprocess.tokens import prefixes
from ttr_fast.data.sources.times import Clock, TimeUnit
from ttr_fast.errors import UserError, quoted


def prompts_of(given: Sequence[str], file: Path | None) -> list[str]:
    """Those of the command line, then those of the file, one a line. Raises UserError if there is none, one is empty, or the file is not text."""
    prompts = list(given)
    if "" in prompts:
        raise UserError("--prompt is empty, expected a text to continue")
    if any("\udc80" <= c <= "\udcff" for prompt in prompts for c in prompt):  # how Python hands over bytes that are not UTF-8
        raise UserError("--prompt is not UTF-8, expected a text to continue")
    if file is not None:
        try:
            content = file.read_text("utf-8")
        except FileNotFoundError:
            raise UserError(f"{file}: there is no such file, expected one with a prompt a line") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{file}: byte {error.start + 1} is not UTF-8, expected text with a prompt a line") from None
        lines = content.removesuffix("\n").split("\n") if content else []  # splitlines would cut at form feeds too
        if "" in lines:
            raise UserError(f"{file}:{lines.index('') + 1}: the line is empty, expected a text to continue")
        prompts += lines
    if not prompts:
        raise UserError("nothing to continue: give a text with --prompt, or a file with one a line with --prompt-file")
    return prompts


def prompt_time(at: str | None, unit: TimeUnit | None) -> int | float:
    """A UNIX time in any unit, or ISO 8601, in this unit; now if it is None. Raises UserError if it is neither, or the model knows no times."""
    if unit is None:
        if at is not None:
            raise UserError("this model was trained on texts without times, so there is no --at")
        return 0
    if at is None:
        return int(time.time() / TICK_SECONDS[unit])
    clock = Clock(None)
    try:
        found = Fraction(clock.time(at))
    except ValueError as error:
        raise UserError(f"--at: {error}") from None
    assert clock.unit is not None
    exact = found * round(1 / TICK_SECONDS[unit]) / round(1 / TICK_SECONDS[clock.unit])
    if not -(2**63) <= exact < 2**63:
        raise UserError(f"--at: time {quoted(at)} in {unit}, the unit of this model, is beyond int64")
    return int(exact) if exact.denominator == 1 else float(exact)


def date_prefix(time: int | float, unit: TimeUnit | None) -> str:
    """What ttr preprocess puts before a text of this time; nothing where texts have no times."""
    if unit is None:
        return ""
    (prefix,) = prefixes(dates(np.array([time]), TICK_SECONDS[unit]))
    return prefix
