"""The temporal transformer on the CPU; the mathematics is in ttr_ref/model.py.

Parameters and gradients are the oracle's trees. The matrices that a step computes with are copies in storage type, as carriers (half.py); for f32 and
f64 they are the parameters themselves. All arrays of a step come from one workspace, so the second step asks for no memory.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray

from ttr_fast.cpu import rows
from ttr_fast.cpu.attention import plan_attention
from ttr_fast.cpu.embedding import embedding_backward, embedding_forward
from ttr_fast.cpu.half import CARRIERS, as_bits
from ttr_fast.cpu.next_event import NextEvents, Weights
from ttr_fast.cpu.places import Places, places_of
from ttr_fast.cpu.rms_norm import rms_norm_backward, rms_norm_forward
from ttr_fast.cpu.transformer_block import TransformerBlockCache, transformer_block_backward, transformer_block_forward
from ttr_fast.cpu.workspace import Workspace
from ttr_ref.config import ModelConfig
from ttr_ref.dropout import DropoutKey
from ttr_ref.gradient_checkpointing import blocks_per_checkpoint
from ttr_ref.model import ModelParams
from ttr_ref.next_event import Batch, EventNats, orders_of
from ttr_ref.parameters import is_frequency, is_matrix
from ttr_ref.tree import named_tree_map


def storage_copies(params: ModelParams, config: ModelConfig) -> ModelParams:
    """The tree that kernels read: matrices in storage type, as carriers."""
    dtype = config.block.float_dtype
    if dtype.storage == dtype.compute:
        return params
    return named_tree_map(lambda name, a: as_bits(a.astype(dtype.storage)) if is_matrix(name) else a, params)


def gradient_arrays(params: ModelParams, config: ModelConfig, workspace: Workspace) -> ModelParams:
    """A tree of arrays for gradients, in the type of the masters."""
    compute = config.block.float_dtype.compute
    return named_tree_map(lambda name, a: workspace.array(f"d.{name}", a.shape, np.float64 if is_frequency(name) else compute), params)


class Trunk(NamedTuple):
    """The normed states z (N, E) and what backward needs: the inputs of segments, the caches of the last one, the norm's."""

    z: ndarray
    inputs: list[ndarray]
    caches: list[TransformerBlockCache]
    x: ndarray
    r: ndarray
    every: int


