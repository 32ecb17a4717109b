"""Attention on the GPU against the oracle."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from numpy import ndarray

from tests.cpu.storages import empty, stored, values
from tests.cuda.schedules import in_any_schedule, in_every_schedule
from tests.ref.bounds import AttentionLimits, attention_limits, share, worst_share
from tests.ref.cases import BIASES, Problem, packed, problems, random_bias, seeds
from ttr_fast.cuda import attention as gpu
from ttr_fast.cuda.attention_fragments import TILE
from ttr_fast.cuda.attention_plan import plan_attention
from ttr_fast.cuda.dropout import sites_of
from ttr_fast.cuda.time_bias import BiasTable, bias_gradient, bias_table, described, sums_of
from ttr_ref import attention as ref
from ttr_ref.config import TimeConfig
from ttr_ref.dropout import ATTENTION, Dropout, DropoutKey
from ttr_ref.float_dtype import FloatDType
from ttr_ref.time_bias import NoBias, TableBias, TimeBias
from ttr_ref.timeline import Timeline, timeline_from_lengths
from ttr_ref.tree import leaves_of, tree_map

NARROW, TENSOR = (2, 4, 6), (16, 48)
VARIANTS = [
    *((kind, "f64", True, NARROW) for kind in BIASES), *((kind, "f32", False, NARROW) for kind in BIASES),
    ("log", "f32", True, NARROW), ("log", "f16", False, NARROW), ("log", "bf16", False, NARROW), ("exp", "bf16", True, NARROW),
    ("none", "bf16", False, TENSOR), ("linear", "f16", False, TENSOR), ("log", "bf16", True, TENSOR), ("exp", "f16", True, TENSOR),
    ("table", "bf16", False, TENSOR),
]  # fmt: skip
"""Kind of bias, storage, dropout, widths of heads: those of 16 bits and 16, 32, … features are multiplied on tensor cores."""
IDS = [f"{kind}-{name}-{drops}{'-tensor' * (widths == TENSOR)}" for kind, name, drops, widths in VARIANTS]


def rounded_to(p: Problem, dtype: FloatDType) -> Problem:
    """The problem as storage holds it, in float64: what the oracle is given."""
    q, k, v, do = (values(stored(a, dtype)) for a in (p.q, p.k, p.v, p.do))
    dlse = None if p.dlse is None else p.dlse.astype(dtype.compute).astype(np.float64)
    bias = tree_map(lambda a: a.astype(dtype.compute).astype(np.float64), p.bias)
    return p._replace(q=q, k=k, v=v, do=do, dlse=dlse, bias=bias)


def table_of(bias: TimeBias, time: TimeConfig, heads: int, compute: np.dtype) -> BiasTable:
    """In buffers of its own."""
    return bias_table(bias, time, np.full(heads, np.nan, compute), np.full((heads, described(bias, time)[-1]), np.nan, compute))


def run(p: Problem, dtype: FloatDType) -> tuple[ndarray, ndarray, ndarray, ndarray, ndarray, TimeBias]:
    """O, LSE, dq, dk, dv, dbias."""
    q, k, v, do = (stored(a, dtype) for a in (p.q, p.k, p.v, p.do))
    plan = plan_attention(p.at_q, p.at_k, p.causal, p.window, gpu.kernels_for(q.dtype, q.shape[3]).tile)
    bias = tree_map(lambda a: a.astype(dtype.compute), p.bias)
    task = gpu.AttentionTask(plan, table_of(bias, p.time, q.shape[1], dtype.compute), sites_of([p.drop], dtype.compute))
    o, lse = empty(q.shape, dtype), np.full(q.shape[:3], np.nan, dtype.compute)
    gpu.attention_forward(q, k, v, task, o, lse)
    dq, dk, dv = (np.full(a.shape, np.nan, dtype.compute) for a in (q, k, v))
    dlse = np.zeros_like(lse) if p.dlse is None else p.dlse.astype(dtype.compute)
    sums = np.full((q.shape[1], sums_of(task.bias)), np.nan)
    partial = np.full((q.shape[0], gpu.backward_parts(q), *sums.shape), np.nan)
    gpu.attention_backward(do, dlse, q, k, v, o, lse, task, dq, dk, dv, sums, np.full_like(lse, np.nan), partial)
    dbias = tree_map(lambda a: np.full_like(a, np.nan), bias)
    bias_gradient(bias, task.bias, sums, dbias)
    return o, lse, dq, dk, dv, dbias


def flat(results: tuple) -> tuple[ndarray, ...]:
    return *results[:5], *leaves_of(results[5])


def limits_of(p: Problem, cache: ref.AttentionCache, dtype: FloatDType) -> AttentionLimits:
    """tests/ref/bounds.py, for storage and kernels.

    On tensor cores weights and the gradients of scores are rounded to storage before they are multiplied, where f16 loses what is below half of its
    smallest number; and a sum may be cut and not rounded, so that each of its terms is off by eps and not by half of it.
    """
    compute = np.finfo(dtype.compute)
    eps, tiny = float(compute.eps), float(compute.tiny)
    if dtype.storage == dtype.compute:
        return attention_limits(p, cache, eps, flushed=tiny)
    storage = ml_dtypes.finfo(dtype.storage)
    held, smallest = float(storage.eps), float(storage.smallest_subnormal)
    if on_tensor_cores(p, dtype):
        return attention_limits(p, cache, 2 * eps, stored=held, flushed=max(tiny, smallest / 2), factors=held)
    return attention_limits(p, cache, eps, stored=held, flushed=tiny)


def on_tensor_cores(p: Problem, dtype: FloatDType) -> bool:
    return gpu.kernels_for(stored(p.q, dtype).dtype, p.q.shape[3]).tile == TILE


def check(p: Problem, dtype: FloatDType, results: tuple) -> None:
    """Against the oracle, within the bounds of tests/ref/bounds.py."""
    o, lse, *gradients = results
    expected_o, expected_lse, cache = ref.attention_forward(*p.arguments)
    limits = limits_of(p, cache, dtype)
    smallest = 0.0 if dtype.storage == dtype.compute else float(ml_dtypes.finfo(dtype.storage).smallest_subnormal)
    assert share(values(o), expected_o, 2 * limits.o + smallest) <= 1
    assert share(lse, expected_lse, 2 * limits.lse) <= 1
    expected = ref.attention_backward(p.do, p.dlse, cache)
    assert worst_share(tuple(gradients), expected, (limits.dq, limits.dk, limits.dv, limits.dbias)) <= 1


@pytest.mark.parametrize("kind, name, drops, widths", VARIANTS, ids=IDS)
@settings(max_examples=4, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_equals_the_oracle(kind: str, name: str, drops: bool, widths: tuple[int, ...], data: st.DataObject) -> None:
    """Packed, padded and aligned to the end, every bias, windows, grouped heads; O, LSE and all gradients."""
    dtype = FloatDType(name)
    p = rounded_to(data.draw(problems((kind,), dropout=False, widths=widths)), dtype)
    if drops:
        p = p._replace(drop=Dropout(data.draw(st.sampled_from([0.1, 0.5])), DropoutKey(data.draw(seeds), data.draw(seeds)), 8 * 3 + ATTENTION))
    with in_any_schedule(data):
        results = run(p, dtype)
    assert on_tensor_cores(p, dtype) == (widths == TENSOR)
    check(p, dtype, results)


def check_in_every_schedule(p: Problem, dtype: FloatDType) -> None:
    """The same bits, and those right."""
    found: list[tuple] = []

    def bits() -> tuple[ndarray, ...]:
        found.append(run(p, dtype))
        return flat(found[-1])

    in_every_schedule(bits)
    check(p, dtype, found[0])


def problem(rng: np.random.Generator, at: Timeline, kind: str, d: int, window: int | None) -> Problem:
    """Two query heads that share one of keys and values."""
    rows, length = at.time.shape
    q, do = rng.standard_normal((2, rows, 2, length, d))
    k, v = rng.standard_normal((2, rows, 1, length, d))
    drop = Dropout(0.2, DropoutKey(5, 6), ATTENTION)
    return Problem(q, k, v, at, at, random_bias(kind, 2, rng), TimeConfig(shortest=60.0), True, window, drop, do, rng.standard_normal(q.shape[:3]))


@pytest.mark.parametrize(
    "kind, name, d, window",
    [("log", "f32", 6, None), ("table", "f64", 4, 20), ("exp", "bf16", 3, None), ("table", "f16", 16, 20), ("log", "bf16", 16, None)],
)
def test_several_tiles_in_every_schedule(kind: str, name: str, d: int, window: int | None) -> None:
    """More than one tile of queries and of keys, documents that begin inside of tiles; the same bits in all schedules."""
    rng, dtype = np.random.default_rng(0), FloatDType(name)
    p = rounded_to(problem(rng, packed(rng, 1, {4: 35, 16: 70}.get(d, 67), "unix"), kind, d, window), dtype)
    check_in_every_schedule(p, dtype)


@pytest.mark.parametrize(
    "dtype, d, length",
    [(FloatDType.F32, 33, 19), (FloatDType.F32, 70, 19), (FloatDType.BF16, 128, 35), (FloatDType.F16, 96, 70)],
    ids=str,
)
def test_wide_heads(dtype: FloatDType, d: int, length: int) -> None:
    """The kernels for more features have other tiles, those on tensor cores a shelf; the same bits in all schedules."""
    rng = np.random.default_rng(1)
    p = rounded_to(problem(rng, packed(rng, 1, length, "float"), "linear", d, None), dtype)
    check_in_every_schedule(p, dtype)


@pytest.mark.parametrize("dtype, d", [(FloatDType.F32, 4), (FloatDType.BF16, 16)], ids=str)
def test_more_knots_than_threads(dtype: FloatDType, d: int) -> None:
    """Of a warp, which sums them on tensor cores, and of a block: some have several. Gaps double, so that pairs lie beside the last thirty knots."""
    rng = np.random.default_rng(3)
    at = timeline_from_lengths(np.concatenate([[0], 2 ** np.arange(34)])[None], np.array([35]))
    p = problem(rng, at, "table", d, None)._replace(bias=TableBias(rng.standard_normal((2, 70))), time=TimeConfig(shortest=2.0**-40))
    p = rounded_to(p, dtype)
    check(p, dtype, run(p, dtype))


@pytest.mark.parametrize("dtype, d", [(FloatDType.F32, 4), (FloatDType.BF16, 16), (FloatDType.BF16, 80)], ids=str)
def test_what_is_not_read_may_be_anything(dtype: FloatDType, d: int) -> None:
    """NaN in padding changes no bit of what is there, and no gradient comes from it."""
    rng = np.random.default_rng(2)
    at = timeline_from_lengths(rng.integers(0, 9, (1, 12)).cumsum(1), np.array([8]))
    p = problem(rng, at, "log", d, None)
    clean = run(p, dtype)
    spoiled = p
    for name in ("q", "k", "v", "do"):
        array = getattr(p, name).copy()
        array[:, :, 8:] = np.nan
        spoiled = spoiled._replace(**{name: array})
    for a, b in zip(flat(run(spoiled, dtype)), flat(clean), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not values(clean[0])[:, :, 8:].any()
    assert not any(a[:, :, 8:].any() for a in clean[2:5])


def test_what_it_refuses() -> None:
    at = timeline_from_lengths(np.array([[3, 2]]), np.array([2]))
    with pytest.raises(ValueError, match="times go backwards in document 0: 3 is followed by 2"):
        plan_attention(at, at, True, None, 8)
    plan = plan_attention(at, at, False, None, 8)
    task = gpu.AttentionTask(plan, table_of(NoBias(), TimeConfig(), 3, np.dtype(np.float32)), sites_of([], np.dtype(np.float32)))
    a, lse = np.zeros((1, 3, 2, 4), np.float32), np.zeros((1, 3, 2), np.float32)
    with pytest.raises(ValueError, match="3 query heads cannot share 2 key/value heads evenly"):
        gpu.attention_forward(a, a[:, :2], a[:, :2], task, a, lse)
    wide = np.zeros((1, 3, 2, 129), np.float32)
    with pytest.raises(ValueError, match="a head has at most 128 features in float32, got 129"):
        gpu.attention_forward(wide, wide, wide, task, wide, lse)
