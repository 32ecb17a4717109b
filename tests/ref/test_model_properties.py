"""The whole model: what it does not see changes nothing, and how its work is arranged changes nothing."""

from typing import NamedTuple

import numpy as np
from hypothesis import assume, given, settings, strategies as st
from numpy import ndarray

from tests.ref.bounds import reordered_share, same_bits, sensitivity
from tests.ref.cases import ALL_DROPOUTS, lively_model, model_configs, packed, random_batch, rising_times, seeds
from ttr_ref.config import ModelConfig
from ttr_ref.dropout import DropoutKey
from ttr_ref.float_dtype import FloatDType
from ttr_ref.model import ModelParams, loss_backward, loss_forward, model_forward
from ttr_ref.next_event import Batch
from ttr_ref.timeline import PADDING, Timeline, timeline_from_lengths
from ttr_ref.tree import tree_map

dtypes = st.sampled_from(list(FloatDType))


def trained(params: ModelParams, batch: Batch, config: ModelConfig, key: DropoutKey | None, **options: object) -> tuple:
    """(loss, nats, gradients)."""
    loss, nats, cache = loss_forward(params, batch, config, key, z_loss=1e-3, **options)
    return np.asarray(loss), [(n.token, n.time) for n in nats], loss_backward(1.0, cache)


@settings(max_examples=80)
@given(data=st.data(), dtype=dtypes, cut=st.integers(0, 7), no_number=st.booleans(), seed=seeds)
def test_the_future_changes_no_bit_of_the_past(data, dtype, cut, no_number, seed):
    """Other tokens and times from `cut` on, in every row; or NaN in place of the times (but for a table, which has no place for NaN)."""
    config = data.draw(model_configs(float_dtype=dtype, dropout=ALL_DROPOUTS))
    rng = np.random.default_rng(seed)
    at = packed(rng, 2, 7, "unix")
    at = at._replace(time=at.time.astype(float))
    batch = random_batch(rng, config, at)
    later = np.arange(7) >= cut
    no_number &= config.block.time_bias != "table"
    changed_at = at._replace(time=np.where(later, np.nan if no_number else at.time + 1e6, at.time))
    tokens = np.where(later, rng.integers(0, config.vocab_size, at.time.shape), batch.tokens)
    params, key = lively_model(config, seed), DropoutKey(seed, 1)
    z, _ = model_forward(params, batch.tokens, at, config, key)
    changed_z, _ = model_forward(params, tokens, changed_at, config, key)
    assert z.dtype == changed_z.dtype == dtype.compute
    assert changed_z[:, :cut].tobytes() == z[:, :cut].tobytes()
    known = batch.is_target & (np.arange(7) < cut - 1)  # both the event and what follows it lie before the cut
    assume(known.any() and not no_number)
    next_times = np.where(known, batch.next_times, batch.next_times + 1e6)
    changed = Batch(tokens, changed_at, np.where(known, batch.next_tokens, 0), next_times, known)
    nats, changed_nats = (loss_forward(params, b, config, key)[1] for b in (batch._replace(is_target=known), changed))
    assert same_bits(tuple(map(tuple, (n[1:] for n in changed_nats))), tuple(map(tuple, (n[1:] for n in nats))))


@settings(max_examples=60)
@given(data=st.data(), dtype=dtypes, times=st.sampled_from(["unix", "float"]), seed=seeds)
def test_padding_is_never_read(data, dtype, times, seed):
    """Tokens outside the vocabulary, NaN or the smallest integer as times: loss, nats and all gradients keep their bits."""
    config = data.draw(model_configs(float_dtype=dtype, dropout=ALL_DROPOUTS))
    rng = np.random.default_rng(seed)
    at = timeline_from_lengths(rising_times(rng, 3, 6, times), rng.integers(0, 7, 3))
    batch = random_batch(rng, config, at)
    assume(batch.is_target.any())
    no_time = np.nan if times == "float" else np.iinfo(np.int64).min
    bad = Batch(
        np.where(at.is_token, batch.tokens, -5), at._replace(time=np.where(at.is_token, at.time, no_time)),
        np.where(batch.is_target, batch.next_tokens, 10**6), np.where(batch.is_target, batch.next_times, no_time), batch.is_target,
    )
    params, key = lively_model(config, seed), DropoutKey(seed, 1)
    loss, nats, gradients = trained(params, batch, config, key)
    bad_loss, bad_nats, bad_gradients = trained(params, bad, config, key)
    assert same_bits((bad_loss, *bad_nats, bad_gradients), (loss, *nats, gradients))


@settings(max_examples=50)
@given(data=st.data(), dtype=dtypes, mode=st.sampled_from(["block", "every:1", "every:2", "every:3", "every:7"]), seed=seeds)
def test_checkpointing_changes_no_bit(data, dtype, mode, seed):
    config = data.draw(model_configs(float_dtype=dtype, dropout=ALL_DROPOUTS, layers=data.draw(st.integers(1, 5))))
    rng = np.random.default_rng(seed)
    batch = random_batch(rng, config, packed(rng, 2, 5, "unix"))
    assume(batch.is_target.any())
    params, key = lively_model(config, seed), DropoutKey(seed, 1)
    loss, nats, gradients = trained(params, batch, config, key)
    again, nats_again, gradients_again = trained(params, batch, config, key, checkpointing=mode)
    assert same_bits((again, *nats_again, gradients_again), (loss, *nats, gradients))