class CpuModel:
    """One model's forward and backward over one workspace."""

    def __init__(self, config: ModelConfig) -> None:
        self.config, self.workspace = config, Workspace()

    def trunk(self, params: ModelParams, batch: Batch, places: Places, key: DropoutKey | None, checkpointing: str) -> tuple[Trunk, Any]:
        """Embedding, blocks, norm."""
        config, workspace = self.config, self.workspace
        block, every = config.block, blocks_per_checkpoint(checkpointing)
        e, carrier, compute = block.embed_dim, np.dtype(CARRIERS[block.float_dtype]), block.float_dtype.compute
        n = places.position.size
        tokens = np.ascontiguousarray(batch.tokens).reshape(-1).astype(np.int64)
        plan = plan_attention(batch.at, batch.at, block.heads, block.causal, block.window)
        state = (params, places, plan)
        x = workspace.array("x.0", (n, e), carrier)
        embedding_forward(tokens, params.embedding, places.document, x)
        inputs, caches = [x], []
        for layer in range(config.layers):
            kept = every == 0 or (layer + 1) % every == 0 or layer + 1 == config.layers
            y = workspace.array(f"x.{layer + 1}" if kept else f"x.passing.{layer % 2}", (n, e), carrier)
            name = f"block.{layer if every == 0 else 0}"
            cache = transformer_block_forward(x, params.blocks[layer], places, plan, block, key, layer, name, y, workspace)
            x = y
            if every == 0:
                caches.append(cache)
            elif kept and layer + 1 < config.layers:
                inputs.append(y)
        z, r = workspace.array("z", (n, e), carrier), workspace.array("r", (n,), compute)
        rms_norm_forward(x, params.norm_final, compute.type(block.norm_eps), z, r)
        return Trunk(z, inputs, caches, x, r, every), state

    def trunk_backward(self, dx: ndarray, trunk: Trunk, state: Any, grads: ModelParams, key: DropoutKey | None) -> None:
        """dx, the gradient of the last block's output, becomes that of the embedding's; segments are computed again, the last first."""
        params, places, plan = state
        config, workspace, caches = self.config, self.workspace, trunk.caches
        for start in reversed(range(0, config.layers, trunk.every or config.layers)):
            stop = min(start + (trunk.every or config.layers), config.layers)
            if trunk.every:
                x, caches = trunk.inputs[start // trunk.every], []
                for layer in range(start, stop):
                    y, name = workspace.array(f"again.{layer - start}", x.shape, x.dtype), f"block.{layer - start}"
                    caches.append(transformer_block_forward(x, params.blocks[layer], places, plan, config.block, key, layer, name, y, workspace))
                    x = y
            for layer in reversed(range(start, stop)):
                transformer_block_backward(dx, params.blocks[layer], grads.blocks[layer], places, caches[layer - start], config.block, workspace)

    def nats(self, params: ModelParams, batch: Batch) -> tuple[list[EventNats], NextEvents]:
        """The nats of each target in each order, without dropout."""
        places = places_of(batch.at, self.config.block.time)
        trunk, _ = self.trunk(params, batch, places, None, "block")
        events = NextEvents(trunk.z, params, batch, places, self.config, self.workspace)
        return [n for n, _ in events.all_orders()], events

    def loss_and_gradients(
        self, params: ModelParams, batch: Batch, key: DropoutKey | None, z_loss: float, time_weight: float, loss_scale: float, checkpointing: str,
        normalizer: float | None = None,
    ) -> tuple[float, ModelParams]:  # fmt: skip
        """(mean loss, gradients of loss_scale times it, in arrays of the workspace); params: storage_copies.

        Raises ValueError if there is no target.
        """
        config, workspace = self.config, self.workspace
        compute = config.block.float_dtype.compute
        count = float(batch.is_target.sum()) if normalizer is None else normalizer
        if count == 0:
            raise ValueError("loss: the batch has nothing to predict")
        places = places_of(batch.at, config.block.time)
        trunk, state = self.trunk(params, batch, places, key, checkpointing)
        grads = gradient_arrays(params, config, workspace)
        each = loss_scale / (count * len(orders_of(config)))
        grads.embedding.fill(0)
        if grads.w_vocab is not None:
            grads.w_vocab.fill(0)
        if grads.time_head is not None:
            grads.time_head.mixture.w_mixture.fill(0)
            grads.time_head.mixture.b_mixture.fill(0)
        dz = workspace.zeros("dz", trunk.z.shape, compute)
        events = NextEvents(trunk.z, params, batch, places, config, workspace)
        results = events.all_orders(Weights(each, each * time_weight, each * z_loss), dz, grads)
        dx = workspace.array("dx", trunk.z.shape, trunk.z.dtype)
        partial = workspace.array("norm.partial", (rows.chunks_of(dz.shape[0]), dz.shape[1]), compute)
        rms_norm_backward(dz, trunk.x, trunk.r, params.norm_final, None, dx, None, grads.norm_final, partial)
        self.trunk_backward(dx, trunk, state, grads, key)
        tokens = np.ascontiguousarray(batch.tokens).reshape(-1).astype(np.int64)
        start, order = np.empty(params.embedding.shape[0] + 1, np.int64), np.empty(tokens.size, np.int64)
        embedding_backward(dx, tokens, places.document, True, grads.embedding, start, order)
        total = sum(float((n.token + z_loss * lse * lse).sum(dtype=np.float64)) for n, lse in results)
        total += sum(time_weight * float(n.time.sum()) for n, _ in results if n.time is not None)
        return total / (count * len(results)), grads
