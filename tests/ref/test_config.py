"""Configurations say what is wrong in one sentence; trees of parameters have names and know their shape."""

from dataclasses import FrozenInstanceError
from typing import NamedTuple

import numpy as np
import pytest

from ttr_ref.config import BlockConfig, DropoutConfig, ModelConfig, TimeConfig, TimeHeadConfig, TrainConfig
from ttr_ref.model import model_init
from ttr_ref.tree import from_named_leaves, leaves_of, named_leaves, named_tree_map, tree_map

BLOCK = {"embed_dim": 8, "hidden_dim": 4, "heads": 2}
NAN, INF = float("nan"), float("inf")

WRONG = [
    *[
        (DropoutConfig, {name: p}, f"DropoutConfig: {name} must be in [0, 1), got {p}")
        for name in ("attn", "ff", "block", "head") for p in (1.0, -0.1, NAN)
    ],
    *[
        (TimeConfig, {name: value}, f"TimeConfig: {name} must be positive and finite, got {value}")
        for name in ("unit", "shortest", "span", "resolution") for value in (0.0, -1.0, INF, NAN)
    ],
    *[(TimeConfig, {"origin": value}, f"TimeConfig: origin must be finite, got {value}") for value in (INF, -INF, NAN)],
    (TimeConfig, {"tick_seconds": 0.0}, "TimeConfig: tick_seconds must be positive, got 0.0"),
    *[(BlockConfig, {**BLOCK, name: 0}, f"BlockConfig: {name} must be positive, got 0") for name in ("embed_dim", "hidden_dim", "heads")],
    (BlockConfig, {**BLOCK, "kv_heads": 0}, "BlockConfig: groups must be positive, got 0"),
    (BlockConfig, {**BLOCK, "embed_dim": 9}, "BlockConfig: embed_dim 9 is not a multiple of heads 2"),
    (BlockConfig, {**BLOCK, "embed_dim": 6}, "BlockConfig: head width 3 (embed_dim / heads) must be even for rotary pairs"),
    (BlockConfig, {**BLOCK, "heads": 4, "kv_heads": 3}, "BlockConfig: heads 4 is not a multiple of kv_heads 3"),
    (BlockConfig, {**BLOCK, "window": 0}, "BlockConfig: window must be at least 1, got 0"),
    *[(BlockConfig, {**BLOCK, "exp_terms": m}, f"BlockConfig: exp_terms must be 1 to 4, got {m}") for m in (0, 5)],
    (BlockConfig, {**BLOCK, "table_knots": 1}, "BlockConfig: table_knots must be at least 2, got 1"),
    (BlockConfig, {**BLOCK, "rope_base": 1.0}, "BlockConfig: rope_base must be above 1, got 1.0"),
    (BlockConfig, {**BLOCK, "norm_eps": 0.0}, "BlockConfig: norm_eps must be positive, got 0.0"),
    (TimeHeadConfig, {"components": 0}, "TimeHeadConfig: components must be positive, got 0"),
    *[
        (ModelConfig, {"vocab_size": 2, "layers": 1, "block": BlockConfig(**BLOCK), name: 0}, f"ModelConfig: {name} must be positive, got 0")
        for name in ("vocab_size", "layers", "loss_chunk")
    ],
    *[
        (TrainConfig, {name: 0}, f"TrainConfig: {name} must be positive, got 0")
        for name in ("steps", "rows", "length", "decay_steps", "accumulate", "evaluate_every", "patience")
    ],
    (TrainConfig, {"rows": 6, "accumulate": 4}, "TrainConfig: rows 6 is not a multiple of accumulate 4"),
    *[
        (TrainConfig, {name: value}, f"TrainConfig: {name} must be positive and finite, got {value}")
        for name in ("learning_rate", "adam_eps", "clip_norm") for value in (0.0, INF, NAN)
    ],
    *[
        (TrainConfig, {name: value}, f"TrainConfig: {name} must be in [0, 1), got {value}")
        for name in ("beta1", "beta2", "final_fraction") for value in (-0.5, 1.0, NAN)
    ],
    (TrainConfig, {"warmup": -1}, "TrainConfig: warmup must not be negative, got -1"),
    *[(TrainConfig, {name: -1.0}, f"TrainConfig: {name} must not be negative, got -1.0") for name in ("weight_decay", "z_loss", "time_weight")],
    *[(TrainConfig, {"seed": seed}, f"TrainConfig: seed must be in [0, 2³²), got {seed}") for seed in (-1, 2**32)],
    *[
        (TrainConfig, {"checkpointing": mode}, f"checkpointing must be none, block or every:k with k of at least 1, got {mode!r}")
        for mode in ("every:0", "every:", "all", "every:-1", "every:1.5", "")
    ],
]


