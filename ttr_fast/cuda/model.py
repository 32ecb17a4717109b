"""The temporal transformer on the GPU: loss and gradients of one batch; the mathematics is in ttr_ref/model.py.

Parameters and gradients are the oracle's trees, arrays of the device. The matrices that a step computes with are copies in storage type, 16-bit
floats as bits (numbers.py); for f32 and f64 they are the parameters themselves. All arrays of a step come from one workspace, so the second step asks
for no memory but what the batch itself takes. The host prepares the batch; nothing comes back before the nats at the end.
"""

import numpy as np

from ttr_fast.cuda import rows
from ttr_fast.cuda.attention import kernels_for
from ttr_fast.cuda.attention_plan import plan_attention
from ttr_fast.cuda.embedding import embedding_backward, embedding_forward, places_by_token
from ttr_fast.cuda.next_event import Nats, NextEvents, Weights
from ttr_fast.cuda.places import places_of
from ttr_fast.cuda.rms_norm import rms_norm_backward, rms_norm_forward
from ttr_fast.cuda.rows import fill
from ttr_fast.cuda.transformer_block import TransformerBlockCache, transformer_block_backward, transformer_block_forward
from ttr_fast.cuda.workspace import Workspace, on_device, on_host
from ttr_ref.config import ModelConfig
from ttr_ref.dropout import DropoutKey
from ttr_ref.model import ModelParams
from ttr_ref.next_event import Batch, orders_of
from ttr_ref.parameters import is_frequency
from ttr_ref.tree import leaves_of, named_tree_map


class CudaModel:
    """One model's forward and backward over one workspace."""

    def __init__(self, config: ModelConfig) -> None:
        self.config, self.workspace = config, Workspace()

    def gradient_arrays(self, params: ModelParams) -> ModelParams:
        """A tree of zeros for gradients, in the type of the masters."""
        compute = self.config.block.float_dtype.compute
        grads = named_tree_map(
            lambda name, a: self.workspace.array(f"d.{name}", a.shape, np.float64 if is_frequency(name) else compute), params
        )
        for g in leaves_of(grads):
            fill(g, 0)
        return grads

    def loss_and_gradients(
        self, params: ModelParams, batch: Batch, key: DropoutKey | None, z_loss: float, time_weight: float, loss_scale: float
    ) -> tuple[float, ModelParams]:
        """(mean loss, gradients of loss_scale times it, in arrays of the workspace); params with matrices in storage type.

        Raises ValueError if there is no target, or for what the batch's preparation refuses.
        """
        config, workspace, block = self.config, self.workspace, self.config.block
        compute, e, count = block.float_dtype.compute, block.embed_dim, float(batch.is_target.sum())
        if count == 0:
            raise ValueError("loss: the batch has nothing to predict")
        places = places_of(batch.at, block)
        tile = kernels_for(params.embedding.dtype, block.head_dim).tile
        plan = on_device(plan_attention(batch.at, batch.at, block.causal, block.window, tile))
        flat = np.ascontiguousarray(batch.tokens).reshape(-1).astype(np.int64)
        start, sorted_places = on_device(places_by_token(flat, np.ascontiguousarray(batch.at.document).reshape(-1), config.vocab_size))
        tokens, n, storage = on_device(flat), flat.size, params.embedding.dtype

        x = workspace.array("x.0", (n, e), storage)
        embedding_forward(tokens, params.embedding, places.document, x)
        caches: list[TransformerBlockCache] = []
        for layer, weights in enumerate(params.blocks):
            y = workspace.array(f"x.{layer + 1}", (n, e), storage)
            caches.append(transformer_block_forward(x, weights, places, plan, block, key, layer, f"block.{layer}", y, workspace))
            x = y
        z, r = workspace.array("z", (n, e), storage), workspace.array("r", (n,), compute)
        rms_norm_forward(x, params.norm_final, block.norm_eps, z, r)

        grads, each = self.gradient_arrays(params), loss_scale / (count * len(orders_of(config)))
        dz = workspace.array("dz", (n, e), compute)
        fill(dz, 0)
        nats = NextEvents(z, params, batch, config, workspace).all_orders(Weights(each, each * time_weight, each * z_loss), dz, grads)
        dx, other = workspace.array("dx.0", (n, e), storage), workspace.array("dx.1", (n, e), storage)
        partial = workspace.array("norm.partial", (rows.chunks_of(n), e), compute)
        rms_norm_backward(dz, x, r, params.norm_final, None, dx, None, grads.norm_final, partial)
        for layer in reversed(range(config.layers)):
            transformer_block_backward(dx, params.blocks[layer], grads.blocks[layer], places, caches[layer], other, workspace)
            dx, other = other, dx
        embedding_backward(dx, start, sorted_places, True, grads.embedding)
        return total_loss(nats, z_loss, time_weight) / (count * len(nats)), grads


def total_loss(nats: list[Nats], z_loss: float, time_weight: float) -> float:
    """Σ (token nats + time_weight · time nats + z_loss · LSE²) over targets and orders, in float64 on the host."""
    total = 0.0
    for _, token, time, lse in (on_host(n) for n in nats):
        total += float((token + z_loss * lse * lse).sum(dtype=np.float64)) + (0.0 if time is None else time_weight * float(time.sum()))
    return total
