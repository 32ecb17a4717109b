"""The temporal transformer: tokens with times in, the next token and the next time out.

    x₀ = embedding[token],   x_l = block_l(x_{l−1}, t),   z = rms_norm(x_L)
    token logits = z W_vocab, W_vocab = embeddingᵀ when tied;   next time: time_head.py;   both and their order: next_event.py

`loss_forward` and `loss_backward` are the whole of a training step but for the optimiser; `model_decode` is one step of generation.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Inexact, Integer, Num
from numpy import ndarray

from .config import BlockConfig, ModelConfig
from .dropout import DropoutKey
from .embedding import embedding_backward, embedding_forward
from .feed_forward_geglu import feed_forward_geglu_init
from .float_dtype import round_to_storage
from .gradient_checkpointing import ChainCache, chain_backward, chain_forward
from .kv_ring import KVRing, kv_ring_empty, kv_ring_next
from .next_event import Batch, EventNats, NextEventCache, NextTimeParams, TimeHeadParams, next_event_backward, next_event_forward
from .parameters import as_masters, is_frequency, is_matrix, matrix_init
from .rms_norm import RMSNormCache, rms_norm_backward, rms_norm_forward
from .time2vec import time2vec_init
from .time_head import mixture_init
from .timeline import Timeline
from .transformer_block import (
    TransformerBlockParams,
    transformer_block_backward,
    transformer_block_decode,
    transformer_block_forward,
    transformer_block_init,
)
from .tree import named_tree_map


class ModelParams(NamedTuple):
    """All parameters; w_vocab is None when the output is tied to the embedding, time_head when times are not predicted."""

    embedding: Inexact[ndarray, "V E"]
    blocks: tuple[TransformerBlockParams, ...]
    norm_final: Inexact[ndarray, "E"]
    w_vocab: Inexact[ndarray, "E V"] | None
    time_head: TimeHeadParams | None


class ModelCache(NamedTuple):
    """What backward needs of the trunk."""

    params: ModelParams
    tokens: Integer[ndarray, "B T"]
    at: Timeline
    chain: ChainCache
    norm_final: RMSNormCache
    config: ModelConfig


class LossCache(NamedTuple):
    """What backward needs of the whole."""

    model: ModelCache
    next_event: NextEventCache
    lse: list[Inexact[ndarray, "N"]]
    nats: list[EventNats]
    normalizer: float
    z_loss: float
    time_weight: float


def model_init(config: ModelConfig, seed: int) -> ModelParams:
    """Master weights; those of each block as transformer_block_init draws them. float64 for f64, else float32; frequencies are float64 always."""
    rng, block = np.random.default_rng(seed), config.block
    e = block.embed_dim
    embedding = rng.standard_normal((config.vocab_size, e)) / np.sqrt(e)
    blocks = tuple(transformer_block_init(block, rng, config.layers) for _ in range(config.layers))
    head = None
    if config.time_head is not None:
        sees_time = "time_then_token" in config.time_head.orders
        head = TimeHeadParams(
            mixture_init(e, config.time_head.components, block.time, rng),
            NextTimeParams(time2vec_init(e, block.time), np.ones(e), feed_forward_geglu_init(block, rng, config.layers)) if sees_time else None,
        )
    params = ModelParams(embedding, blocks, np.ones(e), None if config.tied else matrix_init(rng, e, config.vocab_size), head)
    return as_masters(params, block.float_dtype)


def decays(params: ModelParams) -> Any:
    """1 for the leaves that AdamW decays, 0 for the others."""
    return named_tree_map(lambda name, _: float(is_matrix(name)), params)


def learning_rate_shares(params: ModelParams, config: BlockConfig) -> Any:
    """The share of the learning rate each leaf gets: 1, but unit / span for frequencies.

    A frequency moves the phase of the latest time by span / unit times its own step; with this share that is one learning rate of phase.
    """
    share = min(1.0, config.time.unit / config.time.span)
    return named_tree_map(lambda name, _: share if is_frequency(name) else 1.0, params)


def compute_copy(params: ModelParams, config: ModelConfig) -> ModelParams:
    """The weights as storage holds them: matrices rounded, the few other parameters as they are."""
    dtype = config.block.float_dtype
    return named_tree_map(lambda name, a: round_to_storage(a, dtype) if is_matrix(name) else a, params)


def model_forward(
    params: ModelParams,
    tokens: Integer[ndarray, "B T"],
    at: Timeline,
    config: ModelConfig,
    key: DropoutKey | None = None,
    checkpointing: str = "none",
) -> tuple[Inexact[ndarray, "B T E"], ModelCache]:
    """(z, cache): the normed states. key None draws no dropout."""
    x = embedding_forward(tokens, params.embedding, at)
    blocks = [
        partial(transformer_block_forward, params=block, at=at, config=config.block, key=key, layer=layer)
        for layer, block in enumerate(params.blocks)
    ]
    x, chain = chain_forward(x, blocks, checkpointing)
    z, norm_cache = rms_norm_forward(x, params.norm_final, config.block.norm_eps)
    return round_to_storage(z, config.block.float_dtype), ModelCache(params, tokens, at, chain, norm_cache, config)


def model_backward(dz: Inexact[ndarray, "B T E"], cache: ModelCache) -> ModelParams:
    """Gradients of the trunk's parameters; those of w_vocab and time_head, which it does not use, are None."""
    params, tokens, at, chain, norm_cache, config = cache
    dx, dnorm_final = rms_norm_backward(dz, norm_cache)
    dx, dblocks = chain_backward(round_to_storage(dx, config.block.float_dtype), transformer_block_backward, chain)
    return ModelParams(embedding_backward(dx, tokens, params.embedding, at), dblocks, dnorm_final, None, None)


