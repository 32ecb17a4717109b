"""Cases of what is put together: multi-head attention, blocks, a chain of them, the losses, the whole model."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy import ndarray

from ttr_ref.config import BlockConfig, DropoutConfig, ModelConfig, TimeHeadConfig
from ttr_ref.cross_entropy import cross_entropy_backward, cross_entropy_forward
from ttr_ref.dropout import DropoutKey
from ttr_ref.gradient_checkpointing import chain_backward, chain_forward
from ttr_ref.model import ModelParams, loss_backward, loss_forward, model_backward, model_forward, model_init
from ttr_ref.multi_head_attention import multi_head_attention_backward, multi_head_attention_forward
from ttr_ref.next_event import (
    Batch,
    EventNats,
    TimeHeadParams,
    next_event_backward,
    next_event_forward,
    next_time_backward,
    next_time_forward,
    next_timeline,
)
from ttr_ref.timeline import Timeline
from ttr_ref.transformer_block import transformer_block_backward, transformer_block_forward

from .harness import Arguments, Case, randomised, seeded
from .places import TIME, packed, padded

Outputs = tuple[ndarray, ...]
KEY = DropoutKey(5, 9)
ALL_FOUR = DropoutConfig(attn=0.3, ff=0.2, block=0.25, head=0.3)
PLAIN = BlockConfig(embed_dim=4, hidden_dim=3, heads=2, rope="position", time2vec=False, time_bias="none", time=TIME)
FULL = BlockConfig(
    embed_dim=8, hidden_dim=3, heads=2, kv_heads=1, window=3, rope="split", rope_base=10.0, time_bias="log", time=TIME, dropout=ALL_FOUR
)
SMALL = BlockConfig(embed_dim=4, hidden_dim=3, heads=2, kv_heads=1, window=3, rope="time", time_bias="exp", time=TIME, dropout=ALL_FOUR)


def model_of(config: ModelConfig, rng: np.random.Generator) -> ModelParams:
    """Weights as training starts with them, and noise."""
    return randomised(model_init(config, 0), rng)


def part_case(part: str, at: Timeline, config: BlockConfig) -> Case:
    """Attention or a whole block, as the model's second layer."""
    label = f"B × T {at.time.shape}, E {config.embed_dim}, H {config.heads}, {config.rope} rope, {config.time_bias} bias"
    rng, (block,) = seeded(label), model_of(ModelConfig(2, 1, config), seeded(label)).blocks
    parts: dict[str, tuple[Any, Callable[..., Any], Callable[..., Any]]] = {
        "attention": (block.attention, multi_head_attention_forward, multi_head_attention_backward),
        "block": (block, transformer_block_forward, transformer_block_backward),
    }
    params, part_forward, part_backward = parts[part]

    def forward(x: ndarray, params: Any) -> tuple[Outputs, Any]:
        y, cache = part_forward(x, params, at, config, KEY, layer=1)
        return (y,), cache

    def backward(dy: Outputs, cache: Any) -> Arguments:
        return dict(zip(("x", "params"), part_backward(dy[0], cache), strict=True))

    arguments = {"x": rng.standard_normal((*at.time.shape, config.embed_dim)), "params": params}
    return Case(part_backward, label, arguments, forward, backward)


def chain_case(at: Timeline, layers: int, mode: str) -> Case:
    label = f"{layers} blocks on B × T {at.time.shape}, {mode}"
    rng = seeded(label)

    def forward(x: ndarray, params: Any) -> tuple[Outputs, Any]:
        blocks = [
            partial(transformer_block_forward, params=block, at=at, config=SMALL, key=KEY, layer=layer) for layer, block in enumerate(params)
        ]
        y, cache = chain_forward(x, blocks, mode)
        return (y,), cache

    def backward(dy: Outputs, cache: Any) -> Arguments:
        return dict(zip(("x", "params"), chain_backward(dy[0], transformer_block_backward, cache), strict=True))

    params = model_of(ModelConfig(2, layers, SMALL), rng).blocks
    return Case(chain_backward, label, {"x": rng.standard_normal((*at.time.shape, SMALL.embed_dim)), "params": params}, forward, backward)


