"""What attention promises for every input: probabilities, masks, and that what is not read changes nothing."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy import ndarray

from tests.ref import plain
from tests.ref.bounds import EPS, attention_limits, same_bits, share
from tests.ref.cases import Problem, packed, problems, random_bias, rising_times, seeds
from ttr_ref.attention import attention_backward, attention_forward
from ttr_ref.config import TimeConfig
from ttr_ref.time_bias import NoBias, TableBias
from ttr_ref.timeline import PADDING, Timeline, timeline_from_lengths
from ttr_ref.tree import named_leaves, tree_map


def run(p: Problem) -> tuple:
    """((O, LSE), (dq, dk, dv, dbias)) and the cache."""
    o, lse, cache = attention_forward(*p.arguments)
    return (o, lse), attention_backward(p.do, p.dlse, cache), cache


def reads(p: Problem, i: int, j: int, b: int) -> bool:
    """Whether query i of row b reads key j, said once more in plain words."""
    if p.at_q.document[b, i] == PADDING or p.at_q.document[b, i] != p.at_k.document[b, j]:
        return False
    ahead = p.at_q.position[b, i] - p.at_k.position[b, j]
    return (ahead >= 0 or not p.causal) and (p.window is None or ahead < p.window)


@settings(max_examples=150)
@given(problems())
def test_one_row_at_a_time(p):
    """Each output once more, from the definition alone: a loop over the keys that the row reads, with dropout's mask drawn one value at a time."""
    (o, lse), _, cache = run(p)
    limits = attention_limits(p, cache)
    mask = np.ones(cache.p.shape) if p.drop is None else plain.attention_mask(p.drop, p.at_q, p.at_k, p.q.shape[1])
    expected_o, expected_lse = np.zeros_like(o), np.full_like(lse, -np.inf)
    b = bias_matrix(p)
    for row, h, i in np.ndindex(lse.shape):
        keys = [j for j in range(p.k.shape[2]) if reads(p, i, j, row)]
        if keys:
            g = h // (p.q.shape[1] // p.k.shape[1])
            s = p.k[row, g, keys] @ p.q[row, h, i] / np.sqrt(p.q.shape[-1]) + b[row, h, i, keys]
            e = np.exp(s - s.max())
            expected_o[row, h, i] = (mask[row, h, i, keys] * e / e.sum()) @ p.v[row, g, keys]
            expected_lse[row, h, i] = s.max() + np.log(e.sum())
    assert share(o, expected_o, 2 * limits.o) <= 1
    assert share(lse, expected_lse, 2 * limits.lse) <= 1


def bias_matrix(p: Problem) -> ndarray:
    """b of every query and key, read or not, from the table of formulas."""
    delta = np.abs(p.at_q.time[:, None, :, None] - p.at_k.time[:, None, None, :]).astype(float)
    per_head = {name: a[..., None, None] for name, a in p.bias._asdict().items()}
    match type(p.bias).__name__:
        case "LinearBias":
            return -np.log1p(np.exp(per_head["a"])) * delta / p.time.unit
        case "LogBias":
            return -np.log1p(np.exp(per_head["a"])) * np.log1p(delta / np.exp(per_head["rho"]))
        case "ExpBias":
            return sum(per_head["alpha"][:, m] * np.exp(-np.exp(per_head["log_rate"][:, m]) * delta) for m in range(p.bias.alpha.shape[1]))
        case "TableBias":
            u = np.log2(1 + delta / p.time.shortest)
            return np.stack([np.interp(u[:, 0], np.arange(row.size), row) for row in p.bias.table], 1)
    return np.zeros((1, p.q.shape[1], 1, 1)) * delta


