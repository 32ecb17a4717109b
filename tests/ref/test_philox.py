"""Random numbers and dropout: published vectors, and masks that are a function of the place alone."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tests.ref import plain
from tests.ref.cases import problems, seeds
from ttr_ref.dropout import (
    AFTER_ATTENTION,
    AFTER_FEED_FORWARD,
    ATTENTION,
    FEED_FORWARD,
    WHOLE_HEAD,
    Dropout,
    DropoutKey,
    attention_mask,
    dropout_at,
    dropout_backward,
    dropout_forward,
    dropout_mask,
    head_dropout_backward,
    head_dropout_forward,
)
from ttr_ref.philox import philox4x32
from ttr_ref.timeline import PADDING, Timeline, timeline_from_lengths

# Random123 1.14, tests/kat_vectors, lines "philox4x32 10": counter, key, output
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
words = st.integers(0, 2**32 - 1)
probabilities = st.sampled_from([2.0**-32, 0.1, 0.25, 1 / 3, 0.5, 0.9, 1 - 2.0**-32])


def from_hex(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize("counter, key, output", KNOWN)
def test_known_answers(counter, key, output):
    ours = philox4x32(tuple(np.asarray(c) for c in from_hex(counter)), tuple(from_hex(key)))
    assert ours.tolist() == from_hex(output)
    assert list(plain.philox(tuple(from_hex(counter)), tuple(from_hex(key)))) == from_hex(output)


def test_known_answers_as_one_array():
    """Every lane on its own: the three vectors' counters under the first key, broadcast against each other."""
    counters = np.array([from_hex(counter) for counter, _, _ in KNOWN])
    key = tuple(from_hex(KNOWN[2][1]))
    ours = philox4x32((counters[:, 0, None], counters[:, 1, None], counters[:, 2, None], counters[None, :, 3]), key)
    for i, j in np.ndindex(3, 3):
        assert tuple(ours[:, i, j]) == plain.philox((*counters[i, :3].tolist(), int(counters[j, 3])), key)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=4, max_size=4), st.tuples(*[st.integers(-(2**40), 2**40)] * 2))
def test_counter_and_key_are_taken_modulo_32_bits(counter, key):
    ours = philox4x32(tuple(np.asarray(c) for c in counter), key)
    assert tuple(ours) == plain.philox(tuple(c % 2**32 for c in counter), tuple(k % 2**32 for k in key))


@settings(max_examples=40)
@given(p=problems(dropout=False), rate=probabilities, seed=words, step=words, layer=st.integers(0, 50))
def test_attention_mask_is_the_counters_function(p, rate, seed, step, layer):
    """Whatever the layout: packed, padded, few queries to many keys; the rate's threshold is exact to one part in 2³²."""
    drop = dropout_at(rate, DropoutKey(seed, step), layer, ATTENTION)
    heads = p.q.shape[1]
    assert np.array_equal(attention_mask(drop, p.at_q, p.at_k, heads), plain.attention_mask(drop, p.at_q, p.at_k, heads))


@settings(max_examples=40)
@given(p=problems(dropout=False), rate=probabilities, seed=words, place=st.sampled_from([FEED_FORWARD, AFTER_ATTENTION, AFTER_FEED_FORWARD]))
def test_feature_and_head_masks_are_the_counters_function(p, rate, seed, place):
    at, heads = p.at_q, p.q.shape[1]
    drop, drop_head = dropout_at(rate, DropoutKey(seed, 5), 2, place), dropout_at(rate, DropoutKey(seed, 5), 2, WHOLE_HEAD)
    x = np.random.default_rng(seed).standard_normal((*at.time.shape, 7))
    y, o = dropout_forward(x, drop, at), head_dropout_forward(p.q, drop_head, at)
    assert np.array_equal(dropout_backward(x, drop, at), y)
    assert np.array_equal(head_dropout_backward(p.q, drop_head, at), o)
    for b, t in np.ndindex(at.time.shape):
        document, position = int(at.document[b, t]), int(at.position[b, t])
        keep = np.array([plain.kept(drop, position, c, document) for c in range(7)])
        assert np.array_equal(y[b, t], x[b, t] * (keep / (1 - rate)))
        keep_head = np.array([plain.kept(drop_head, 0, h, document) for h in range(heads)])
        assert np.array_equal(o[b, :, t], p.q[b, :, t] * (keep_head / (1 - rate))[:, None])


@given(st.data())
def test_mask_of_any_slice_and_order(data):
    """Columns and rows may come in any order, with gaps and repetitions, as those of a ring buffer do."""
    drop = Dropout(0.4, DropoutKey(data.draw(words), data.draw(words)), 16)
    whole = dropout_mask(drop, np.arange(12), np.arange(23), np.full(12, 3))
    rows = np.array(data.draw(st.lists(st.integers(0, 11), max_size=15)), int)
    columns = np.array(data.draw(st.lists(st.integers(0, 22), max_size=30)), int)
    assert np.array_equal(dropout_mask(drop, rows, columns, np.full(rows.size, 3)), whole[np.ix_(rows, columns)])


