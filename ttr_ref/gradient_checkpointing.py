"""Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174, §3): keep few activations, compute the rest again when backward needs them.

| mode | kept in forward | recomputed in backward |
|---|---|---|
| none | every block's cache | nothing |
| block | every block's input | every block once |
| every:k | the input of every k-th block | k blocks at a time |

The blocks are pure functions and dropout is a function of its key, so what is recomputed has the same bits, and so have the gradients.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxtyping import Inexact
from numpy import ndarray

Forward = Callable[[ndarray], tuple[ndarray, Any]]
"""x → (y, cache) of one block."""
Backward = Callable[[ndarray, Any], tuple[ndarray, Any]]
"""(dy, cache) → (dx, dparams)."""


class ChainCache(NamedTuple):
    """The blocks, how many of them share one kept input (0: nothing is recomputed), and what was kept: caches, or inputs."""

    blocks: Sequence[Forward]
    every: int
    kept: list[Any]


def blocks_per_checkpoint(mode: str) -> int:
    """0 for "none", 1 for "block", k for "every:k".

    Raises ValueError for anything else.
    """
    if mode in ("none", "block"):
        return int(mode == "block")
    head, _, count = mode.partition(":")
    if head != "every" or not count.isdecimal() or int(count) < 1:
        raise ValueError(f"checkpointing must be none, block or every:k with k of at least 1, got {mode!r}")
    return int(count)


def chain_forward(x: Inexact[ndarray, "B T E"], blocks: Sequence[Forward], mode: str) -> tuple[Inexact[ndarray, "B T E"], ChainCache]:
    """Block after block, keeping what the mode says."""
    every = blocks_per_checkpoint(mode)
    kept = []
    for index, block in enumerate(blocks):
        if every and index % every == 0:
            kept.append(x)
        x, cache = block(x)
        if not every:
            kept.append(cache)
    return x, ChainCache(blocks, every, kept)


def chain_backward(dy: Inexact[ndarray, "B T E"], backward: Backward, cache: ChainCache) -> tuple[Inexact[ndarray, "B T E"], tuple[Any, ...]]:
    """(dx, the dparams of each block), last block first; a segment's caches live only while it is walked back."""
    blocks, every, kept = cache
    dparams: list[Any] = []
    for start in reversed(range(0, len(blocks), every or len(blocks))):
        caches = kept if not every else caches_again(blocks[start : start + every], kept[start // every])
        for block_cache in reversed(caches):
            dy, dblock = backward(dy, block_cache)
            dparams.append(dblock)
    return dy, tuple(reversed(dparams))


def caches_again(blocks: Sequence[Forward], x: Inexact[ndarray, "B T E"]) -> list[Any]:
    """The caches of a few blocks from the input of the first."""
    caches = []
    for block in blocks:
        x, cache = block(x)
        caches.append(cache)
    return caches
