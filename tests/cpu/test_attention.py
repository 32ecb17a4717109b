"""Blocked attention on the CPU against the oracle, and what holds bit for bit."""

from collections.abc import Iterator
from functools import partial

import ml_dtypes
import numba
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from numpy import ndarray

from tests.ref.bounds import attention_limits, share, worst_share
from tests.ref.cases import BIASES, NOW, Problem, problems, random_bias, rising_times, seeds
from ttr_fast.cpu.attention import AttentionCache, attention_backward, attention_forward
from ttr_fast.cpu.half import as_bits, as_storage
from ttr_fast.cpu.panels import PAIRS
from ttr_ref import attention as ref
from ttr_ref.config import TimeConfig
from ttr_ref.dropout import ATTENTION, Dropout, DropoutKey
from ttr_ref.float_dtype import FloatDType
from ttr_ref.time_bias import TimeBias
from ttr_ref.timeline import Timeline, timeline_from_cu_seqlens, timeline_from_lengths
from ttr_ref.tree import leaves_of

VARIANTS = [
    *((kind, "f64", True) for kind in BIASES), *((kind, "f32", False) for kind in BIASES),
    ("log", "f32", True), ("log", "f16", False), ("log", "bf16", False), ("exp", "bf16", True),
]  # fmt: skip
"""Kind of bias, storage, dropout: each kernel in float64 and in float32, every storage, with and without dropout."""
stored = pytest.mark.parametrize("name", ["f32", "bf16"])
sizes = settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(autouse=True)
def both_threads() -> Iterator[None]:
    """Whatever a test sets is undone."""
    threads = numba.get_num_threads()
    yield
    numba.set_num_threads(threads)


def in_pairs(dtype: FloatDType) -> bool:
    """Whether weights are rounded to storage before they are multiplied."""
    return PAIRS and dtype == FloatDType.BF16


def rounded_to(p: Problem, dtype: FloatDType) -> Problem:
    """The problem as storage holds it, in float64: what the oracle is given."""
    q, k, v, do = (a.astype(dtype.storage).astype(np.float64) for a in (p.q, p.k, p.v, p.do))
    dlse = None if p.dlse is None else p.dlse.astype(dtype.compute).astype(np.float64)
    return p._replace(q=q, k=k, v=v, do=do, dlse=dlse)


def forward(p: Problem, dtype: FloatDType) -> tuple[ndarray, ndarray, AttentionCache]:
    q, k, v = (as_bits(a.astype(dtype.storage)) for a in (p.q, p.k, p.v))
    o, lse, cache = attention_forward(q, k, v, *p.arguments[3:])
    return as_storage(o).astype(dtype.compute), lse, cache


def backward(p: Problem, dtype: FloatDType, cache: AttentionCache) -> tuple[ndarray, ndarray, ndarray, TimeBias]:
    return attention_backward(as_bits(p.do.astype(dtype.storage)), None if p.dlse is None else p.dlse.astype(dtype.compute), cache)


@pytest.mark.parametrize("kind, name, drops", VARIANTS, ids=str)
@sizes
@given(data=st.data())
def test_equals_the_oracle(kind: str, name: str, drops: bool, data: st.DataObject) -> None:
    """Packed, padded and aligned to the end, every bias, windows, grouped heads, sizes up to two and a half blocks; O, LSE and all gradients."""
    dtype = FloatDType(name)
    p = rounded_to(data.draw(problems((kind,), dropout=False, most=150)), dtype)
    if drops:
        p = p._replace(drop=Dropout(data.draw(st.sampled_from([0.1, 0.5])), DropoutKey(data.draw(seeds), data.draw(seeds)), 8 * 3 + ATTENTION))
    expected_o, expected_lse, expected_cache = ref.attention_forward(*p.arguments)
    o, lse, cache = forward(p, dtype)
    stored = 0.0 if dtype.storage == dtype.compute else float(ml_dtypes.finfo(dtype.storage).eps)
    compute = np.finfo(dtype.compute)
    limits = attention_limits(p, expected_cache, float(compute.eps), True, stored, float(compute.tiny), stored if in_pairs(dtype) else 0.0)
    smallest = 0.0 if stored == 0 else float(ml_dtypes.finfo(dtype.storage).smallest_subnormal)
    assert share(o, expected_o, 2 * limits.o + smallest) <= 1
    assert share(lse, expected_lse, 2 * limits.lse) <= 1
    gradients, expected = backward(p, dtype, cache), ref.attention_backward(p.do, p.dlse, expected_cache)
    assert worst_share(gradients, expected, (limits.dq, limits.dk, limits.dv, limits.dbias)) <= 1