@settings(max_examples=150)
@given(problems(dropout=False))
def test_rows_of_the_softmax_sum_to_one(p):
    """With V = 1 every output is 1: a sum of T_k terms, divided by it. An empty row has 0, LSE = −∞ and no gradients."""
    p = p._replace(v=np.ones_like(p.v))
    (o, lse), (dq, dk, _, dbias), cache = run(p)
    empty = ~np.array([[any(reads(p, i, j, b) for j in range(p.k.shape[2])) for i in range(p.q.shape[2])] for b in range(p.q.shape[0])])
    empty = np.broadcast_to(empty[:, None], lse.shape)
    assert np.all(o[empty] == 0)
    assert np.all(lse[empty] == -np.inf)
    assert np.all(dq[empty] == 0)
    assert share(o[~empty], 1.0, (p.k.shape[2] + 2) * EPS) <= 1
    assert np.isfinite(lse[~empty]).all()
    if empty.all():
        assert not dk.any()
        assert all(not g.any() for g in named_leaves(dbias).values())
    assert cache.p.min(initial=0) >= 0


@given(p=problems(), common=st.sampled_from([0.0, 1.0, 1000.0]))
def test_gradients_of_the_scores_of_a_row_sum_to_zero(p, common):
    """Softmax does not see what is added to a whole row, so without dLSE the gradients of a table, which adds up to one for each pair, cancel."""
    heads = p.q.shape[1]
    p = p._replace(bias=TableBias(common + np.zeros((heads, 4))), dlse=None)
    _, (_, _, _, dbias), cache = run(p)
    limits = attention_limits(p, cache)
    assert np.all(np.abs(dbias.table.sum(1)) <= limits.dbias.table.sum(1))


@settings(max_examples=150)
@given(p=problems(self_attention=True), cut=st.integers(0, 9), poison=st.booleans(), seed=seeds)
def test_the_future_changes_no_bit_of_the_past(p, cut, poison, seed):
    """Other queries, keys, values and times from `cut` on, or NaN in their places, in every row and document."""
    rng = np.random.default_rng(seed)
    later = np.arange(p.q.shape[2]) >= cut

    def other(a: ndarray) -> ndarray:
        return np.where(later[:, None], np.nan if poison else rng.standard_normal(a.shape), a)

    time = p.at_k.time.astype(float)
    no_time = np.nan if poison and not isinstance(p.bias, TableBias) else time + 1e9  # NaN lies between no two knots
    at, changed_at = p.at_k._replace(time=time), p.at_k._replace(time=np.where(later, no_time, time))
    p = p._replace(causal=True, at_q=at, at_k=at)
    changed = p._replace(q=other(p.q), k=other(p.k), v=other(p.v), at_q=changed_at, at_k=changed_at)
    (o, lse), _, _ = run(p)
    changed_o, changed_lse, _ = attention_forward(*changed.arguments)
    assert changed_o[:, :, :cut].tobytes() == o[:, :, :cut].tobytes()
    assert changed_lse[:, :, :cut].tobytes() == lse[:, :, :cut].tobytes()


@settings(max_examples=150)
@given(p=problems(self_attention=True), cut=st.integers(0, 9), seed=seeds)
def test_a_loss_on_the_past_has_no_gradient_in_the_future(p, cut, seed):
    """... and its gradients in the past are the same bits whatever the future holds."""
    rng = np.random.default_rng(seed)
    later = (np.arange(p.q.shape[2]) >= cut)[:, None]
    p = p._replace(causal=True, do=np.where(later, 0, p.do), dlse=None)
    _, gradients, _ = run(p)
    q, k, v = (np.where(later, rng.standard_normal(a.shape), a) for a in (p.q, p.k, p.v))
    _, changed, _ = run(p._replace(q=q, k=k, v=v))
    assert same_bits(tree_map(lambda g: g + 0.0, changed), tree_map(lambda g: g + 0.0, gradients))  # −0 + 0 is 0
    assert all(not g[:, :, cut:].any() for g in gradients[:3])


