"""How attention's kernels take queries, keys, values and times, chosen for a specification.

A factory returns a compiled function; what it returns for different storages has one signature, so that kernels are written once.
"""

from typing import Any, NamedTuple

import numpy as np

from ttr_fast.cpu import simd
from ttr_fast.cpu.attention_pairs import in_words, turn_pairs, words_have_no_number
from ttr_fast.cpu.attention_tiles import BLOCK, turned_tile
from ttr_fast.cpu.jit import inner
from ttr_fast.cpu.panels import PAIRS
from ttr_fast.cpu.rows import store_part
from ttr_fast.cpu.time_bias import SHIFTS
from ttr_ref.config import BiasKind


class Spec(NamedTuple):
    """What kernels are made for."""

    dtype: str
    """NumPy's name of the carrier (half.CARRIERS) of queries, keys, values and outputs."""
    kind: BiasKind
    terms: int
    drops: bool

    @property
    def compute(self) -> type[np.float32] | type[np.float64]:
        """The type of all arithmetic."""
        return np.float64 if self.dtype == "float64" else np.float32

    @property
    def lanes(self) -> int:
        """Numbers in a vector."""
        return 64 // np.dtype(self.compute).itemsize

    @property
    def pairs(self) -> bool:
        """Whether products are those of attention_pairs.py."""
        return PAIRS and self.dtype == "uint16"

    @property
    def held(self) -> int:
        """Numbers in an item of what is multiplied."""
        return 2 if self.pairs else 1


def taken_as_it_is(spec: Spec) -> Any:
    """How a kernel takes n rows of an array that lies in the type of arithmetic: (array, index)."""

    @inner(spec)
    def take(a, at, n, width, panel):
        return a, at

    return take


def taken_converted(spec: Spec) -> Any:
    """How a kernel takes n rows of an array in 16-bit storage: converted into the panel."""
    lanes = spec.lanes

    @inner(spec)
    def take(a, at, n, width, panel):
        for x in range(0, n * width, lanes):
            simd.store(simd.load(a, at + x), panel, x)
        return panel, 0

    return take


def taken_in_words(spec: Spec) -> Any:
    """How a kernel takes n rows of bf16 numbers that are multiplied in pairs."""

    @inner(spec)
    def take(a, at, n, width, panel):
        return in_words(a), at // 2

    return take


def taker(spec: Spec) -> Any:
    """How a kernel takes rows that are broadcast: (array, index)."""
    if spec.pairs:
        return taken_in_words(spec)
    return taken_as_it_is(spec) if spec.dtype == spec.compute.__name__ else taken_converted(spec)


def panel_viewer(spec: Spec) -> Any:
    """How a kernel sees scratch that holds packed rows."""
    if spec.pairs:
        return in_words

    @inner(spec)
    def as_it_is(a):
        return a

    return as_it_is


def panel_turner(spec: Spec) -> Any:
    """How a kernel packs rows for lanes: panel (width, BLOCK) = factor · n rows of an array of any storage, transposed, zeros behind them."""
    if spec.pairs:
        return turn_pairs
    f, lanes = spec.compute, spec.lanes

    @inner(spec)
    def turn_rows(a, at, width, factor, panel):
        for i in range(0, BLOCK, lanes):
            for d in range(0, width, lanes):
                turned_tile(a, at + i * width + d, width, factor, panel, d * BLOCK + i)

    @inner(spec)
    def turn_panel(a, at, n, width, factor, spare, panel):
        if n == BLOCK:
            turn_rows(a, at, width, factor, panel)
            return
        spare[: BLOCK * width] = f(0)
        for x in range(0, n * width, lanes):
            simd.store(simd.load(a, at + x), spare, x)
        turn_rows(spare, 0, width, factor, panel)

    return turn_panel


def difference_storer(spec: Spec) -> Any:
    """How a kernel stores y of eight differences of times, formed in float64: see time_bias.py."""
    shift = float(SHIFTS[spec.kind])

    @inner(spec)
    def store_differences(delta, rate, causal, y, at):
        size = simd.vmax(delta, simd.splat(0.0) if causal else simd.sub(simd.splat(0.0), delta))
        store_part(simd.add(simd.mul(size, simd.splat(rate)), simd.splat(shift)), y, at, 8)

    return store_differences


def keys_reader(spec: Spec) -> Any:
    """Which keys some query of a vector reads."""
    lanes = spec.lanes

    @inner(spec)
    def keys_read(lo, hi, column, n):
        """The first and one behind the last of n keys; the bounds grow with the query."""
        return max(lo[column], 0), min(hi[column + lanes - 1] + 1, n)

    return keys_read


def number_checker(spec: Spec) -> Any:
    """Whether some item of what is multiplied is infinite or none."""
    if spec.pairs:
        return words_have_no_number

    @inner(spec)
    def has_no_number(a, first, end):
        spoiled = False
        for i in range(first, end):
            spoiled |= not abs(a[i]) < np.inf
        return spoiled

    return has_no_number
