"""The ring on the GPU, and attention of one query against it, after every token."""

import ml_dtypes
import numpy as np
import pytest
from numpy import ndarray

from tests.cpu.storages import STORAGES, empty, stored, values
from tests.cuda.schedules import in_every_schedule
from tests.ref.bounds import attention_limits, share
from tests.ref.cases import BIASES, Problem, random_bias, rising_times
from ttr_fast.cuda.attention_decode import SLOTS, attention_decode, parts_of
from ttr_fast.cuda.kv_ring import KVRing, Past, kv_ring_append, kv_ring_next
from ttr_fast.cuda.time_bias import bias_table, described
from ttr_ref import kv_ring as ref
from ttr_ref.attention import attention_forward
from ttr_ref.config import TimeConfig
from ttr_ref.float_dtype import FloatDType
from ttr_ref.tree import tree_map

ROWS, HEADS, GROUPS, D = 2, 4, 2, 5
CASES = [*((kind, FloatDType.F32, "unix") for kind in BIASES), *(("log", dtype, "float") for dtype in STORAGES)]


@pytest.mark.parametrize("kind, dtype, times", CASES, ids=str)
@pytest.mark.parametrize("window, tokens, unseen", [(3, 5, 0), (SLOTS + 2, SLOTS + 4, SLOTS + 1)])
def test_equals_the_oracle_after_every_token(kind: str, dtype: FloatDType, times: str, window: int, tokens: int, unseen: int) -> None:
    """A ring that goes round twice, and one in two parts, while the second is empty, while it fills and when it is full; it held NaN before.

    A part of the sum is rescaled once more than in the bound, by a rounding that its 3 for each key have room for.
    """
    rng = np.random.default_rng(0)
    time = rising_times(rng, ROWS, tokens, times)
    config = TimeConfig(shortest=60.0)
    stored_bias = tree_map(lambda a: a.astype(dtype.compute), random_bias(kind, HEADS, rng))
    bias = tree_map(lambda a: a.astype(np.float64), stored_bias)
    ring = KVRing(*(empty((ROWS, GROUPS, window, D), dtype) for _ in range(2)))
    past = Past(np.zeros((ROWS, window), time.dtype), np.zeros(ROWS, np.int64))
    oracle = ref.kv_ring_empty(ROWS, GROUPS, window, D, dtype, time.dtype.type)
    held = 0.0 if dtype.storage == dtype.compute else float(ml_dtypes.finfo(dtype.storage).eps)
    for n in range(tokens):
        q = stored(rng.standard_normal((ROWS, HEADS, 1, D)), dtype)
        k, v = (stored(rng.standard_normal((ROWS, GROUPS, 1, D)), dtype) for _ in range(2))
        position, at_q = np.full(ROWS, -1), ref.kv_ring_next(oracle, time[:, n])
        oracle = ref.kv_ring_append(oracle, values(k)[:, :, 0], values(v)[:, :, 0], time[:, n], dtype)
        kv_ring_next(np.ascontiguousarray(time[:, n]), past, position)
        kv_ring_append(k, v, position, ring)
        assert position.tolist() == [n] * ROWS
        assert past.seen.tolist() == oracle.seen.tolist()
        np.testing.assert_array_equal(past.time, oracle.time)
        if 0 < n < unseen:
            continue
        slots = min(n + 1, window)
        for mine, its in ((ring.k, oracle.k), (ring.v, oracle.v)):
            np.testing.assert_array_equal(values(mine)[:, :, :slots], its[:, :, :slots].astype(np.float64))

        def run(q: ndarray = q, position: ndarray = position) -> tuple[ndarray, ndarray]:
            o, lse = empty(q.shape, dtype), np.full((ROWS, HEADS, 1), np.nan, dtype.compute)
            tops, totals = np.full((2, ROWS, HEADS, parts_of(window)), np.nan, dtype.compute)
            parameters = np.full((HEADS, described(bias, config)[-1]), np.nan, dtype.compute)
            table = bias_table(stored_bias, config, np.full(HEADS, np.nan, dtype.compute), parameters)
            attention_decode(q, ring, past, position, table, o, lse, tops, totals, np.full((*tops.shape, D), np.nan, dtype.compute))
            return o, lse

        o, lse = in_every_schedule(run)
        oracle_k, oracle_v = (a.astype(np.float64) for a in (oracle.k, oracle.v))
        p = Problem(values(q), oracle_k, oracle_v, at_q, ref.kv_ring_timeline(oracle), bias, config, True, window, None, values(q), None)
        expected_o, expected_lse, cache = attention_forward(*p.arguments)
        limits = attention_limits(p, cache, float(np.finfo(dtype.compute).eps), False, held)
        smallest = 0.0 if held == 0 else float(ml_dtypes.finfo(dtype.storage).smallest_subnormal)
        assert share(values(o), expected_o, 2 * limits.o + smallest) <= 1
        assert share(lse, expected_lse, 2 * limits.lse) <= 1