@settings(max_examples=150)
@given(p=problems(), whole_document=st.booleans(), seed=seeds)
def test_nan_where_nothing_is_read(p, whole_document, seed):
    """NaN in padding, or in all of one document: no bit of anything else changes, forward and backward."""
    document = np.random.default_rng(seed).choice(p.at_k.document.ravel()) if whole_document else PADDING
    (o, lse), (dq, dk, dv, dbias), _ = run(p)
    spoil_q = ((p.at_q.document == PADDING) | (p.at_q.document == document))[:, None]
    spoil_k = ((p.at_k.document == PADDING) | (p.at_k.document == document))[:, None]

    def spoilt(a: ndarray | None, where: ndarray) -> ndarray | None:
        return None if a is None else np.where(where.reshape(*where.shape, *[1] * (a.ndim - 3)), np.nan, a)

    def without_times(at: Timeline) -> Timeline:
        return at._replace(time=np.where(at.is_token, at.time, np.iinfo(np.int64).min if at.time.dtype == np.int64 else np.nan))

    bad = p._replace(
        q=spoilt(p.q, spoil_q), k=spoilt(p.k, spoil_k), v=spoilt(p.v, spoil_k), do=spoilt(p.do, spoil_q), dlse=spoilt(p.dlse, spoil_q),
        at_q=without_times(p.at_q), at_k=without_times(p.at_k),
    )
    (bad_o, bad_lse), (bad_dq, bad_dk, bad_dv, bad_dbias), _ = run(bad)
    for good, bad_one, spoil in ((o, bad_o, spoil_q), (lse, bad_lse, spoil_q), (dq, bad_dq, spoil_q), (dk, bad_dk, spoil_k), (dv, bad_dv, spoil_k)):
        if document == PADDING:
            spoil = np.zeros_like(spoil)
        kept = np.broadcast_to(~spoil, good.shape[:3])
        assert good[kept].tobytes() == bad_one[kept].tobytes()
    if document == PADDING:
        assert same_bits(bad_dbias, dbias)


@settings(max_examples=150)
@given(p=problems(), order=st.permutations(range(3)))
def test_rows_in_another_order(p, order):
    """Bit for bit, with dropout too: a document's index goes where its row goes."""
    order = [b for b in order if b < p.q.shape[0]]
    (o, lse), (dq, dk, dv, dbias), cache = run(p)
    at_q, at_k = (Timeline(*(a[order] for a in at)) for at in (p.at_q, p.at_k))
    dlse = None if p.dlse is None else p.dlse[order]
    moved = p._replace(q=p.q[order], k=p.k[order], v=p.v[order], do=p.do[order], dlse=dlse, at_q=at_q, at_k=at_k)
    moved_outputs, moved_gradients, _ = run(moved)
    assert same_bits((moved_outputs, moved_gradients[:3]), ((o[order], lse[order]), (dq[order], dk[order], dv[order])))
    limits = attention_limits(p, cache).dbias  # the bias's gradient is a sum over the rows, now in another order
    for name, g in named_leaves(moved_gradients[3]).items():
        assert share(g, getattr(dbias, name), 2 * getattr(limits, name)) <= 1