def problem(rng: np.random.Generator, length: int, kind: str = "log", times: str = "unix", rows: int = 1, window: int | None = None) -> Problem:
    """Four heads that share two of keys and values."""
    q = rng.standard_normal((rows, 4, length, 6)).astype(np.float32)
    k, v = rng.standard_normal((2, rows, 2, length, 6)).astype(np.float32)
    at = timeline_from_lengths(rising_times(rng, rows, length, times), np.full(rows, length))
    return Problem(q, k, v, at, at, random_bias(kind, 4, rng), TimeConfig(), True, window, None, q, None)


def forward_alone(p: Problem, dtype: FloatDType) -> tuple[ndarray, ndarray]:
    return forward(p, dtype)[:2]


run = partial(forward_alone, dtype=FloatDType.F32)


def gradients_of(p: Problem, dtype: FloatDType) -> tuple[ndarray, ...]:
    *_, cache = forward(p, dtype)
    dq, dk, dv, dbias = backward(p, dtype, cache)
    return dq, dk, dv, *leaves_of(dbias)


def assert_same_bits(a: tuple[ndarray, ...], b: tuple[ndarray, ...]) -> None:
    for x, y in zip(a, b, strict=True):
        assert x.tobytes() == np.ascontiguousarray(y).tobytes()


