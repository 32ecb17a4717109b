"""The temporal transformer on the GPU: loss and gradients of one batch; the mathematics is in ttr_ref/model.py.

Parameters and gradients are the oracle's trees, arrays of the device. The matrices that a step computes with are copies in storage type, 16-bit
floats as bits (numbers.py); for f32 and f64 they are the parameters themselves. All arrays of a step come from one workspace, so the second step asks
for no memory. The host prepares the batch and uploads it in a few pieces; all launches are on the default stream, one after the other, and nothing
comes back: the loss stays on the device until the host reads `told`.
"""

from typing import Any, NamedTuple

import numpy as np

from ttr_fast.cuda import rows
from ttr_fast.cuda.adamw import adamw_step, blocks_of, global_norm, step_numbers
from ttr_fast.cuda.attention import kernels_for
from ttr_fast.cuda.attention_plan import AttentionPlan, plan_attention
from ttr_fast.cuda.embedding import embedding_backward, embedding_forward, places_by_token
from ttr_fast.cuda.next_event import Nats, NextEvents, Targets, Weights, loss_of, targets_of
from ttr_fast.cuda.numbers import CARRIERS
from ttr_fast.cuda.places import Places, places_of
from ttr_fast.cuda.rms_norm import rms_norm_backward, rms_norm_forward
from ttr_fast.cuda.rows import accumulate, fill, to_storage
from ttr_fast.cuda.transformer_block import (
    BlockSites,
    TransformerBlockCache,
    block_sites,
    transformer_block_backward,
    transformer_block_forward,
)
from ttr_fast.cuda.workspace import ALIGNED_TO, Workspace
from ttr_ref.config import ModelConfig, TrainConfig
from ttr_ref.dropout import DropoutKey
from ttr_ref.gradient_checkpointing import blocks_per_checkpoint
from ttr_ref.model import ModelParams, decays, learning_rate_shares
from ttr_ref.next_event import Batch, orders_of
from ttr_ref.parameters import is_frequency, is_matrix
from ttr_ref.tree import leaves_of, named_tree_map

LOSS, SUM = 2, 3
"""Where `told` has the loss of a batch, and of all parts of one; adamw.NORM and FACTOR come before."""


def storage_copies(masters: ModelParams, config: ModelConfig, workspace: Workspace) -> ModelParams:
    """The tree that kernels read: matrices in storage type, in arrays of the workspace; the rest, and for f32 and f64 all, are the masters."""
    dtype = config.block.float_dtype
    if dtype.storage == dtype.compute:
        return masters

    def copy(name: str, master: Any) -> Any:
        if not is_matrix(name):
            return master
        stored = workspace.array(f"copy.{name}", master.shape, CARRIERS[dtype])
        to_storage(master, stored)
        return stored

    return named_tree_map(copy, masters)


class Given(NamedTuple):
    """A batch on the device, and what is drawn in each block; `start` and `by_token`: embedding.places_by_token."""

    tokens: Any
    start: Any
    by_token: Any
    places: Places
    plan: AttentionPlan
    sites: tuple[BlockSites, ...]
    targets: Targets


class Trunk(NamedTuple):
    """The normed states z (N, E) and what backward needs: the inputs of segments, the caches of the last one, the norm's."""

    z: Any
    inputs: list[Any]
    caches: list[TransformerBlockCache]
    x: Any
    r: Any
    every: int