def cross_entropy_case(count: int, e: int, vocab: int, chunk: int) -> Case:
    label = f"N {count}, E {e}, V {vocab}, chunk {chunk}"
    rng = seeded(label)
    targets = rng.integers(0, vocab, count)

    def forward(x: ndarray, w: ndarray) -> tuple[Outputs, Any]:
        nats, lse, cache = cross_entropy_forward(x, w, targets, chunk)
        return (nats, lse), cache

    def backward(cotangents: Outputs, cache: Any) -> Arguments:
        return dict(zip(("x", "w"), cross_entropy_backward(*cotangents, cache), strict=True))

    arguments = {"x": rng.standard_normal((count, e)), "w": rng.standard_normal((e, vocab))}
    return Case(cross_entropy_backward, label, arguments, forward, backward)


def batch_at(at: Timeline, vocab: int, rng: np.random.Generator) -> Batch:
    """A token is a target where the next place holds the same document; the last of each document has nothing to predict."""
    follows = np.zeros(at.time.shape, bool)
    follows[:, :-1] = at.is_token[:, :-1] & (at.document[:, :-1] == at.document[:, 1:])
    tokens = np.where(at.is_token, rng.integers(0, vocab, at.time.shape), -1)
    return Batch(tokens, at, np.roll(tokens, -1, axis=1), np.roll(at.time, -1, axis=1), follows)


def next_time_case(at: Timeline, e: int, f: int) -> Case:
    label = f"B × T {at.time.shape}, E {e}, F {f}"
    rng = seeded(label)
    config = ModelConfig(5, 1, BlockConfig(embed_dim=e, hidden_dim=f, heads=1, time=TIME), time_head=TimeHeadConfig(2, "time_then_token"))
    at_next, head = next_timeline(batch_at(at, 5, rng)), model_of(config, rng).time_head

    def forward(z: ndarray, params: Any) -> tuple[Outputs, Any]:
        y, cache = next_time_forward(z, at_next, params, config.block)
        return (y,), cache

    def backward(dy: Outputs, cache: Any) -> Arguments:
        return dict(zip(("z", "params"), next_time_backward(dy[0], cache), strict=True))

    arguments = {"z": rng.standard_normal((*at.time.shape, e)), "params": head.next_time if head else None}
    return Case(next_time_backward, label, arguments, forward, backward)


def next_event_case(at: Timeline, head: TimeHeadConfig | None, chunk: int) -> Case:
    """Embedding and w_vocab are two arguments: whether they are one is the model's affair."""
    label = f"B × T {at.time.shape}, {head.order if head else 'tokens alone'}, chunk {chunk}"
    rng, config = seeded(label), ModelConfig(5, 1, PLAIN, tied=False, time_head=head, loss_chunk=chunk)
    batch, params = batch_at(at, config.vocab_size, rng), model_of(config, rng)

    def forward(z: ndarray, embedding: ndarray, w_vocab: ndarray, head: TimeHeadParams | None) -> tuple[Outputs, Any]:
        nats, lse, cache = next_event_forward(z, embedding, w_vocab, head, batch, config)
        flat = [y for n in nats for y in (n.token, n.time) if y is not None]
        return (*flat, *lse), (nats, cache)

    def backward(cotangents: Outputs, kept: Any) -> Arguments:
        (nats, cache), rest = kept, iter(cotangents)
        dnats = [EventNats(n.order, next(rest), None if n.time is None else next(rest)) for n in nats]
        return dict(zip(("z", "embedding", "w_vocab", "head"), next_event_backward(dnats, list(rest), cache), strict=True))

    z = rng.standard_normal((*at.time.shape, config.block.embed_dim))
    arguments = {"z": z, "embedding": params.embedding, "w_vocab": params.w_vocab, "head": params.time_head}
    return Case(next_event_backward, label, arguments, forward, backward)


