"""Decoding on the GPU: one more token in every row, with the past in rings; the mathematics is in ttr_ref/model.model_decode.

The kernels are those of the forward pass, over as many rows as are decoded, and attention_decode.py. Tokens and times come from the host, which
checks them before anything happens.
"""

from typing import Any

import numpy as np
from jaxtyping import Integer, Num
from numpy import ndarray

from ttr_fast.cuda.attention_decode import attention_decode, parts_of
from ttr_fast.cuda.embedding import embedding_forward
from ttr_fast.cuda.jit import blocks_for
from ttr_fast.cuda.kv_ring import KVRing, Past, kv_ring_append, kv_ring_next
from ttr_fast.cuda.linear import linear_forward
from ttr_fast.cuda.multi_head_attention import merge_heads
from ttr_fast.cuda.rms_norm import rms_norm_forward
from ttr_fast.cuda.rope import rope_angles, rope_forward, theta_of
from ttr_fast.cuda.rows import THREADS, fill
from ttr_fast.cuda.time2vec import elapsed, time2vec_forward
from ttr_fast.cuda.time_bias import BiasTable, bias_table, described
from ttr_fast.cuda.transformer_block import feed_forward
from ttr_fast.cuda.workspace import Workspace
from ttr_ref.config import ModelConfig
from ttr_ref.model import ModelParams
from ttr_ref.transformer_block import TransformerBlockParams


class CudaDecoder:
    """Weights, and what a number of rows have seen. Changed weights need another decoder."""

    def __init__(
        self, weights: ModelParams, config: ModelConfig, batch: int, time_dtype: type[np.int64] | type[np.float64], workspace: Workspace
    ) -> None:
        """weights: on the device, matrices in storage type; workspace: for this decoder alone.

        Raises ValueError if the model has no window or is not causal.
        """
        block = config.block
        if block.window is None:
            raise ValueError("decode: the model sees everything before (window is None); a ring buffer needs a window")
        if not block.causal:
            raise ValueError("decode: the model is not causal; what comes later would change what was decoded")
        self.weights, self.config, self.batch, self.workspace = weights, config, batch, workspace
        self.storage, self.compute = weights.embedding.dtype, block.float_dtype.compute
        shape, array = (batch, block.groups, block.window, block.head_dim), self.workspace.array
        self.rings = [KVRing(*(array(f"ring.{layer}.{part}", shape, self.storage) for part in "kv")) for layer in range(config.layers)]
        past = Past(np.zeros((batch, block.window), time_dtype), np.zeros(batch, np.int64))
        start = past, theta_of(block, weights.blocks[0].attention.rope_omega.size), np.zeros(batch, np.int64)
        self.past, self.theta, self.document = self.workspace.upload("start", start)
        self.tables = [self.table_of(layer, params) for layer, params in enumerate(weights.blocks)]
        self.last = np.full(batch, np.iinfo(np.int64).min).astype(time_dtype)
        self.factors = array("factors", (batch, block.heads), self.compute)
        fill(self.factors, 1)

    def table_of(self, layer: int, params: TransformerBlockParams) -> BiasTable:
        """The bias of one block as kernels take it."""
        block, bias, array = self.config.block, params.attention.time_bias, self.workspace.array
        columns = described(bias, block.time)[-1]
        rate, parameters = array(f"rate.{layer}", (block.heads,), self.compute), array(f"bias.{layer}", (block.heads, columns), self.compute)
        return bias_table(bias, block.time, rate, parameters)

    def step(self, tokens: Integer[ndarray, "B"], times: Num[ndarray, "B"]) -> Any:
        """z (B, E) of one more token in every row, in storage, on the device; the next step writes over it.

        Raises ValueError for a token outside the vocabulary or a time before the row's last one; nothing has happened then.
        """
        self.check(tokens, times)
        block, array, n, weights = self.config.block, self.workspace.array, self.batch, self.weights
        self.last[:] = times
        given_tokens, given_times = self.workspace.upload("given", (np.ascontiguousarray(tokens, np.int64), self.last))
        position, tau, x = array("position", (n,), np.int64), array("tau", (n,), np.float64), array("x", (n, block.embed_dim), self.storage)
        kv_ring_next(given_times, self.past, position)
        elapsed(given_times, self.document, block.time.origin, block.time.unit, tau)
        embedding_forward(given_tokens, weights.embedding, self.document, x)
        for params, ring, table in zip(weights.blocks, self.rings, self.tables, strict=True):
            self.block_step(x, params, ring, table, position, tau)
        z = array("z", x.shape, self.storage)
        rms_norm_forward(x, weights.norm_final, block.norm_eps, z, array("r", (n,), self.compute))
        return z

    def block_step(self, x: Any, params: TransformerBlockParams, ring: KVRing, table: BiasTable, position: Any, tau: Any) -> None:
        """x becomes the block's output."""
        block, n, compute = self.config.block, self.batch, self.compute
        h, g, d = block.heads, block.groups, block.head_dim

        def array(name: str, shape: tuple[int, ...], dtype: Any = self.storage) -> Any:
            return self.workspace.array(name, shape, dtype)

        u, r, normed = x, array("r", (n,), compute), array("normed", x.shape)
        if params.time2vec is not None:
            u = array("u", x.shape)
            time2vec_forward(tau, params.time2vec.omega, params.time2vec.phi, x, u)
        rms_norm_forward(u, params.norm_attention, block.norm_eps, normed, r)
        qkv, cos, sin = array("qkv", (n, (h + 2 * g) * d), compute), array("cos", (n, d // 2), compute), array("sin", (n, d // 2), compute)
        linear_forward(normed, params.attention.w_qkv, qkv)
        rope_angles(position, tau, self.theta, params.attention.rope_omega, cos, sin)
        q, k, v = array("q", (n, h, 1, d)), array("k", (n, g, 1, d)), array("v", (n, g, 1, d))
        rope_forward(qkv, cos, sin, q, k, v)
        kv_ring_append(k, v, position, ring)
        parts = parts_of(ring.k.shape[2])
        o, lse, merged, hidden = array("o", q.shape), array("lse", (n, h, 1), compute), array("merged", x.shape), array("h", x.shape)
        tops, totals, sums = (array(name, (n, h, parts, *more), compute) for name, more in (("tops", ()), ("totals", ()), ("sums", (d,))))
        attention_decode(q, ring, self.past, position, table, o, lse, tops, totals, sums)
        merge_heads[blocks_for(merged.size, THREADS), THREADS](o, self.factors, merged)
        linear_forward(merged, params.attention.w_out, hidden, x)
        rms_norm_forward(hidden, params.norm_feed_forward, block.norm_eps, normed, r)
        _, act = feed_forward(normed, params.feed_forward, "block", self.workspace)
        linear_forward(act, params.feed_forward.w_out, x, hidden)

    def check(self, tokens: Integer[ndarray, "B"], times: Num[ndarray, "B"]) -> None:
        """What was given can follow."""
        size = self.config.vocab_size
        if tokens.shape != (self.batch,) or times.shape != (self.batch,):
            raise ValueError(f"decode: {self.batch} tokens and times are needed, got shapes {tokens.shape} and {times.shape}")
        if (unknown := np.flatnonzero((tokens < 0) | (tokens >= size))).size:
            raise ValueError(f"decode: token {tokens[unknown[0]]} of row {unknown[0]} is outside the vocabulary of {size}")
        if (backwards := np.flatnonzero(times < self.last)).size:
            b = backwards[0]
            raise ValueError(f"decode: times go backwards in row {b}: {self.last[b]} is followed by {times[b]}")
