"""What the tests of kernels over rows share: arrays in each storage, the limit of one rounding to it, threads."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np
from numpy import ndarray

from ttr_fast.cpu.half import as_bits, as_storage
from ttr_ref.float_dtype import HALF_FORMATS, FloatDType

STORAGES = list(FloatDType)
EPS = {np.dtype(np.float32): float(np.finfo(np.float32).eps), np.dtype(np.float64): float(np.finfo(np.float64).eps)}


def stored(x: ndarray, dtype: FloatDType) -> ndarray:
    """x rounded to storage, as kernels take it."""
    return as_bits(np.ascontiguousarray(x).astype(dtype.storage))


def values(bits: ndarray) -> ndarray:
    """What an array of a kernel holds, in float64."""
    return as_storage(bits).astype(np.float64)


def empty(shape: tuple[int, ...], dtype: FloatDType) -> ndarray:
    """A buffer for a kernel, full of NaN, so that what is not written is seen."""
    return stored(np.full(shape, np.nan), dtype)


def eps_of(dtype: FloatDType) -> float:
    """Twice the unit roundoff of arithmetic."""
    return EPS[dtype.compute]


def limit(expected: ndarray, error: Any, dtype: FloatDType) -> ndarray:
    """`error` of arithmetic, then one rounding to storage: half its eps of the value, or half of its smallest number."""
    size = np.abs(expected) + error
    if dtype in HALF_FORMATS:
        precision, e_min, _ = HALF_FORMATS[dtype]
        return error + np.maximum(size * 2.0**-precision, 2.0 ** (e_min - precision))
    info = np.finfo(dtype.storage)
    return error + size * float(info.eps) / 2 + float(info.tiny)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """That many threads."""
    before = numba.get_num_threads()
    numba.set_num_threads(count)
    try:
        yield
    finally:
        numba.set_num_threads(before)


def assert_same_for_any_threads(run: Callable[[], tuple[ndarray, ...]]) -> tuple[ndarray, ...]:
    """The results, which have the same bits with one and with two threads."""
    with threads(1):
        one = run()
    with threads(min(2, numba.config.NUMBA_NUM_THREADS)):
        two = run()
    for a, b in zip(one, two, strict=True):
        assert a.tobytes() == b.tobytes()
    return two