def loss_forward(
    params: ModelParams,
    batch: Batch,
    config: ModelConfig,
    key: DropoutKey | None = None,
    z_loss: float = 0.0,
    time_weight: float = 1.0,
    normalizer: float | None = None,
    checkpointing: str = "none",
) -> tuple[Any, list[EventNats], LossCache]:
    """(loss, nats of each target in each order, cache).

    The loss is the sum over targets of (token nats + time_weight · time nats + z_loss · LSE²), averaged over the orders, divided by the
    normaliser: the number of targets, or when the batch is one part of a larger one, the number of targets of all parts, so that the parts'
    losses and gradients add up.
    Raises ValueError if there is no target.
    """
    weights = compute_copy(params, config)
    z, model_cache = model_forward(weights, batch.tokens, batch.at, config, key, checkpointing)
    w_vocab = weights.embedding.T if weights.w_vocab is None else weights.w_vocab
    nats, lse, next_cache = next_event_forward(z, weights.embedding, w_vocab, weights.time_head, batch, config)
    count = float(batch.is_target.sum()) if normalizer is None else normalizer
    if count == 0:
        raise ValueError("loss: the batch has nothing to predict")
    total = sum((n.token + z_loss * s * s).sum() + (0 if n.time is None else time_weight * n.time.sum()) for n, s in zip(nats, lse, strict=True))
    return total / (count * len(nats)), nats, LossCache(model_cache, next_cache, lse, nats, count, z_loss, time_weight)


def loss_backward(dloss: float, cache: LossCache) -> ModelParams:
    """Gradients of dloss · loss for every parameter. A tied embedding is used at both ends and gets both gradients."""
    config = cache.model.config
    each = dloss / (cache.normalizer * len(cache.nats))
    dnats = [
        EventNats(n.order, np.full_like(n.token, each), None if n.time is None else np.full_like(n.time, cache.time_weight * each))
        for n in cache.nats
    ]
    dlse = [s * s.dtype.type(2 * cache.z_loss * each) for s in cache.lse]
    dz, dembedding, dw_vocab, dhead = next_event_backward(dnats, dlse, cache.next_event)
    grads = model_backward(round_to_storage(dz, config.block.float_dtype), cache.model)
    dembedding = grads.embedding + dembedding + (dw_vocab.T if config.tied else 0)
    return grads._replace(embedding=dembedding, w_vocab=None if config.tied else dw_vocab, time_head=dhead)


def decode_start(config: ModelConfig, rows: int, time_dtype: type[np.int64] | type[np.float64] = np.int64) -> tuple[KVRing, ...]:
    """An empty ring for each block.

    Raises ValueError if the model has no window: a ring needs a size.
    """
    block = config.block
    if block.window is None:
        raise ValueError("decode: the model sees everything before (window is None); a ring buffer needs a window")
    return tuple(kv_ring_empty(rows, block.groups, block.window, block.head_dim, block.float_dtype, time_dtype) for _ in range(config.layers))


def model_decode(
    params: ModelParams, tokens: Integer[ndarray, "B"], times: Num[ndarray, "B"], rings: tuple[KVRing, ...], config: ModelConfig
) -> tuple[Inexact[ndarray, "B E"], tuple[KVRing, ...]]:
    """One more token in every row: (z of that token, the rings that hold it). Give it the weights of compute_copy."""
    at = kv_ring_next(rings[0], times)
    x = embedding_forward(tokens[:, None], params.embedding, at)
    filled = []
    for block, ring in zip(params.blocks, rings, strict=True):
        x, ring = transformer_block_decode(x, block, at, ring, config.block)
        filled.append(ring)
    z, _ = rms_norm_forward(x, params.norm_final, config.block.norm_eps)
    return round_to_storage(z, config.block.float_dtype)[:, 0], tuple(filled)