def model_case(at: Timeline, config: BlockConfig, mode: str) -> Case:
    label = f"2 blocks on B × T {at.time.shape}, E {config.embed_dim}, {mode}"
    rng, whole = seeded(label), ModelConfig(5, 2, config)
    batch = batch_at(at, 5, rng)

    def forward(params: ModelParams) -> tuple[Outputs, Any]:
        z, cache = model_forward(params, batch.tokens, at, whole, KEY, mode)
        return (z,), cache

    def backward(dz: Outputs, cache: Any) -> Arguments:
        return {"params": model_backward(dz[0], cache)}

    return Case(model_backward, label, {"params": model_of(whole, rng)}, forward, backward)


def loss_case(at: Timeline, config: ModelConfig, mode: str = "none", normalizer: float | None = None) -> Case:
    """The whole: parameters in, loss out. One target is left out, as if masked."""
    order, block = config.time_head.order if config.time_head else "tokens alone", config.block
    tied = "tied" if config.tied else "untied"
    label = f"{tied}, {order}, B × T {at.time.shape}, E {block.embed_dim}, {block.rope} rope, {block.time_bias} bias, {mode}"
    rng = seeded(label)
    batch = batch_at(at, config.vocab_size, rng)
    batch.is_target[tuple(np.argwhere(batch.is_target)[1])] = False

    def forward(params: ModelParams) -> tuple[Outputs, Any]:
        loss, _, cache = loss_forward(
            params, batch, config, KEY, z_loss=0.1, time_weight=0.3, normalizer=normalizer, checkpointing=mode
        )
        return (np.asarray(loss),), cache

    def backward(dloss: Outputs, cache: Any) -> Arguments:
        return {"params": loss_backward(float(dloss[0]), cache)}

    return Case(loss_backward, label, {"params": model_of(config, rng)}, forward, backward)


PACKED, PADDED = packed((0, 2, 5, 9), 2, 5), padded((5, 0, 3), 5)
BOTH = TimeHeadConfig(2, "both")

CASES = [
    part_case("attention", padded((1,), 1), PLAIN),
    part_case("attention", padded((3, 2), 3), SMALL),
    part_case("attention", PACKED, FULL),
    part_case("block", padded((1,), 1), PLAIN),
    part_case("block", PADDED, SMALL),
    part_case("block", packed((0, 3, 7), 1, 7), FULL),
    chain_case(padded((3,), 3), 1, "block"),
    chain_case(padded((3, 2), 3), 3, "none"),
    chain_case(packed((0, 2, 5), 1, 5), 3, "every:2"),
    cross_entropy_case(1, 2, 5, 1),
    cross_entropy_case(5, 4, 5, 2),
    cross_entropy_case(7, 3, 2, 3),
    cross_entropy_case(3, 6, 7, 10),
    next_time_case(padded((3,), 3), 2, 1),
    next_time_case(PACKED, 4, 3),
    next_time_case(PADDED, 6, 2),
    next_event_case(padded((2,), 3), None, 1),
    next_event_case(PACKED, TimeHeadConfig(3, "token_then_time"), 2),
    next_event_case(padded((7, 1, 4), 7), TimeHeadConfig(1, "time_then_token"), 5),
    next_event_case(PADDED, BOTH, 4),
    model_case(padded((1, 3), 3), PLAIN, "none"),
    model_case(PACKED, FULL, "block"),
    model_case(padded((7,), 7), SMALL, "every:2"),
    loss_case(PACKED, ModelConfig(5, 2, FULL, True, BOTH, loss_chunk=2)),
    loss_case(PADDED, ModelConfig(5, 2, FULL, False, BOTH, loss_chunk=4), "block"),
    loss_case(padded((7,), 7), ModelConfig(5, 2, SMALL, True, TimeHeadConfig(3, "time_then_token"), loss_chunk=1), "every:2", 7.0),
    loss_case(packed((0, 3, 7), 1, 7), ModelConfig(3, 1, PLAIN, True, None, loss_chunk=5)),
]