@settings(max_examples=40)
@given(data=st.data(), dtype=dtypes, order=st.permutations(range(3)), seed=seeds)
def test_rows_in_another_order(data, dtype, order, seed):
    """States keep their bits, with all dropouts: who else is in the batch does not matter."""
    config = data.draw(model_configs(float_dtype=dtype, dropout=ALL_DROPOUTS))
    rng = np.random.default_rng(seed)
    at = packed(rng, 3, 6, "unix")
    tokens, order = rng.integers(0, config.vocab_size, at.time.shape), list(order)
    params, key = lively_model(config, seed), DropoutKey(seed, 1)
    z, _ = model_forward(params, tokens, at, config, key)
    moved, _ = model_forward(params, tokens[order], Timeline(*(a[order] for a in at)), config, key)
    assert moved.tobytes() == z[order].tobytes()


class Document(NamedTuple):
    tokens: ndarray
    times: ndarray


def arranged(documents: list[Document], rows: list[list[int]], places: int) -> Batch:
    """The documents put into rows one after the other; each predicts all its tokens but the first."""
    at = Timeline(*(np.full((len(rows), places), fill) for fill in (PADDING, 0, 0)))
    batch = Batch(np.zeros_like(at.time), at, np.zeros_like(at.time), np.zeros_like(at.time), np.zeros_like(at.time, bool))
    for b, row in enumerate(rows):
        start = 0
        for d in row:
            tokens, times = documents[d]
            here = (b, slice(start, start + tokens.size))
            at.document[here], at.position[here], at.time[here], batch.tokens[here] = d, np.arange(tokens.size), times, tokens
            before = (b, slice(start, start + max(tokens.size - 1, 0)))
            batch.next_tokens[before], batch.next_times[before], batch.is_target[before] = tokens[1:], times[1:], True
            start += tokens.size
    return batch


def by_document(values: ndarray, batch: Batch) -> ndarray:
    """One number for each target, in the order of documents and positions."""
    return values[np.lexsort((batch.at.position[batch.is_target], batch.at.document[batch.is_target]))]


def longest_sum(config: ModelConfig, batch: Batch) -> int:
    """The longest sum anywhere in forward or backward: over features, hidden units, the vocabulary, or places."""
    return max(config.block.embed_dim * 3, 2 * config.block.hidden_dim, config.vocab_size, batch.tokens.size)


@settings(max_examples=40)
@given(data=st.data(), lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4), order=st.randoms(use_true_random=False), seed=seeds)
def test_packing_changes_nothing(data, lengths, order, seed):
    """A document to a row with padding, or all packed in another order into one row or two: nats of each event and all gradients, with dropout.

    The shapes differ, so sums run in another order; what that may do is what a relative change of the weights by (longest sum)·eps does.
    """
    assume(max(lengths) > 1)
    config = data.draw(model_configs(dropout=ALL_DROPOUTS))
    rng = np.random.default_rng(seed)
    documents = [Document(rng.integers(0, config.vocab_size, n), rising_times(rng, 1, n, "unix")[0]) for n in lengths]
    params, key = lively_model(config, seed), DropoutKey(seed, 1)
    alone = arranged(documents, [[d] for d in range(len(documents))], max(lengths))
    shuffled = order.sample(range(len(documents)), len(documents))
    cut = order.randint(0, len(documents))
    rows = [shuffled[:cut], shuffled[cut:]] if order.random() < 0.5 else [shuffled]
    together = arranged(documents, rows, sum(lengths) + 1)

    def result(params: ModelParams, batch: Batch) -> tuple:
        loss, nats, gradients = trained(params, batch, config, key)
        return loss, tuple(tuple(None if x is None else by_document(x, batch) for x in n) for n in nats), gradients

    limits = sensitivity(lambda p: result(p, alone), params)
    assert reordered_share(result(params, together), result(params, alone), limits, longest_sum(config, together)) <= 1


@settings(max_examples=40)
@given(data=st.data(), seed=seeds)
def test_parts_of_a_batch_add_up(data, seed):
    """Gradient accumulation: with the whole batch's number of targets as normaliser, losses and gradients of its rows sum to the whole's."""
    config = data.draw(model_configs(dropout=ALL_DROPOUTS))
    rng = np.random.default_rng(seed)
    batch = random_batch(rng, config, packed(rng, 4, 5, "unix"))
    cut = data.draw(st.integers(1, 3))
    params, key, count = lively_model(config, seed), DropoutKey(seed, 1), float(batch.is_target.sum())
    assume(count > 0)

    def result(params: ModelParams, rows: slice) -> tuple:
        part = Batch(batch.tokens[rows], batch.at.places(rows, slice(None)), *(a[rows] for a in batch[2:]))
        loss, _, gradients = trained(params, part, config, key, normalizer=count)
        return loss, gradients

    whole = result(params, slice(None))
    parts = tree_map(np.add, result(params, slice(None, cut)), result(params, slice(cut, None)))
    limits = sensitivity(lambda p: result(p, slice(None)), params)
    assert reordered_share(parts, whole, limits, longest_sum(config, batch)) <= 1