@stored
@given(length=st.integers(1, 200), kind=st.sampled_from(BIASES), window=st.none() | st.integers(1, 150), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_a_row_has_the_same_bits_whatever_stands_beside_it(name: str, length: int, kind: str, window: int | None, seed: int) -> None:
    """One and two threads; alone or in a batch; packed between others; with a future or without; the last queries only; times shifted."""
    rng, dtype, kind = np.random.default_rng(seed), FloatDType(name), kind if name == "f32" else "log"
    run = partial(forward_alone, dtype=dtype)
    p = problem(rng, length, kind, rows=3, window=window)
    whole = run(p)
    numba.set_num_threads(1)
    assert_same_bits(run(p), whole)
    alone = p._replace(q=p.q[1:2], k=p.k[1:2], v=p.v[1:2], at_q=p.at_q.places(slice(1, 2), slice(None)), at_k=p.at_k.places(slice(1, 2), slice(None)))
    one = run(alone)
    assert_same_bits(one, (whole[0][1:2], whole[1][1:2]))

    before, after = rng.integers(0, 90, 2)
    total = before + length + after
    packed = problem(rng, int(total), kind, rows=1)
    times = packed.at_q.time.copy()
    times[0, before : before + length] = alone.at_q.time[0]
    at = timeline_from_cu_seqlens(times, np.array([0, before, before + length, total]))
    for mine, theirs in ((packed.q, alone.q), (packed.k, alone.k), (packed.v, alone.v)):
        mine[0, :, before : before + length] = theirs[0]
    o, lse = run(packed._replace(at_q=at, at_k=at, bias=p.bias, window=window))
    assert_same_bits((o[:, :, before : before + length], lse[:, :, before : before + length]), one)

    cut = int(rng.integers(0, length))
    late = alone._replace(q=alone.q[:, :, cut:], at_q=alone.at_q.places(slice(None), slice(cut, None)))
    assert_same_bits(run(late), (one[0][:, :, cut:], one[1][:, :, cut:]))
    future = [a.copy() for a in (alone.q, alone.k, alone.v)]
    for a in future:
        a[:, :, cut + 1 :] = np.nan
    o, lse = run(alone._replace(q=future[0], k=future[1], v=future[2]))
    assert_same_bits((o[:, :, : cut + 1], lse[:, :, : cut + 1]), (one[0][:, :, : cut + 1], one[1][:, :, : cut + 1]))

    moved = Timeline(alone.at_q.document, alone.at_q.position, alone.at_q.time + 10**9)
    assert_same_bits(run(alone._replace(at_q=moved, at_k=moved)), one)


@stored
@given(length=st.integers(1, 200), window=st.none() | st.integers(1, 150), seed=seeds)
@settings(max_examples=20)
def test_gradients_have_the_same_bits_whatever_stands_beside(name: str, length: int, window: int | None, seed: int) -> None:
    """One and two threads; a row alone or in a batch, those of the bias's parameters apart: they are sums over the batch."""
    rng, gradients = np.random.default_rng(seed), partial(gradients_of, dtype=FloatDType(name))
    p = problem(rng, length, rows=3, window=window)._replace(do=rng.standard_normal((3, 4, length, 6)).astype(np.float32))
    whole = gradients(p)
    numba.set_num_threads(1)
    assert_same_bits(gradients(p), whole)
    one, places = slice(1, 2), slice(None)
    alone = p._replace(q=p.q[one], k=p.k[one], v=p.v[one], do=p.do[one], at_q=p.at_q.places(one, places), at_k=p.at_k.places(one, places))
    assert_same_bits(gradients(alone)[:3], tuple(a[one] for a in whole[:3]))


@stored
def test_numbers_that_are_none_reach_only_what_reads_them(name: str) -> None:
    """A NaN in a token's q, k, v and dO: outputs and gradients of documents and of tokens it has nothing to do with keep their bits."""
    rng, gradients, run = np.random.default_rng(8), partial(gradients_of, dtype=FloatDType(name)), partial(forward_alone, dtype=FloatDType(name))
    p = problem(rng, 200, rows=1, window=40)._replace(do=rng.standard_normal((1, 4, 200, 6)).astype(np.float32))
    clean = gradients(p)
    spoiled = [a.copy() for a in (p.q, p.k, p.v, p.do)]
    for a in spoiled:
        a[:, :, 150] = np.nan
    spoiled_p = p._replace(q=spoiled[0], k=spoiled[1], v=spoiled[2], do=spoiled[3])
    dirty = gradients(spoiled_p)
    assert_same_bits(tuple(a[:, :, : 150 - 2 * 39] for a in dirty[:3]), tuple(a[:, :, : 150 - 2 * 39] for a in clean[:3]))
    for others in (slice(150), slice(190, None)):
        assert_same_bits((dirty[0][:, :, others],), (clean[0][:, :, others],))
        assert_same_bits(tuple(a[:, :, others] for a in run(spoiled_p)), tuple(a[:, :, others] for a in run(p)))
    assert np.isnan(dirty[0][:, :, 150:190]).all()


def test_pairs_belong_to_positions() -> None:
    """Keys cut off at an odd position, which no query reads: those that are left keep their partners.

    All weights are 1 and the values of a window cancel, so that outputs are what rounding leaves, which depends on the order.
    """
    rng = np.random.default_rng(15)
    p = problem(rng, 190, "none", window=30)
    v = np.ldexp(rng.standard_normal((1, 2, 190, 6)), rng.integers(0, 30, (1, 2, 190, 6)))
    for j in range(15, 190):
        v[:, :, j] = -v[:, :, j - 15]
    p = p._replace(q=0 * p.q, v=v.astype(np.float32))
    whole, _ = forward_alone(p, FloatDType.BF16)
    late, _ = forward_alone(p._replace(k=p.k[:, :, 71:], v=p.v[:, :, 71:], at_k=p.at_k.places(slice(None), slice(71, None))), FloatDType.BF16)
    assert np.unique(whole).size > 100
    assert_same_bits((late[:, :, 100:],), (whole[:, :, 100:],))


def test_extreme_scores() -> None:
    """One-hot logits of ±1e5, references that must move, scores all −∞ or equal, subnormal values: finite where the oracle is, and as near."""
    rng = np.random.default_rng(3)
    for scale in (1e-40, 30.0, 300.0):
        p = problem(rng, 190)
        p = p._replace(q=(p.q * np.float32(scale)))
        exact = rounded_to(p, FloatDType.F32)
        expected_o, expected_lse, cache = ref.attention_forward(*exact.arguments)
        o, lse = run(p)
        limits = attention_limits(exact, cache, float(np.finfo(np.float32).eps), from_reference=True)
        assert share(o, expected_o, 2 * limits.o + 1e-37) <= 1
        assert share(lse, expected_lse, 2 * limits.lse) <= 1
    p = problem(rng, 150, "none")
    p.q[:], p.k[:] = 0, 0
    p.q[..., 0], p.k[..., 0] = np.sqrt(6), np.where(np.arange(150) % 50 == 7, 1e5, -1e5)
    o, _ = run(p)
    seen = np.arange(150)[:, None] >= np.array([7, 57, 107])
    for h in range(4):
        chosen = p.v[0, h // 2, [7, 57, 107]]
        expected = (seen @ chosen) / np.maximum(seen.sum(1), 1)[:, None]
        # ties in one tile are ties; between tiles a score of 1.44e5 is known to half its ulp of 2⁻⁶, and two weights to ln 2 · 2⁻⁶ of themselves
        np.testing.assert_allclose(o[0, h, 7:107], expected[7:107], atol=4e-7)
        np.testing.assert_allclose(o[0, h, 107:], expected[107:], atol=np.log(2) / 64 * np.abs(chosen).max())


def test_padding_and_empty_rows() -> None:
    """NaN in padding changes nothing; a query that reads nothing has O = 0 and LSE = −∞."""
    rng = np.random.default_rng(4)
    p = problem(rng, 100, rows=2)
    at = timeline_from_lengths(p.at_q.time, np.array([70, 0]))
    for a in (p.q, p.k, p.v):
        a[0, :, 70:], a[1] = np.nan, np.nan
    o, lse = run(p._replace(at_q=at, at_k=at))
    assert np.isfinite(o).all()
    assert (o[0, :, 70:] == 0).all()
    assert (o[1] == 0).all()
    assert (lse[1] == -np.inf).all()
    assert np.isfinite(lse[0, :, :70]).all()
    early = timeline_from_lengths(np.full((2, 100), NOW), np.array([100, 100]), shift=-30)
    keys = timeline_from_lengths(np.full((2, 100), NOW), np.array([100, 100]))
    good = problem(rng, 100, rows=2)
    o, lse = run(good._replace(at_q=early, at_k=keys))
    assert (o[:, :, :30] == 0).all()
    assert (lse[:, :, :30] == -np.inf).all()
    assert np.isfinite(lse[:, :, 30:]).all()


def test_keys_that_start_inside_a_group_of_four() -> None:
    """As in a ring: the first key's position is any number, so tiles start inside a group whose mask is drawn at once."""
    rng, eps = np.random.default_rng(6), float(np.finfo(np.float64).eps)
    for start in (1, 6, 127):
        p = problem(rng, 75, "none")
        q, k, v, do = (a.astype(np.float64) for a in (p.q, p.k, p.v, p.do))
        at = Timeline(p.at_q.document, p.at_q.position + start, p.at_q.time)
        p = p._replace(q=q, k=k, v=v, do=do, at_q=at, at_k=at, drop=Dropout(0.5, DropoutKey(1, 2), ATTENTION))
        expected_o, _, expected_cache = ref.attention_forward(*p.arguments)
        o, _, cache = forward(p, FloatDType.F64)
        limits = attention_limits(p, expected_cache, eps, from_reference=True, flushed=float(np.finfo(np.float64).tiny))
        assert share(o, expected_o, 2 * limits.o) <= 1
        gradients, expected = backward(p, FloatDType.F64, cache), ref.attention_backward(p.do, p.dlse, expected_cache)
        assert worst_share(gradients[:3], expected[:3], (limits.dq, limits.dk, limits.dv)) <= 1


def assert_within_limits(p: Problem) -> None:
    """Forward and backward in float32 against the oracle."""
    exact, eps = rounded_to(p, FloatDType.F32), float(np.finfo(np.float32).eps)
    expected_o, expected_lse, expected_cache = ref.attention_forward(*exact.arguments)
    o, lse, cache = forward(p, FloatDType.F32)
    limits = attention_limits(exact, expected_cache, eps, from_reference=True, flushed=float(np.finfo(np.float32).tiny))
    assert share(o, expected_o, 2 * limits.o) <= 1
    assert share(lse, expected_lse, 2 * limits.lse) <= 1
    gradients, expected = backward(p, FloatDType.F32, cache), ref.attention_backward(exact.do, exact.dlse, expected_cache)
    assert worst_share(gradients, expected, (limits.dq, limits.dk, limits.dv, limits.dbias)) <= 1


@pytest.mark.parametrize("length, windows", [(63, (62, 63)), (64, (63, 64)), (65, (64, 65)), (100, (64, 98, 99)), (128, (63, 64, 65, 126, 127, 128)),
                                             (193, (64, 127, 128, 129, 191, 192))])  # fmt: skip
def test_windows_that_end_beside_a_tile(length: int, windows: tuple[int, ...]) -> None:
    """One key more or less makes a tile whole, or not."""
    rng = np.random.default_rng(9)
    for window in windows:
        assert_within_limits(problem(rng, length, "none", window=window))


@pytest.mark.parametrize("start", [3, 8, 61])
def test_queries_that_start_inside_a_tile(start: int) -> None:
    """The first query of a key then stands anywhere in a group of eight."""
    p = problem(np.random.default_rng(11), 100, "none")
    assert_within_limits(p._replace(q=p.q[:, :, start:], do=p.do[:, :, start:], at_q=p.at_q.places(slice(None), slice(start, None))))


@pytest.mark.parametrize("causal", [True, False])
def test_times_in_seconds_with_fractions_keep_their_differences(causal: bool) -> None:
    """A quarter of a second is lost in float32 beside 1.7e9, and so is its bias."""
    rng = np.random.default_rng(12)
    p = problem(rng, 100, "linear")
    times = NOW + 0.25 * np.arange(100)[None]
    at = timeline_from_lengths(times, np.array([100]))
    p = p._replace(at_q=at, at_k=at, causal=causal, time=TimeConfig(unit=0.5))
    assert_within_limits(p)


@pytest.mark.parametrize("later", [1, 64, 70])
def test_queries_after_the_last_key(later: int) -> None:
    """Their first tile is not their own, and may be read whole."""
    rng = np.random.default_rng(10)
    p = problem(rng, 64, "none")
    at = Timeline(p.at_q.document, p.at_q.position + later, p.at_q.time + 10**6)
    assert_within_limits(p._replace(at_q=at))


def check_one(name: str) -> None:
    """One problem over two tiles, forward and backward, within its limits: what processes for other CPUs run (test_guards.py)."""
    rng, dtype = np.random.default_rng(7), FloatDType(name)
    p = problem(rng, 75, "none", window=50)._replace(do=rng.standard_normal((1, 4, 75, 6)))
    p = rounded_to(p, dtype)
    expected_o, expected_lse, expected_cache = ref.attention_forward(*p.arguments)
    o, lse, cache = forward(p, dtype)
    stored = 0.0 if dtype.storage == dtype.compute else float(ml_dtypes.finfo(dtype.storage).eps)
    compute = np.finfo(dtype.compute)
    limits = attention_limits(p, expected_cache, float(compute.eps), True, stored, float(compute.tiny), stored if in_pairs(dtype) else 0.0)
    assert share(o, expected_o, 2 * limits.o) <= 1
    assert share(lse, expected_lse, 2 * limits.lse) <= 1
    gradients, expected = backward(p, dtype, cache), ref.attention_backward(p.do, p.dlse, expected_cache)
    assert worst_share(gradients[:3], expected[:3], (limits.dq, limits.dk, limits.dv)) <= 1


def test_what_it_refuses() -> None:
    p = problem(np.random.default_rng(5), 5)
    with pytest.raises(ValueError, match="attention: 3 query heads cannot share 2 key/value heads evenly"):
        run(p._replace(q=p.q[:, :3]))
    back = Timeline(p.at_q.document, p.at_q.position, p.at_q.time[:, ::-1].copy())
    with pytest.raises(ValueError, match=r"timeline: times go backwards in document 0: 17\d+ is followed by 17\d+"):
        run(p._replace(at_q=back, at_k=back))
