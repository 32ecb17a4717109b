"""Decoding on the CPU, one token a step; the mathematics is in ttr_ref/model.py (`model_decode`), the order of sums that of the forward pass.

z and logits of a token have the bits that CpuModel gives it in the windowed forward pass over the row's whole sequence, whatever stands in the other
rows. A step costs the same however many tokens were seen, and asks for no memory after the first.

A block is three calls: up to the projection, attention against the ring, the rest. They compute in the arrays of the decoder, row after row.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Inexact, Integer, Num, Shaped
from numba import get_num_threads
from numpy import ndarray

from ttr_fast.cpu.attention import padded_width
from ttr_fast.cpu.attention_decode import decode_kernel
from ttr_fast.cpu.attention_operands import Spec
from ttr_fast.cpu.attention_tiles import BLOCK
from ttr_fast.cpu.embedding import first_unknown, gather_row
from ttr_fast.cpu.feed_forward_geglu import gate_row
from ttr_fast.cpu.half import CARRIERS
from ttr_fast.cpu.jit import kernel
from ttr_fast.cpu.kv_ring import KVRing, first_backwards, kv_ring_empty, kv_ring_next, past_empty, tiles_of
from ttr_fast.cpu.linear_decode import panel_product, panels_of, product_scratch
from ttr_fast.cpu.rms_norm import add_and_normalise, normalise
from ttr_fast.cpu.rope import row_angles, theta_of
from ttr_fast.cpu.time2vec import elapsed, row_features
from ttr_fast.cpu.time_bias import LOG2E, bias_table
from ttr_fast.cpu.workspace import Workspace
from ttr_ref.config import ModelConfig
from ttr_ref.model import ModelParams
from ttr_ref.transformer_block import TransformerBlockParams


@kernel()
def begin(tokens, times, document, table, factor, origin, unit, relative, time, first, last, seen, position, tau, x):
    """The embedded tokens, their places, their times into the ring."""
    kv_ring_next(times, relative, time, first, last, seen, position)
    elapsed(times, document, origin, unit, tau)
    for i in range(x.shape[0]):
        gather_row(tokens, document, table, factor, x, i)


@kernel()
def project(x, position, tau, omega, phi, norm, eps, theta, rope_omega, w_qkv, u, r, normed, added, cos, sin, qkv, a_panels, strips):
    """qkv = rms_norm(x + time2vec(τ)) W, without features (no ω) rms_norm(x) W; the angles of rope."""
    for i in range(x.shape[0]):
        row_angles(position, tau, theta, rope_omega, cos, sin, i)
        if omega.size == 0:
            normalise(x, norm, eps, normed, r, i)
            continue
        row_features(tau[i], omega, phi, added, i)
        add_and_normalise(x, added, norm, eps, u, normed, r, i)
    panel_product(normed, w_qkv, qkv, qkv, False, a_panels, strips)


@kernel()
def feed(merged, w_merged, x, norm, eps, w_in, w_out, h, r, normed, hidden, act, a_panels, strips):
    """h = x + merged W, x = h + geglu(rms_norm(h))."""
    n = x.shape[0]
    panel_product(merged, w_merged, h, x, True, a_panels, strips)
    for i in range(n):
        normalise(h, norm, eps, normed, r, i)
    panel_product(normed, w_in, hidden, hidden, False, a_panels, strips)
    for i in range(n):
        gate_row(hidden, act, i)
    panel_product(act, w_out, x, h, True, a_panels, strips)


@kernel()
def final_norm(x, norm, eps, z, r):
    """z = rms_norm(x)."""
    for i in range(x.shape[0]):
        normalise(x, norm, eps, z, r, i)


class DecodedBlock(NamedTuple):
    """One block as kernels take it; the w are panels."""

    params: TransformerBlockParams
    w_qkv: Shaped[ndarray, "panels steps width"]
    w_merged: Shaped[ndarray, "panels steps width"]
    w_in: Shaped[ndarray, "panels steps width"]
    w_out: Shaped[ndarray, "panels steps width"]
    ring: KVRing
    omega: Float64[ndarray, "E_or_0"]
    phi: Float64[ndarray, "E_or_0"]
    attend: Any
    rates: Float64[ndarray, "H"]
    bias: Inexact[ndarray, "H n"]


class CpuDecoder:
    """Weights, and what a number of rows have seen. Changed weights need another decoder."""

    def __init__(
        self, weights: ModelParams, config: ModelConfig, batch: int, time_dtype: type[np.int64] | type[np.float64] = np.int64
    ) -> None:
        """weights: storage_copies of model.py.

        Raises ValueError if the model has no window or is not causal.
        """
        block = config.block
        if block.window is None:
            raise ValueError("decode: the model sees everything before (window is None); a ring buffer needs a window")
        if not block.causal:
            raise ValueError("decode: the model is not causal; what comes later would change what was decoded")
        self.weights, self.config, self.batch, self.window, self.workspace = weights, config, batch, block.window, Workspace()
        self.carrier, self.compute = np.dtype(CARRIERS[block.float_dtype]), block.float_dtype.compute
        self.eps, self.width = self.compute.type(block.norm_eps), padded_width(block.head_dim)
        self.origin = np.asarray(block.time.origin, time_dtype)[()]
        self.past = past_empty(batch, block.window, time_dtype)
        self.blocks = [self.decoded_block(p) for p in weights.blocks]
        self.w_vocab = panels_of(weights.embedding.T if weights.w_vocab is None else weights.w_vocab)
        self.theta = theta_of(block, weights.blocks[0].attention.rope_omega.size)
        self.tokens, self.times = np.zeros(batch, np.int64), np.zeros(batch, time_dtype)
        self.document, self.position, self.tau = np.zeros(batch, np.int64), np.zeros(batch, np.int64), np.zeros(batch)
        self.threads = 0

    def decoded_block(self, params: TransformerBlockParams) -> DecodedBlock:
        """With an empty ring."""
        block = self.config.block
        ring = kv_ring_empty(self.batch, block.groups, self.window, self.width, self.carrier)
        table = bias_table(params.attention.time_bias, block.time, block.heads)
        omega, phi = (np.zeros(0), np.zeros(0, self.compute)) if params.time2vec is None else params.time2vec
        attend = decode_kernel(Spec(self.carrier.name, table.kind, table.terms, False))
        matrices = (params.attention.w_qkv, params.attention.w_out, *params.feed_forward)
        w_qkv, w_merged, w_in, w_out = map(panels_of, matrices)
        return DecodedBlock(params, w_qkv, w_merged, w_in, w_out, ring, omega, phi, attend, table.rate, table.parameters.astype(self.compute))

    def array(self, name: str, shape: tuple[int, ...], wide: bool = False) -> ndarray:
        """One of the decoder's, in storage or in the type of arithmetic."""
        return self.workspace.array(name, shape, self.compute if wide else self.carrier)

    def prepare(self, threads: int) -> None:
        """The arrays of a step."""
        block, n, d, array = self.config.block, self.batch, self.config.block.head_dim, self.array
        e, f, h, g, width = block.embed_dim, block.hidden_dim, block.heads, block.groups, self.width
        self.threads = threads
        self.scratch = product_scratch(n, max(e, f), self.carrier, threads, self.workspace)
        self.x, self.u, self.h, self.normed, self.merged, self.z = (array(name, (n, e)) for name in ("x", "u", "h", "normed", "merged", "z"))
        self.hidden, self.act, self.added = array("hidden", (n, 2 * f)), array("act", (n, f)), array("added", (n, e), True)
        self.r, self.qkv, self.turned = array("r", (n,), True), array("qkv", (n, (h + 2 * g) * d), True), array("turned", (n, h + 2 * g, 1, width))
        self.cos, self.sin, self.q = array("cos", (n, d // 2), True), array("sin", (n, d // 2), True), array("q", (n, h, width), True)
        self.partial = array("partial", (n, h, tiles_of(self.window), width + 2), True)
        self.scores = array("scores", (n, self.config.vocab_size), True)
        self.vectors = array(f"vectors.{threads}", (threads, 4, max(BLOCK, width) + 16), True)

    def step(self, tokens: Integer[ndarray, "B"], times: Num[ndarray, "B"]) -> Shaped[ndarray, "B E"]:
        """z of one more token in every row, as carriers; the next step writes over it.

        Raises ValueError for a token outside the vocabulary or a time before the row's last one; nothing has happened then.
        """
        if tokens.shape != (self.batch,) or times.shape != (self.batch,):
            raise ValueError(f"decode: {self.batch} tokens and times are needed, got shapes {tokens.shape} and {times.shape}")
        if get_num_threads() != self.threads:
            self.prepare(get_num_threads())
        self.tokens[:] = tokens
        np.copyto(self.times, times, casting="safe")
        self.check()
        weights, past, config, eps = self.weights, self.past, self.config, self.eps
        begin(self.tokens, self.times, self.document, weights.embedding, self.x.shape[1] ** 0.5, self.origin, config.block.time.unit,
              self.times.dtype.kind == "i", past.time, past.first, past.last, past.seen, self.position, self.tau, self.x)  # fmt: skip
        scale = self.compute.type(LOG2E / np.sqrt(config.block.head_dim))
        for block in self.blocks:
            p, ring = block.params, block.ring
            project(self.x, self.position, self.tau, block.omega, block.phi, p.norm_attention, eps, self.theta, p.attention.rope_omega,
                    block.w_qkv, self.u, self.r, self.normed, self.added, self.cos, self.sin, self.qkv, *self.scratch)  # fmt: skip
            block.attend(self.qkv, self.cos, self.sin, self.position, past.time, ring.k, ring.v, self.window, scale, block.rates,
                         block.bias, self.turned, self.q, self.partial, self.vectors, self.merged)  # fmt: skip
            feed(self.merged, block.w_merged, self.x, p.norm_feed_forward, eps, block.w_in, block.w_out, self.h, self.r, self.normed, self.hidden,
                 self.act, *self.scratch)  # fmt: skip
        final_norm(self.x, weights.norm_final, eps, self.z, self.r)
        return self.z

    def check(self) -> None:
        """What was given can follow."""
        size, past = self.weights.embedding.shape[0], self.past
        b = first_unknown(self.tokens, self.document, size)
        if b >= 0:
            raise ValueError(f"decode: token {self.tokens[b]} of row {b} is outside the vocabulary of {size}")
        b = first_backwards(self.times, past.last, past.seen)
        if b >= 0:
            raise ValueError(f"decode: times go backwards in row {b}: {past.last[b]} is followed by {self.times[b]}")

    def logits(self) -> Inexact[ndarray, "B V"]:
        """Those of the last step's z; the next call writes over them."""
        panel_product(self.z, self.w_vocab, self.scores, self.scores, False, *self.scratch)
        return self.scores
