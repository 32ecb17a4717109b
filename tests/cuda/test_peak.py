"""The chains of multiply-adds whose speed is the peak that benchmarks compare with."""

import numpy as np
import pytest

from ttr_fast.cuda.jit import SIMULATED
from ttr_fast.cuda.peak import CHAINS, STEPS, THREADS, multiply_adds, operations
from ttr_fast.cuda.workspace import on_device, on_host


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_operation_is_made(dtype: type) -> None:
    """Small whole numbers, so every sum is exact: none is left out, none made twice, and each thread has its own."""
    threads = 2 * THREADS if not SIMULATED else 2 * 32
    start, repeats = np.arange(threads, dtype=dtype), 2
    out = on_device(start.copy())
    multiply_adds[2, threads // 2](out, dtype(1), dtype(3), repeats)
    chains = start[:, None] + np.arange(CHAINS) + 3 * STEPS * repeats
    np.testing.assert_array_equal(on_host(out), chains.sum(1))
    assert operations(threads, repeats) == 2 * chains.size * STEPS * repeats
