"""Conversions between float32 and 16-bit storage: every pattern of bits, and every halfway case."""

import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from numba import prange
from numpy import ndarray

from ttr_fast.cpu import simd
from ttr_fast.cpu.half import as_bits, as_storage
from ttr_fast.cpu.jit import kernel

ALL = np.arange(2**16, dtype=np.uint16)
STORAGES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]


@kernel(parallel=True)
def convert(source: ndarray, target: ndarray) -> None:
    """Items of one storage to another, a multiple of 16 of them."""
    for i in prange(source.size // 16):
        simd.store(simd.load(source, 16 * i), target, 16 * i)


def awkward(storage: np.dtype) -> ndarray:
    """Every value of the storage, its neighbours in float32, and the halfway points between values with theirs."""
    with np.errstate(all="ignore"):
        values = ALL.view(storage).astype(np.float32)
        halfway = ((values.astype(np.float64) + np.roll(values, -1)) / 2).astype(np.float32)
        near = [np.nextafter(x, np.float32(side)) for x in (values, halfway) for side in (np.inf, -np.inf)]
    random = np.random.default_rng(0).integers(0, 2**32, 2**20, dtype=np.uint32).view(np.float32)
    return np.concatenate([values, halfway, *near, random])


def check(storage: np.dtype) -> None:
    up = np.empty(ALL.size, np.float32)
    convert(as_bits(ALL.view(storage)), up)
    np.testing.assert_array_equal(up, ALL.view(storage).astype(np.float32))
    np.testing.assert_array_equal(np.signbit(up), ALL >= 2**15)

    x = awkward(storage)
    down = np.empty(x.size, storage)
    convert(x, as_bits(down))
    with np.errstate(all="ignore"):
        expected = x.astype(storage)
    number = ~np.isnan(x)
    np.testing.assert_array_equal(down.view(np.uint16)[number], expected.view(np.uint16)[number])
    assert np.isnan(down[~number].astype(np.float32)).all()


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_every_pattern_of_bits(storage: np.dtype) -> None:
    check(storage)


@pytest.mark.parametrize("cpu", ["x86-64-v2", "haswell"])
def test_other_cpus(cpu: str) -> None:
    """Without F16C the integer path serves. In a process of its own, since an instruction that is not there would end it."""
    if not sys.platform.startswith("linux") or os.uname().machine != "x86_64":
        cpu = "generic"
    code = f"import numpy; from tests.cpu.test_half import *; [check(s) for s in STORAGES]; print('{cpu} agrees')"
    environment = os.environ | {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == f"{cpu} agrees\n", done.stderr


def test_storage_travels_as_bits_and_back() -> None:
    for storage in [*STORAGES, np.dtype(np.float32), np.dtype(np.float64)]:
        stored = np.arange(6, dtype=np.float32).astype(storage).reshape(2, 3)
        assert as_storage(as_bits(stored)).dtype == storage
        assert np.shares_memory(as_bits(stored), stored)
    with pytest.raises(TypeError, match="storage must be float64, float32, float16 or bfloat16, got int32"):
        as_bits(np.zeros(3, np.int32))
    with pytest.raises(TypeError, match="no storage is carried by int32"):
        as_storage(np.zeros(3, np.int32))
