"""Attention tile by tile against the full matrix: outputs, LSE and every gradient, for tiles of every size."""

import numpy as np
from hypothesis import given, settings, strategies as st

from tests.ref.bounds import attention_limits, same_bits, share, worst_share
from tests.ref.cases import BIASES, Problem, problems, random_bias, rising_times, seeds
from ttr_ref.attention import attention_backward, attention_forward
from ttr_ref.blocked_attention import blocked_attention_backward, blocked_attention_forward
from ttr_ref.config import TimeConfig
from ttr_ref.timeline import PADDING, timeline_from_lengths


def assert_tiles_change_nothing(p: Problem, tile: int) -> None:
    """Within what the rounding of both may add up to."""
    o, lse, cache = attention_forward(*p.arguments)
    blocked_o, blocked_lse, blocked_cache = blocked_attention_forward(*p.arguments, tile=tile)
    gradients = attention_backward(p.do, p.dlse, cache)
    blocked_gradients = blocked_attention_backward(p.do, p.dlse, blocked_cache)
    limits = attention_limits(p, cache)
    assert worst_share((blocked_o, blocked_lse), (o, lse), limits[:2]) <= 1
    assert worst_share(blocked_gradients[:3], gradients[:3], limits[2:5]) <= 1
    assert worst_share(blocked_gradients[3], gradients[3], limits.dbias) <= 1


@settings(max_examples=200)
@given(p=problems(), data=st.data())
def test_any_tile(p, data):
    """Also tiles of one, of the whole, and one more or less than the whole."""
    whole = p.k.shape[2]
    assert_tiles_change_nothing(p, data.draw(st.integers(1, 12) | st.sampled_from([1, whole, whole + 1, max(1, whole - 1)])))


def extreme(kind: str, rng: np.random.Generator, heads: int, places: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries and keys of four features whose scores are one-hot ±1e5, all offset by 1e5, all equal, or subnormal."""
    q, k = rng.standard_normal((2, 1, heads, places, 4))
    match kind:
        case "one-hot":
            return 1e5 * np.sign(q), np.eye(4)[rng.integers(0, 4, (1, heads, places))] * rng.choice([-2, 2], (1, heads, places, 1))
        case "offset":
            q[..., 0], k[..., 0] = 1000, 200 * rng.choice([-1, 1])
            return q, k
        case "ties":
            return np.ones_like(q), np.ones_like(k)
        case _:
            return q * 1e-160, k * 1e-160


@settings(max_examples=60)
@given(
    kind=st.sampled_from(["one-hot", "offset", "ties", "subnormal"]), bias=st.sampled_from(BIASES), causal=st.booleans(),
    window=st.none() | st.integers(1, 11), tile=st.integers(1, 12), seed=seeds,
)
def test_extreme_scores(kind, bias, causal, window, tile, seed):
    rng = np.random.default_rng(seed)
    at = timeline_from_lengths(rising_times(rng, 1, 11, "ties"), np.array([10]))
    q, k = extreme(kind, rng, 2, 11)
    v, do = rng.standard_normal((2, 1, 2, 11, 4))
    time = TimeConfig()
    assert_tiles_change_nothing(
        Problem(q, k, v, at, at, random_bias(bias, 2, rng), time, causal, window, None, do, rng.standard_normal((1, 2, 11))), tile
    )


@settings(max_examples=60)
@given(p=problems(), tile=st.integers(1, 9))
def test_nan_in_padding(p, tile):
    """No tile reads it: outputs and gradients keep their bits."""
    pad_q, pad_k = ((at.document == PADDING)[:, None, :, None] for at in (p.at_q, p.at_k))
    bad = p._replace(q=np.where(pad_q, np.nan, p.q), k=np.where(pad_k, np.nan, p.k), v=np.where(pad_k, np.nan, p.v), do=np.where(pad_q, np.nan, p.do))
    (o, lse, cache), (bad_o, bad_lse, bad_cache) = (blocked_attention_forward(*x.arguments, tile=tile) for x in (p, bad))
    assert same_bits((bad_o, bad_lse), (o, lse))
    good, worse = blocked_attention_backward(p.do, p.dlse, cache), blocked_attention_backward(bad.do, p.dlse, bad_cache)
    assert same_bits(worse[3], good[3])
    assert same_bits(worse[:3], good[:3])


@settings(max_examples=60)
@given(p=problems(self_attention=True), tile=st.integers(1, 9), more=st.integers(1, 5))
def test_more_padding_changes_nothing(p, tile, more):
    """... but the shape of the last tile, and so the order of its sums. What is added reads nothing."""
    o, lse, _ = blocked_attention_forward(*p.arguments, tile=tile)

    def longer(a: np.ndarray, axis: int, fill: float) -> np.ndarray:
        width = [(0, more if i == axis else 0) for i in range(a.ndim)]
        return np.pad(a, width, constant_values=fill)

    at = p.at_q._replace(document=longer(p.at_q.document, 1, PADDING), position=longer(p.at_q.position, 1, 0), time=longer(p.at_q.time, 1, 0))
    q, k, v = (longer(a, 2, np.nan) for a in (p.q, p.k, p.v))
    long_o, long_lse, _ = blocked_attention_forward(*p._replace(q=q, k=k, v=v, at_q=at, at_k=at).arguments, tile=tile)
    limits = attention_limits(p, attention_forward(*p.arguments)[2])
    places = p.q.shape[2]
    assert share(long_o[:, :, :places], o, 2 * limits.o) <= 1
    assert share(long_lse[:, :, :places], lse, 2 * limits.lse) <= 1
    assert not long_o[:, :, places:].any()
    assert np.all(long_lse[:, :, places:] == -np.inf)