@settings(max_examples=30)
@given(seed=seeds, lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4), order=st.randoms(use_true_random=False))
def test_mask_does_not_know_about_packing(seed, lengths, order):
    """Documents in rows of their own, or packed in any order into one row, draw the same."""
    drop, heads, places = Dropout(0.5, DropoutKey(seed, 0), 8), 3, max(lengths)
    alone = timeline_from_lengths(np.zeros((len(lengths), places), np.int64), np.array(lengths))
    shuffled = order.sample(range(len(lengths)), len(lengths))
    document = np.concatenate([np.full(lengths[d], d) for d in shuffled])[None].astype(int)
    position = np.concatenate([np.arange(lengths[d]) for d in shuffled])[None].astype(int)
    together = Timeline(document, position, np.zeros_like(position))
    mask_alone, mask_together = (attention_mask(drop, at, at, heads) for at in (alone, together))
    features_alone, features_together = (dropout_forward(np.ones((*at.time.shape, 5)), drop, at) for at in (alone, together))
    for d, length in enumerate(lengths):
        here = np.flatnonzero(document[0] == d)
        assert np.array_equal(mask_together[0][:, here[:, None], here], mask_alone[d, :, :length, :length])
        assert np.array_equal(features_together[0, here], features_alone[d, :length])


def test_sites_layers_steps_seeds_documents_and_heads_are_apart():
    """2 000 draws of a half agree in all places with probability 2⁻²⁰⁰⁰, so equality means the same counters were used."""
    at = timeline_from_lengths(np.zeros((2, 20), np.int64), np.array([20, 20]))
    key = DropoutKey(1, 2)

    def draws(key: DropoutKey, layer: int, place: int) -> np.ndarray:
        return attention_mask(dropout_at(0.5, key, layer, place), at, at, 5).reshape(2 * 5, -1)

    masks = [draws(key, layer, place) for layer in range(3) for place in range(5)]
    masks += [draws(DropoutKey(1, 3), 0, 0), draws(DropoutKey(2, 2), 0, 0), draws(DropoutKey(2, 1), 0, 0)]
    each = np.concatenate(masks)  # one line for each use, document and head
    assert len(np.unique(each, axis=0)) == len(each)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9, 1 / 3])
def test_fraction_kept(rate):
    """Hoeffding: the share of n draws strays from its mean by more than sqrt(ln(2/δ) / 2n) with probability at most δ, here 10⁻⁹."""
    at = timeline_from_lengths(np.zeros((4, 100), np.int64), np.full(4, 100))
    mask = attention_mask(Dropout(rate, DropoutKey(11, 0), 0), at, at, 10)
    assert abs((mask > 0).mean() - (1 - rate)) <= np.sqrt(np.log(2e9) / (2 * mask.size))
    assert set(np.unique(mask)) == {0.0, 1 / (1 - rate)}


@pytest.mark.parametrize("word", [0, 1, 2**31, 2**32 - 1])
def test_threshold_is_exact(monkeypatch, word):
    """keep iff u ≥ round(p · 2³²), at the threshold itself and one either side of it."""
    monkeypatch.setattr("ttr_ref.dropout.philox4x32", lambda counter, key: np.full((4, 1, 1), word, np.uint32))
    for threshold in (word - 1, word, word + 1):
        if 0 <= threshold < 2**32:
            mask = dropout_mask(Dropout(threshold / 2**32, DropoutKey(0, 0), 0), np.arange(1), np.arange(1), np.arange(1))
            assert (mask[0, 0] > 0) == (word >= threshold)


def test_no_key_and_no_probability_draw_nothing(monkeypatch):
    def drawn(*_: object) -> None:
        raise AssertionError("the generator was called")

    monkeypatch.setattr("ttr_ref.dropout.philox4x32", drawn)
    assert dropout_at(0.5, None, 1, ATTENTION) is None
    assert dropout_at(0.0, DropoutKey(1, 2), 1, ATTENTION) is None
    at = Timeline(np.array([[0, PADDING]]), np.array([[0, 0]]), np.array([[0, 0]]))
    x = np.array([[[-0.0, np.nan, np.inf], [5e-324, 1.0, -1.0]]])
    for pass_through in (dropout_forward, dropout_backward):
        assert pass_through(x, None, at).tobytes() == x.tobytes()
    for pass_through in (head_dropout_forward, head_dropout_backward):
        assert pass_through(x[:, None], None, at).tobytes() == x.tobytes()