class CudaModel:
    """One model's forward and backward over one workspace."""

    def __init__(self, config: ModelConfig, counting: bool = False) -> None:
        """counting: its workspace has no memory; go through a step under jit.unlaunched and see what it needs."""
        self.config, self.workspace = config, Workspace(counting)
        self.told = self.workspace.array("told", (4,), np.float64)

    def gradient_arrays(self, params: ModelParams) -> ModelParams:
        """A tree of arrays for gradients, in the type of the masters; those that are added to are zeros."""
        compute = self.config.block.float_dtype.compute
        grads: ModelParams = named_tree_map(
            lambda name, a: self.workspace.array(f"d.{name}", a.shape, np.float64 if is_frequency(name) else compute), params
        )
        for added_to in (grads.embedding, grads.w_vocab, *(() if grads.time_head is None else grads.time_head.mixture)):
            if added_to is not None:
                fill(added_to, 0)
        return grads

    def added(self, loss: Any, grads: ModelParams, first: bool) -> tuple[Any, ModelParams]:
        """(loss, gradients) of all parts of a batch so far, this one being the first or not, in arrays of the workspace."""
        total: ModelParams = named_tree_map(lambda name, g: self.workspace.array(f"sum.{name}", g.shape, g.dtype), grads)
        sum_so_far = self.told[SUM : SUM + 1]
        for some, into in zip((loss, *leaves_of(grads)), (sum_so_far, *leaves_of(total)), strict=True):
            accumulate(some, not first, into)
        return sum_so_far, total

    def update(
        self, masters: ModelParams, m: ModelParams, v: ModelParams, grads: ModelParams, copies: ModelParams, steps: int, scale: float, rate: float,
        train: TrainConfig,
    ) -> None:  # fmt: skip
        """One step of AdamW in place, the copies too, unless a gradient overflowed; steps counts this one. `told` gets the norm and the factor."""
        trees = masters, m, v, grads, copies
        leaves, clip = zip(*([leaf.reshape(-1) for leaf in leaves_of(tree)] for tree in trees), strict=True), self.told[:2]
        flat = list(leaves)
        gradients = [g for _, _, _, g, _ in flat]
        global_norm(
            gradients, scale, train.clip_norm, self.workspace.array("squares", (sum(blocks_of(g.size) for g in gradients),), np.float64), clip
        )
        shares = zip(leaves_of(learning_rate_shares(masters, self.config.block)), leaves_of(decays(masters)), strict=True)
        numbers = self.workspace.upload("adamw", tuple(step_numbers(steps, rate, float(share), float(decay), train) for share, decay in shares))
        for (theta, first, second, g, copy), told in zip(flat, numbers, strict=True):
            adamw_step(theta, first, second, g, copy, told, clip)

    def given(self, batch: Batch, key: DropoutKey | None) -> Given:
        """All that is uploaded of it, before anything is launched: an upload waits for what was.

        Raises ValueError for what the batch's preparation refuses.
        """
        config, block, upload = self.config, self.config.block, self.workspace.upload
        flat = np.ascontiguousarray(batch.tokens).reshape(-1).astype(np.int64)
        start, by_token = places_by_token(flat, np.ascontiguousarray(batch.at.document).reshape(-1), config.vocab_size)
        tile = kernels_for(np.dtype(CARRIERS[block.float_dtype]), block.head_dim).tile
        plan = upload("plan", plan_attention(batch.at, batch.at, block.causal, block.window, tile))
        tokens, start, by_token = upload("tokens", (flat, start, by_token), 8 * (start.size + 2 * flat.size) + 3 * ALIGNED_TO)
        sites = upload("sites", tuple(block_sites(block, key, layer) for layer in range(config.layers)))
        places, targets = places_of(batch.at, block, "batch", self.workspace), targets_of(batch, config, self.workspace)
        return Given(tokens, start, by_token, places, plan, sites, targets)

    def block_forward(self, x: Any, params: ModelParams, given: Given, layer: int, name: str, y: Any) -> TransformerBlockCache:
        """y from x; the workspace keeps what backward needs under that name."""
        block = self.config.block
        return transformer_block_forward(x, params.blocks[layer], given.places, given.plan, block, given.sites[layer], name, y, self.workspace)

    def trunk(self, params: ModelParams, given: Given, checkpointing: str) -> Trunk:
        """Embedding, blocks, norm."""
        config, array, every = self.config, self.workspace.array, blocks_per_checkpoint(checkpointing)
        shape, storage, compute = (given.tokens.size, config.block.embed_dim), params.embedding.dtype, config.block.float_dtype.compute
        x = array("x.0", shape, storage)
        embedding_forward(given.tokens, params.embedding, given.places.document, x)
        inputs, caches = [x], []
        for layer in range(config.layers):
            kept = every == 0 or (layer + 1) % every == 0 or layer + 1 == config.layers
            y = array(f"x.{layer + 1}" if kept else f"x.passing.{layer % 2}", shape, storage)
            cache = self.block_forward(x, params, given, layer, f"block.{layer if every == 0 else 0}", y)
            x = y
            if every == 0:
                caches.append(cache)
            elif kept and layer + 1 < config.layers:
                inputs.append(y)
        z, r = array("z", shape, storage), array("r", shape[:1], compute)
        rms_norm_forward(x, params.norm_final, config.block.norm_eps, z, r)
        return Trunk(z, inputs, caches, x, r, every)

    def trunk_backward(self, dx: Any, params: ModelParams, given: Given, trunk: Trunk, grads: ModelParams) -> Any:
        """The gradient of the embedding's output from that of the last block's; segments are computed again, the last first."""
        array, layers, caches = self.workspace.array, self.config.layers, trunk.caches
        other = array("dx.1", dx.shape, dx.dtype)
        for start in reversed(range(0, layers, trunk.every or layers)):
            stop = min(start + (trunk.every or layers), layers)
            if trunk.every:
                x, caches = trunk.inputs[start // trunk.every], []
                for layer in range(start, stop):
                    y = array(f"again.{layer - start}", x.shape, x.dtype)
                    caches.append(self.block_forward(x, params, given, layer, f"block.{layer - start}", y))
                    x = y
            for layer in reversed(range(start, stop)):
                cache = caches[layer - start]
                transformer_block_backward(dx, params.blocks[layer], grads.blocks[layer], given.places, cache, other, self.workspace)
                dx, other = other, dx
        return dx

    def nats(self, params: ModelParams, batch: Batch, closely: bool = False) -> tuple[list[Nats], NextEvents]:
        """The nats of each target in each order, without dropout; closely: as NextEvents."""
        given = self.given(batch, None)
        events = NextEvents(self.trunk(params, given, "block").z, params, given.targets, self.config, self.workspace, closely)
        return events.all_orders(), events

    def loss_and_gradients(
        self, params: ModelParams, batch: Batch, key: DropoutKey | None, z_loss: float, time_weight: float, loss_scale: float, checkpointing: str,
        normalizer: float | None = None,
    ) -> tuple[Any, ModelParams]:  # fmt: skip
        """(mean loss (1,) float64, gradients of loss_scale times it), in arrays of the workspace; params: storage_copies.

        Raises ValueError if there is no target, or for what the batch's preparation refuses.
        """
        config, array = self.config, self.workspace.array
        compute = config.block.float_dtype.compute
        count = float(batch.is_target.sum()) if normalizer is None else normalizer
        if count == 0:
            raise ValueError("loss: the batch has nothing to predict")
        given = self.given(batch, key)
        trunk = self.trunk(params, given, checkpointing)
        shape, storage = trunk.z.shape, trunk.z.dtype
        orders = len(orders_of(config))
        grads, each, loss = self.gradient_arrays(params), loss_scale / (count * orders), self.told[LOSS : LOSS + 1]
        dz, dx = array("dz", shape, compute), array("dx.0", shape, storage)
        fill(dz, 0)
        events = NextEvents(trunk.z, params, given.targets, config, self.workspace)
        nats = events.all_orders(Weights(each, each * time_weight, each * z_loss), dz, grads)
        loss_of(nats, z_loss, time_weight, count * orders, loss)
        partial = array("norm.partial", (rows.chunks_of(shape[0]), shape[1]), compute)
        rms_norm_backward(dz, trunk.x, trunk.r, params.norm_final, None, dx, None, grads.norm_final, partial)
        dx = self.trunk_backward(dx, params, given, trunk, grads)
        embedding_backward(dx, given.start, given.by_token, True, grads.embedding)
        return loss, grads
