"""The ring buffer: decoding token by token is windowed attention over the whole sequence, however often the ring has wrapped."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy import ndarray

from tests.ref.bounds import attention_limits, reordered_share, same_bits, sensitivity, share
from tests.ref.cases import BIASES, NOW, Problem, head_counts, lively_model, model_configs, random_bias, rising_times, seeds, time_kinds
from ttr_ref.attention import attention_forward
from ttr_ref.config import BlockConfig, ModelConfig, TimeConfig
from ttr_ref.float_dtype import FloatDType, to_storage
from ttr_ref.kv_ring import KVRing, kv_ring_append, kv_ring_empty, kv_ring_next, kv_ring_timeline
from ttr_ref.model import ModelParams, compute_copy, decode_start, model_decode, model_forward, model_init
from ttr_ref.timeline import PADDING, timeline_from_lengths

windows = st.sampled_from([1, 2, 3, 4, 7, 30])
dtypes = st.sampled_from(list(FloatDType))


def float_or_int(time: ndarray) -> type:
    return np.float64 if time.dtype == np.float64 else np.int64


@settings(max_examples=60)
@given(
    window=windows, dtype=dtypes, heads=head_counts, kind=st.sampled_from(BIASES), times=time_kinds,
    places=st.integers(1, 14), seed=seeds,
)
def test_ring_attention_is_windowed_attention(window, dtype, heads, kind, times, places, seed):
    """Over the same stored keys and values; only the order of the slots differs, and with it the order of the sums, in the type computed with."""
    rng = np.random.default_rng(seed)
    rows, width, time = 2, 4, TimeConfig()
    q, k, v = (rng.standard_normal((rows, h, places, width)).astype(dtype.compute) for h in (heads[0], *[heads[1]] * 2))
    bias = random_bias(kind, heads[0], rng)
    bias = type(bias)(*(a.astype(dtype.compute) for a in bias))
    at = timeline_from_lengths(rising_times(rng, rows, places, times), np.full(rows, places))
    stored_k, stored_v = (to_storage(a, dtype).astype(dtype.compute) for a in (k, v))
    p = Problem(q, stored_k, stored_v, at, at, bias, time, True, window, None, np.zeros_like(q), None)
    o, lse, cache = attention_forward(*p.arguments)
    limits = attention_limits(p, cache, float(np.finfo(dtype.compute).eps))
    ring = kv_ring_empty(rows, heads[1], window, width, dtype, float_or_int(at.time))
    for n in range(places):
        now = kv_ring_next(ring, at.time[:, n])
        ring = kv_ring_append(ring, k[:, :, n], v[:, :, n], at.time[:, n], dtype)
        assert ring.k.dtype == ring.v.dtype == dtype.storage
        keys, values = ring.k.astype(dtype.compute), ring.v.astype(dtype.compute)
        o_n, lse_n, _ = attention_forward(q[:, :, n : n + 1], keys, values, now, kv_ring_timeline(ring), bias, time, True, window)
        assert share(o_n[:, :, 0], o[:, :, n], 2 * limits.o[:, :, n]) <= 1
        assert share(lse_n[:, :, 0], lse[:, :, n], 2 * limits.lse[:, :, n]) <= 1


def decoded(params: ModelParams, tokens: ndarray, times: ndarray, config: ModelConfig) -> tuple[list[ndarray], tuple[KVRing, ...]]:
    """The state of each token, one decode step after the other, and the rings at the end."""
    rings, states = decode_start(config, tokens.shape[0], float_or_int(times)), []
    for n in range(tokens.shape[1]):
        z, rings = model_decode(params, tokens[:, n], times[:, n], rings, config)
        states.append(z)
    return states, rings


@settings(max_examples=40)
@given(data=st.data(), window=windows, places=st.integers(1, 14), times=st.sampled_from(["unix", "float", "equal"]), seed=seeds)
def test_decoding_is_the_windowed_model(data, window, places, times, seed):
    """z of every token, through several wraps, W = 1 and W > T. One row of a product instead of T: the sums may run in another order."""
    config = data.draw(model_configs(window=window))
    rng = np.random.default_rng(seed)
    params = compute_copy(lively_model(config, seed), config)
    tokens, time = rng.integers(0, config.vocab_size, (2, places)), rising_times(rng, 2, places, times)
    at = timeline_from_lengths(time, np.full(2, places))
    z, _ = model_forward(params, tokens, at, config)
    by_step, _ = decoded(params, tokens, time, config)
    limit = sensitivity(lambda p: (model_forward(p, tokens, at, config)[0],), params)
    longest = max(3 * config.block.embed_dim, 2 * config.block.hidden_dim, places)
    assert reordered_share((np.stack(by_step, 1),), (z,), limit, longest) <= 1


@settings(max_examples=30)
@given(data=st.data(), window=windows, counts=st.lists(st.integers(0, 9), min_size=2, max_size=3), dtype=dtypes, seed=seeds)
def test_rows_with_different_histories(data, window, counts, dtype, seed):
    """Rows that have seen different numbers of tokens decode together to the same bits as each alone."""
    config = data.draw(model_configs(window=window, float_dtype=dtype))
    rng = np.random.default_rng(seed)
    params = compute_copy(lively_model(config, seed), config)
    histories = [(rng.integers(0, config.vocab_size, (1, n)), rising_times(rng, 1, n, "unix")) for n in counts]
    alone = []
    for tokens, times in histories:
        rings = decode_start(config, 1)
        for n in range(tokens.shape[1]):
            _, rings = model_decode(params, tokens[:, n], times[:, n], rings, config)
        alone.append(rings)
    together = tuple(KVRing(*(np.concatenate(parts) for parts in zip(*layer, strict=True))) for layer in zip(*alone, strict=True))
    tokens, times = rng.integers(0, config.vocab_size, len(counts)), np.full(len(counts), NOW + 10**6)
    z, rings = model_decode(params, tokens, times, together, config)
    for b, rings_b in enumerate(alone):
        here = slice(b, b + 1)
        z_b, after_b = model_decode(params, tokens[here], times[here], rings_b, config)
        assert z[here].tobytes() == z_b.tobytes()
        assert same_bits(tuple(KVRing(*(a[here] for a in ring)) for ring in rings), after_b)


@settings(max_examples=30)
@given(data=st.data(), window=st.sampled_from([3, 8]), seen=st.integers(0, 6), dtype=dtypes, seed=seeds)
def test_slots_not_filled_yet_are_never_read(data, window, seen, dtype, seed):
    """NaN in the keys, values and times of empty slots, one of them the slot that the next token takes: every bit of what follows is the same."""
    config = data.draw(model_configs(window=window, float_dtype=dtype))
    rng = np.random.default_rng(seed)
    params = compute_copy(lively_model(config, seed), config)
    tokens, times = rng.integers(0, config.vocab_size, (2, seen + 2)), rising_times(rng, 2, seen + 2, "float")
    _, rings = decoded(params, tokens[:, :seen], times[:, :seen], config)

    def spoilt(ring: KVRing) -> KVRing:
        empty = kv_ring_timeline(ring).document == PADDING
        k, v = (np.where(empty[:, None, :, None], np.array(np.nan, a.dtype), a) for a in (ring.k, ring.v))
        return ring._replace(k=k, v=v, time=np.where(empty, np.nan, ring.time))

    bad = tuple(spoilt(ring) for ring in rings)
    for n in (seen, seen + 1):
        z, rings = model_decode(params, tokens[:, n], times[:, n], rings, config)
        bad_z, bad = model_decode(params, tokens[:, n], times[:, n], bad, config)
        assert bad_z.tobytes() == z.tobytes()


@given(window=st.integers(1, 9), count=st.integers(0, 40), seed=seeds)
def test_what_lies_in_which_slot(window, count, seed):
    """Token n lies in slot n mod W; the last W tokens are there, and nothing else. Appending changes no ring in place."""
    rng = np.random.default_rng(seed)
    k, v, times = rng.standard_normal((count, 1, 1, 2)), rng.standard_normal((count, 1, 1, 2)), rising_times(rng, 1, count, "ties")
    ring = kv_ring_empty(1, 1, window, 2, FloatDType.F64)
    for n in range(count):
        before = KVRing(*(a.copy() for a in ring))
        after = kv_ring_append(ring, k[n], v[n], times[:, n], FloatDType.F64)
        assert same_bits(ring, before)
        ring = after
    assert ring.window == window
    assert ring.seen.tolist() == [count]
    at = kv_ring_timeline(ring)
    held = {n % window: n for n in range(max(count - window, 0), count)}
    for slot in range(window):
        if slot in held:
            n = held[slot]
            assert (at.document[0, slot], at.position[0, slot], at.time[0, slot]) == (0, n, times[0, n])
            assert np.array_equal(ring.k[0, :, slot], k[n, 0])
            assert np.array_equal(ring.v[0, :, slot], v[n, 0])
        else:
            assert at.document[0, slot] == PADDING
    assert [a.tolist() for a in kv_ring_next(ring, np.array([5]))] == [[[0]], [[count]], [[5]]]


def test_decoding_needs_a_window():
    config = ModelConfig(3, 1, BlockConfig(4, 4, 1))
    with pytest.raises(ValueError, match=r"decode: the model sees everything before \(window is None\); a ring buffer needs a window"):
        decode_start(config, 1)


@pytest.mark.parametrize("dtype", list(FloatDType))
def test_memory_does_not_grow(dtype):
    """The rings of every layer have the shapes and types they started with."""
    config = ModelConfig(3, 2, BlockConfig(8, 4, 2, 1, window=3, float_dtype=dtype, time=TimeConfig(origin=NOW)))
    params = compute_copy(model_init(config, 0), config)
    _, rings = decoded(params, np.zeros((2, 9), int), NOW + np.arange(18).reshape(2, 9), config)
    assert len(rings) == 2
    for ring in rings:
        assert [(a.shape, a.dtype) for a in ring] == [(a.shape, a.dtype) for a in decode_start(config, 2)[0]]
        assert ring.seen.tolist() == [9, 9]