@pytest.mark.parametrize("kind, fields, sentence", WRONG, ids=lambda x: x.__name__ if isinstance(x, type) else None)
def test_what_is_refused(kind, fields, sentence):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole sentence is compared)
        kind(**fields)
    assert str(caught.value) == sentence


def test_what_follows_from_what():
    block = BlockConfig(12, 4, 6, 2)
    assert (block.head_dim, block.groups) == (2, 2)
    assert BlockConfig(12, 4, 6).groups == 6
    assert TimeHeadConfig().orders == ("token_then_time",)
    assert TimeHeadConfig(order="time_then_token").orders == ("time_then_token",)
    assert TimeHeadConfig(order="both").orders == ("token_then_time", "time_then_token")


def test_configurations_are_frozen():
    with pytest.raises(FrozenInstanceError):
        TrainConfig().steps = 3


class Pair(NamedTuple):
    left: object
    right: object


TREE = Pair((np.ones(2), Pair(np.zeros((1, 3)), None)), np.full(4, 7.0))


def test_names_are_paths():
    assert list(named_leaves(TREE)) == ["left.0", "left.1.left", "right"]
    assert [a.shape for a in leaves_of(TREE)] == [(2,), (1, 3), (4,)]
    model = model_init(ModelConfig(3, 2, BlockConfig(**BLOCK), time_head=TimeHeadConfig()), 0)
    names = list(named_leaves(model))
    assert names[0] == "embedding"
    assert {"blocks.1.attention.w_qkv", "blocks.0.time2vec.omega", "blocks.1.attention.time_bias.rho", "time_head.mixture.b_mixture"} <= set(names)
    assert len(names) == len(set(names))


def test_maps_keep_the_shape_of_the_tree():
    doubled = tree_map(np.add, TREE, TREE)
    assert isinstance(doubled, Pair)
    assert isinstance(doubled.left[1], Pair)
    assert doubled.left[1].right is None
    assert np.array_equal(doubled.right, np.full(4, 14.0))
    seen = []
    named_tree_map(lambda name, a, b: seen.append((name, a is b)), TREE, TREE)
    assert seen == [("left.0", True), ("left.1.left", True), ("right", True)]
    with pytest.raises(ValueError, match="zip"):
        tree_map(np.add, TREE, Pair((np.ones(2),), np.ones(4)))


def test_leaves_there_and_back():
    leaves = named_leaves(TREE)
    again = from_named_leaves(TREE, dict(reversed(leaves.items())))
    assert isinstance(again, Pair)
    assert all(a is b for a, b in zip(leaves_of(again), leaves_of(TREE), strict=True))


def test_leaves_that_do_not_fit():
    leaves = named_leaves(TREE)
    with pytest.raises(KeyError, match="left.1.left is missing"):
        from_named_leaves(TREE, {name: a for name, a in leaves.items() if name != "left.1.left"})
    with pytest.raises(KeyError, match="extra is unknown"):
        from_named_leaves(TREE, {**leaves, "extra": np.ones(1)})
    with pytest.raises(ValueError, match=r"right has shape \(5,\), expected \(4,\)"):
        from_named_leaves(TREE, {**leaves, "right": np.ones(5)})
