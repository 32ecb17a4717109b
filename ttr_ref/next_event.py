"""What comes next, and when: the two losses of the model and their order.

The joint density of the next token k and the next gap g factorises either way,

    token_then_time:   p(k | past) · p(g | past, k)       the time head's state gets the embedding of k added
    time_then_token:   p(g | past) · p(k | past, g)       the token's state becomes z + geglu(rms_norm(z + time2vec(t_{i+1})))

and −ln of it is the sum of both parts. (Adding the features of t_{i+1} to the state of the logits alone would make hour and token independent
factors; as in a block they enter before a norm and a gated feed-forward, where they can meet, and the residual stays clean.) "both" trains the
mean of the two on one trunk. Without a time head tokens see only the past and times are not predicted.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Inexact, Integer, Num
from numpy import ndarray

from .config import BlockConfig, ModelConfig, TimeHeadOrder
from .cross_entropy import CrossEntropyCache, cross_entropy_backward, cross_entropy_forward
from .feed_forward_geglu import FeedForwardGegluCache, FeedForwardGegluParams, feed_forward_geglu_backward, feed_forward_geglu_forward
from .float_dtype import at_precision_of, round_to_storage
from .rms_norm import RMSNormCache, rms_norm_backward, rms_norm_forward
from .time2vec import Time2VecCache, Time2VecParams, time2vec_backward, time2vec_forward
from .time_head import MixtureParams, TimeHeadCache, time_head_backward, time_head_forward
from .timeline import Timeline
from .tree import tree_map


class Batch(NamedTuple):
    """Tokens with their places, and what follows each: token, time, and whether that is to be predicted."""

    tokens: Integer[ndarray, "B T"]
    at: Timeline
    next_tokens: Integer[ndarray, "B T"]
    next_times: Num[ndarray, "B T"]
    is_target: Bool[ndarray, "B T"]


class NextTimeParams(NamedTuple):
    """How the time of the next event enters the state from which its token is predicted."""

    time2vec: Time2VecParams
    norm: Inexact[ndarray, "E"]
    feed_forward: FeedForwardGegluParams


class TimeHeadParams(NamedTuple):
    """The mixture, and the way of the next time to the token (None unless some order is time_then_token)."""

    mixture: MixtureParams
    next_time: NextTimeParams | None


class NextTimeCache(NamedTuple):
    """What backward needs."""

    time2vec: Time2VecCache
    norm: RMSNormCache
    feed_forward: FeedForwardGegluCache


class EventNats(NamedTuple):
    """−ln p of each of the N targets in one order: of the token, and of the gap (None without a time head)."""

    order: TimeHeadOrder
    token: Inexact[ndarray, "N"]
    time: Inexact[ndarray, "N"] | None


class OrderCache(NamedTuple):
    """What backward needs of one order."""

    order: TimeHeadOrder
    lse: Inexact[ndarray, "N"]
    token: CrossEntropyCache
    next_time: NextTimeCache | None
    time: TimeHeadCache | None


class NextEventCache(NamedTuple):
    """What backward needs."""

    orders: list[OrderCache]
    batch: Batch
    embedding: Inexact[ndarray, "V E"]
    z_shape: tuple[int, ...]


def next_timeline(batch: Batch) -> Timeline:
    """Where and when the events stand that follow; padding where none is to be predicted."""
    return Timeline(np.where(batch.is_target, batch.at.document, -1), batch.at.position + 1, batch.next_times)


def gaps(batch: Batch) -> ndarray:
    """t_{i+1} − t_i of the N targets, subtracted in the type of the times, then float64."""
    return (batch.next_times - batch.at.time)[batch.is_target].astype(np.float64)


def target_tokens(batch: Batch, vocabulary: int) -> Integer[ndarray, "N"]:
    """The N tokens that are to be predicted. Raises ValueError if one is outside the vocabulary."""
    wrong = batch.is_target & ((batch.next_tokens < 0) | (batch.next_tokens >= vocabulary))
    if wrong.any():
        b, t = np.argwhere(wrong)[0]
        raise ValueError(f"next_event: target {batch.next_tokens[b, t]} at row {b}, place {t} is outside the vocabulary of {vocabulary}")
    return batch.next_tokens[batch.is_target]


def next_event_forward(
    z: Inexact[ndarray, "B T E"],
    embedding: Inexact[ndarray, "V E"],
    w_vocab: Inexact[ndarray, "E V"],
    head: TimeHeadParams | None,
    batch: Batch,
    config: ModelConfig,
) -> tuple[list[EventNats], list[Inexact[ndarray, "N"]], NextEventCache]:
    """(nats, LSE of the logits, cache), the first two with one entry for each order. z are the normed states.

    Raises ValueError if a target is outside the vocabulary.
    """
    target, tokens = batch.is_target, target_tokens(batch, w_vocab.shape[1])
    states = z[target]
    nats, caches = [], []
    for order in orders_of(config):
        token_state, time_state, next_time_cache, time_nats, time_cache = states, states, None, None, None
        if head is not None and order == "time_then_token" and head.next_time is not None:
            y, next_time_cache = next_time_forward(z, next_timeline(batch), head.next_time, config.block)
            token_state = y[target]
        token_nats, lse, token_cache = cross_entropy_forward(token_state, w_vocab, tokens, config.loss_chunk)
        if head is not None:
            if order == "token_then_time":
                time_state = states + embedding[tokens]
            time_nats, time_cache = time_head_forward(time_state, gaps(batch), head.mixture, config.block.time.resolution)
        nats.append(EventNats(order, token_nats, time_nats))
        caches.append(OrderCache(order, lse, token_cache, next_time_cache, time_cache))
    return nats, [c.lse for c in caches], NextEventCache(caches, batch, embedding, z.shape)


def next_event_backward(
    dnats: list[EventNats], dlse: list[Inexact[ndarray, "N"]], cache: NextEventCache
) -> tuple[Inexact[ndarray, "B T E"], Inexact[ndarray, "V E"], Inexact[ndarray, "E V"], TimeHeadParams | None]:
    """(dz, dembedding, dw_vocab, dhead), each the sum over the orders: a state that was used twice gets both gradients."""
    batch, target = cache.batch, cache.batch.is_target
    tokens = batch.next_tokens[target]
    w = cache.orders[0].token.w
    dstates = np.zeros((tokens.size, cache.z_shape[-1]), w.dtype)
    dembedding, dw = np.zeros_like(cache.embedding), np.zeros_like(w)
    dmixture: MixtureParams | None = None
    dnext_time: NextTimeParams | None = None
    dz = np.zeros(cache.z_shape, w.dtype)
    for (order, dtoken, dtime), dlse_order, kept in zip(dnats, dlse, cache.orders, strict=True):
        dtoken_state, dw_order = cross_entropy_backward(dtoken, dlse_order, kept.token)
        dw = dw + dw_order
        if kept.next_time is None:
            dstates = dstates + dtoken_state
        else:
            dz, dnext_time = next_time_backward(scattered(dtoken_state, target), kept.next_time)
        if kept.time is not None and dtime is not None:
            dtime_state, dmixture_order = time_head_backward(dtime, kept.time)
            dstates = dstates + dtime_state
            dmixture = dmixture_order if dmixture is None else tree_map(np.add, dmixture, dmixture_order)
            if order == "token_then_time":
                np.add.at(dembedding, tokens, dtime_state)
    dhead = None if dmixture is None else TimeHeadParams(dmixture, dnext_time)
    return dz + scattered(dstates, target), dembedding, dw, dhead


def next_time_forward(
    z: Inexact[ndarray, "B T E"], at_next: Timeline, params: NextTimeParams, config: BlockConfig
) -> tuple[Inexact[ndarray, "B T E"], NextTimeCache]:
    """z + geglu(rms_norm(z + time2vec(t_{i+1}))): the state once the time of the next event is known."""
    features, time2vec_cache = time2vec_forward(at_next, params.time2vec, config.time)
    normed, norm_cache = rms_norm_forward(z + at_precision_of(z, features), params.norm, config.norm_eps)
    y, feed_forward_cache = feed_forward_geglu_forward(round_to_storage(normed, config.float_dtype), params.feed_forward, config)
    return round_to_storage(z + y, config.float_dtype), NextTimeCache(time2vec_cache, norm_cache, feed_forward_cache)


def next_time_backward(dy: Inexact[ndarray, "B T E"], cache: NextTimeCache) -> tuple[Inexact[ndarray, "B T E"], NextTimeParams]:
    """(dz, dparams): dz = dy + (through the feed-forward), as in a block."""
    dnormed, dfeed_forward = feed_forward_geglu_backward(dy, cache.feed_forward)
    du, dnorm = rms_norm_backward(dnormed, cache.norm)
    return dy + du, NextTimeParams(time2vec_backward(du, cache.time2vec), dnorm, dfeed_forward)


def orders_of(config: ModelConfig) -> tuple[TimeHeadOrder, ...]:
    """The orders trained; without a time head the token alone, from the past."""
    return ("token_then_time",) if config.time_head is None else config.time_head.orders


def scattered(values: Inexact[ndarray, "N E"], target: Bool[ndarray, "B T"]) -> Inexact[ndarray, "B T E"]:
    """The N rows back at their places, zeros elsewhere."""
    placed = np.zeros((*target.shape, values.shape[-1]), values.dtype)
    placed[target] = values
    return placed
