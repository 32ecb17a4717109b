"""Rotary embedding on the GPU against the oracle."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from numpy import ndarray

from tests.cpu.storages import STORAGES, empty, eps_of, limit, values
from tests.cuda.schedules import in_every_schedule
from tests.ref.bounds import EPS, share
from ttr_fast.cuda import rope as gpu
from ttr_fast.cuda.rows import chunks_of
from ttr_ref.config import BlockConfig, TimeConfig
from ttr_ref.float_dtype import FloatDType, round_to_storage
from ttr_ref.multi_head_attention import merge_heads, split_heads
from ttr_ref.rope import RopeCache, rope_backward, rope_forward, rope_init
from ttr_ref.timeline import Timeline, elapsed, timeline_from_lengths

KINDS = ["position", "time", "split"]
TIME = TimeConfig(origin=1_700_000_000, unit=60.0, shortest=1.0, span=1e6)


class Problem(NamedTuple):
    """Rows of a projection, where their tokens stand, gradients shaped like heads."""

    config: BlockConfig
    at: Timeline
    omega: ndarray
    qkv: ndarray
    do: tuple[ndarray, ndarray, ndarray]


def problem(rng: np.random.Generator, b: int, t: int, pairs: int, groups: int, kind: str, dtype: FloatDType) -> Problem:
    """Two query heads for each of `groups`; NaN and nonsense for the times of padding."""
    d, heads = 2 * pairs, 2 * groups
    config = BlockConfig(heads * d, 4, heads, groups, rope=kind, time=TIME)
    time = TIME.origin + rng.uniform(0, 1e6, (b, t)).cumsum(1)
    lengths = rng.integers(0, t + 1, b)
    time[np.arange(t) >= lengths[:, None]] = np.nan
    at = timeline_from_lengths(time, lengths, shift=int(rng.integers(0, 1000)))
    qkv = rng.standard_normal((b * t, (heads + 2 * groups) * d)).astype(dtype.compute)
    do = tuple(rng.standard_normal((b, n, t, d)).astype(dtype.compute) for n in (heads, groups, groups))
    return Problem(config, at, rope_init(config) * rng.uniform(0.5, 2), qkv, do)


def run(p: Problem, dtype: FloatDType) -> tuple[ndarray, ...]:
    """cos, sin, q, k, v, dqkv, domega."""
    n, d = p.qkv.shape[0], p.config.head_dim
    cos, sin = np.full((2, n, d // 2), np.nan, dtype.compute)
    tau = elapsed(p.at, TIME).reshape(-1)
    gpu.rope_angles(p.at.position.reshape(-1), tau, gpu.theta_of(p.config, p.omega.size), p.omega, cos, sin)
    q, k, v = (empty(a.shape, dtype) for a in p.do)
    gpu.rope_forward(p.qkv, cos, sin, q, k, v)
    dqkv, domega = empty(p.qkv.shape, dtype), np.full(p.omega.size, np.nan)
    gpu.rope_backward(*p.do, q, k, cos, sin, tau, dqkv, domega, np.full((chunks_of(n), p.omega.size), np.nan))
    return cos, sin, q, k, v, dqkv, domega


@pytest.mark.parametrize("dtype", STORAGES)
@settings(max_examples=6)
@given(
    b=st.integers(1, 3), t=st.integers(1, 9), pairs=st.integers(1, 7), groups=st.integers(1, 2), kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@example(b=2, t=35, pairs=3, groups=1, kind="split", seed=0)
def test_equals_the_oracle(dtype: FloatDType, b: int, t: int, pairs: int, groups: int, kind: str, seed: int) -> None:
    """A turned feature has two terms: each by a cosine or sine off by eps, and two roundings. The phase is the oracle's bit for bit.

    What backward turns are gradients as given; ω's terms take the turned features as they are stored,
    and are products and sums in float64 on both sides.
    """
    p = problem(np.random.default_rng(seed), b, t, pairs, groups, kind, dtype)
    cos, sin, q, k, v, dqkv, domega = in_every_schedule(lambda: run(p, dtype))
    eps, d, heads = eps_of(dtype), p.config.head_dim, 2 * groups
    x = p.qkv.astype(np.float64).reshape(b, t, -1)
    parts = np.split(x, [heads * d, (heads + groups) * d], axis=-1)
    xq, xk, xv = (split_heads(a, n) for a, n in zip(parts, (heads, groups, groups), strict=True))
    (yq, cq), (yk, ck) = (rope_forward(a, p.at, p.omega, p.config) for a in (xq, xk))
    assert share(cos.reshape(b, t, -1), cq.cos[:, 0], eps) <= 1
    assert share(sin.reshape(b, t, -1), cq.sin[:, 0], eps) <= 1

    def pair_sum(a: ndarray) -> ndarray:
        return np.repeat(np.abs(a[..., 0::2]) + np.abs(a[..., 1::2]), 2, axis=-1)

    for actual, expected, size in [(q, yq, pair_sum(xq)), (k, yk, pair_sum(xk))]:
        assert share(values(actual), expected, limit(expected, 2 * eps * size, dtype)) <= 1
    np.testing.assert_array_equal(values(v), round_to_storage(xv, dtype))

    dq, dk, dv = (a.astype(np.float64) for a in p.do)
    stored_q, stored_k = cq._replace(y=values(q)), ck._replace(y=values(k))
    (dxq, dwq), (dxk, dwk) = rope_backward(dq, stored_q), rope_backward(dk, stored_k)
    expected = np.concatenate([merge_heads(a) for a in (dxq, dxk, dv)], axis=-1)
    size = np.concatenate([merge_heads(a) for a in (pair_sum(dq), pair_sum(dk), 0 * dv)], axis=-1)
    assert share(values(dqkv).reshape(expected.shape), expected, limit(expected, 2 * eps * size, dtype)) <= 1
    terms = b * t * 3 * groups * 2
    sizes = sum(omega_size(c, g) for c, g in [(stored_q, dq), (stored_k, dk)])
    assert share(domega, dwq + dwk, (terms + 4) * EPS * sizes) <= 1


def omega_size(cache: RopeCache, dy: ndarray) -> ndarray:
    """Its gradient with every term positive."""
    positive = np.abs(dy[..., 1::2] * cache.y[..., 0::2]) + np.abs(dy[..., 0::2] * cache.y[..., 1::2])
    return np.einsum("bhtp,bt->p", positive[..., positive.shape[-1] - cache.time_pairs :], np.abs(cache.tau))