@settings(max_examples=150)
@given(p=problems(dropout=False), seed=seeds)
def test_heads_in_another_order(p, seed):
    """Groups of heads change places, and heads within their group, with their parameters."""
    heads, groups = p.q.shape[1], p.k.shape[1]
    rng = np.random.default_rng(seed)
    by_group = rng.permutation(groups)
    of_heads = np.concatenate([g * (heads // groups) + rng.permutation(heads // groups) for g in by_group])
    (o, lse), (dq, dk, dv, dbias), cache = run(p)
    dlse = None if p.dlse is None else p.dlse[:, of_heads]
    moved = p._replace(
        q=p.q[:, of_heads], k=p.k[:, by_group], v=p.v[:, by_group], do=p.do[:, of_heads], dlse=dlse, bias=tree_map(lambda a: a[of_heads], p.bias)
    )
    outputs, (moved_dq, moved_dk, moved_dv, moved_dbias), _ = run(moved)
    assert same_bits((outputs, moved_dq, moved_dbias), ((o[:, of_heads], lse[:, of_heads]), dq[:, of_heads], tree_map(lambda a: a[of_heads], dbias)))
    limits = attention_limits(p, cache)  # a shared head's gradient is a sum over its readers, now in another order
    assert share(moved_dk, dk[:, by_group], 2 * limits.dk[:, by_group]) <= 1
    assert share(moved_dv, dv[:, by_group], 2 * limits.dv[:, by_group]) <= 1


@settings(max_examples=150)
@given(problems())
def test_shared_heads_equal_repeated_heads(p):
    """Outputs bit for bit; the gradient of a shared head is the sum over those who read it."""
    heads, groups = p.q.shape[1], p.k.shape[1]
    (o, lse), (dq, dk, dv, dbias), _ = run(p)
    each = p._replace(k=np.repeat(p.k, heads // groups, 1), v=np.repeat(p.v, heads // groups, 1))
    outputs, (each_dq, each_dk, each_dv, each_dbias), _ = run(each)
    assert same_bits((outputs, each_dq, each_dbias), ((o, lse), dq, dbias))
    for shared, alone in ((dk, each_dk), (dv, each_dv)):
        for g in range(groups):
            readers = alone[:, g * heads // groups : (g + 1) * heads // groups]
            assert share(shared[:, g], readers.sum(1), (heads // groups) * EPS * np.abs(readers).sum(1)) <= 1


@settings(max_examples=40)
@given(seed=seeds, power=st.integers(-300, 300))
def test_values_scaled_by_a_power_of_two(seed, power):
    """Output and values are linear, and a power of two changes no bit of either."""
    rng = np.random.default_rng(seed)
    at = timeline_from_lengths(rising_times(rng, 1, 6, "float"), np.array([6]))
    q, k, v = rng.standard_normal((3, 1, 2, 6, 4))
    o, _, _ = attention_forward(q, k, v, at, at, random_bias("log", 2, rng), TimeConfig())
    rng = np.random.default_rng(seed)
    rising_times(rng, 1, 6, "float")
    rng.standard_normal((3, 1, 2, 6, 4))
    scaled, _, _ = attention_forward(q, k, np.ldexp(v, power), at, at, random_bias("log", 2, rng), TimeConfig())
    assert np.array_equal(scaled, np.ldexp(o, power))


def test_heads_that_cannot_share():
    at = timeline_from_lengths(np.zeros((1, 1)), np.array([1]))
    with pytest.raises(ValueError, match="attention: 3 query heads cannot share 2 key/value heads evenly"):
        attention_forward(np.ones((1, 3, 1, 2)), np.ones((1, 2, 1, 2)), np.ones((1, 2, 1, 2)), at, at, NoBias(), TimeConfig())


@given(seed=seeds, kind=st.sampled_from(["int", "float"]))
def test_times_that_go_backwards(seed, kind):
    """A causal query may not read a key later in time; without causality it may, and elsewhere times may do as they like."""
    rng = np.random.default_rng(seed)
    at = packed(rng, 1, 6, "unix" if kind == "int" else "float")
    q = rng.standard_normal((1, 1, 6, 2))
    attention_forward(q, q, q, at, at, NoBias(), TimeConfig())
    pairs = [i for i in range(1, 6) if at.is_token[0, i] and at.document[0, i] == at.document[0, i - 1]]
    if pairs:
        i = rng.choice(pairs)
        time = at.time.copy()
        time[0, i] = time[0, i - 1] - 1
        backwards = at._replace(time=time)
        with pytest.raises(ValueError, match=f"timeline: times go backwards in document {at.document[0, i]}: .* is followed by {time[0, i]}"):
            attention_forward(q, q, q, backwards, backwards, NoBias(), TimeConfig())
        attention_forward(q, q, q, backwards, backwards, NoBias(), TimeConfig(), causal=False)
