"""What comes next, and when, on the GPU; the mathematics is in ttr_ref/next_event.py.

Losses and their gradients are formed in one pass over chunks of targets: what each target's nats count for in the loss is known beforehand, so a
chunk's logits are turned into their gradient where they lie and never formed again.

Ladder of `gather` and `scatter_add`:
1. A thread owns a feature of a target. Measured: not yet, no device.
"""

from typing import Any, NamedTuple

import numpy as np

from ttr_fast.cuda import rows
from ttr_fast.cuda.cross_entropy import cross_entropy_backward, cross_entropy_forward
from ttr_fast.cuda.embedding import add_by_token, places_by_token
from ttr_fast.cuda.jit import blocks_for, cuda, kernel
from ttr_fast.cuda.linear import linear_forward, matmul
from ttr_fast.cuda.numbers import load, number, store
from ttr_fast.cuda.places import Places, places_of
from ttr_fast.cuda.rms_norm import rms_norm_backward, rms_norm_forward
from ttr_fast.cuda.rows import THREADS, fill
from ttr_fast.cuda.time2vec import time2vec_forward
from ttr_fast.cuda.time_head import time_head_backward, time_head_forward
from ttr_fast.cuda.transformer_block import feed_forward, feed_forward_backward, time_gradients
from ttr_fast.cuda.workspace import Workspace, on_device
from ttr_ref.config import ModelConfig, TimeHeadOrder
from ttr_ref.cross_entropy import chunks
from ttr_ref.model import ModelParams
from ttr_ref.next_event import Batch, NextTimeParams, gaps, next_timeline, orders_of
from ttr_ref.time_head import MixtureParams


class Weights(NamedTuple):
    """What one target counts for in the loss: its token's nats, its gap's nats, LSE²."""

    token: float
    time: float
    z_loss: float


class Nats(NamedTuple):
    """Of the targets in one order, arrays of the device: −ln p of the token, of the gap (None without a time head), LSE."""

    order: TimeHeadOrder
    token: Any
    time: Any
    lse: Any


@kernel("S[:, ::1], int64[::1], S[:, ::1], boolean, int64[::1], S[:, ::1]", registers=32, threads=THREADS)
def gather_rows(x, index, table, with_table, tokens, y):
    """y[n] = x[index[n]], plus table[tokens[n]] if there is a table."""
    at, e = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, x.shape[1]
    n, k = at // e, at % e
    if n < index.size:
        v = load(x, (index[n], k))
        if with_table:
            v += load(table, (tokens[n], k))
        store(v, y, (n, k))


@kernel(("C[:, ::1], int64[::1], S[:, ::1]", "S[:, ::1], int64[::1], C[:, ::1]"), registers=32, threads=THREADS)
def scatter_rows(y, index, x):
    """x[index[n]] += y[n]; no place occurs twice."""
    at, e = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, x.shape[1]
    n, k = at // e, at % e
    if n < index.size:
        store(load(x, (index[n], k)) + load(y, (n, k)), x, (index[n], k))


def scatter_add(y, index, x) -> None:
    """x (·, E)[index[n]] += y (N, E)[n]; no place occurs twice."""
    scatter_rows[blocks_for(y.size, THREADS), THREADS](y, index, x)


@kernel("C[::1], C, C[::1]", registers=16, threads=THREADS)
def scale_items(x, factor, y):
    """y = factor · x; one thread for each item."""
    i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if i < x.size:
        y[i] = number(x, factor) * x[i]


class NextEvents:
    """The targets of one batch: nats in every order, and with weights the gradients of states, embedding, vocabulary and time head."""

    def __init__(self, z: Any, params: ModelParams, batch: Batch, config: ModelConfig, workspace: Workspace) -> None:
        self.z, self.params, self.batch, self.config, self.workspace = z, params, batch, config, workspace
        self.compute = config.block.float_dtype.compute
        tokens = np.ascontiguousarray(batch.next_tokens[batch.is_target]).astype(np.int64)
        self.count = tokens.size
        self.start, self.places = on_device(places_by_token(tokens, np.zeros_like(tokens), config.vocab_size))
        index, everywhere = np.flatnonzero(batch.is_target).astype(np.int64), np.arange(z.shape[0])
        self.index, self.tokens, self.everywhere, self.gap = on_device((index, tokens, everywhere, gaps(batch)))

    def states(self, x: Any, name: str, table: Any = None) -> Any:
        """The rows of the targets, in storage; with a table the embedding of what comes next is added."""
        y = self.workspace.array(name, (self.count, x.shape[1]), x.dtype)
        gather_rows[blocks_for(y.size, THREADS), THREADS](x, self.index, y if table is None else table, table is not None, self.tokens, y)
        return y

    def token_nats(self, states: Any, order: str, weights: Weights, dstates: Any, dvocabulary: Any) -> tuple[Any, Any]:
        """(nats, LSE) of the targets; dstates is filled and dvocabulary added to."""
        config, compute, array = self.config, self.compute, self.workspace.array
        vocabulary = self.params.embedding if config.tied else self.params.w_vocab
        size = config.vocab_size
        nats, lse = array(f"nats.{order}", (self.count,), compute), array(f"lse.{order}", (self.count,), compute)
        for part in chunks(self.count, config.loss_chunk):
            n = part.stop - part.start
            logits, dnats, dlse = array("logits", (n, size), compute), array("dnats", (n,), compute), array("dlse.chunk", (n,), compute)
            matmul(states[part], False, vocabulary, config.tied, None, logits)
            cross_entropy_forward(logits, self.tokens[part], nats[part], lse[part])
            dlogits = logits if states.dtype == compute else array("dlogits", (n, size), states.dtype)
            fill(dnats, weights.token)
            scale_items[blocks_for(n, THREADS), THREADS](lse[part], compute.type(2 * weights.z_loss), dlse)
            cross_entropy_backward(dnats, dlse, self.tokens[part], lse[part], logits, dlogits)
            matmul(dlogits, False, vocabulary, not config.tied, None, dstates[part])
            left, right = (dlogits, states[part]) if config.tied else (states[part], dlogits)
            matmul(left, True, right, False, dvocabulary, dvocabulary)
        return nats, lse

    def with_next_time(self, params: NextTimeParams) -> tuple[Any, Any]:
        """(z + geglu(rms_norm(z + time2vec(t_{i+1}))), what backward needs)."""
        places, array, z = places_of(next_timeline(self.batch), self.config.block), self.workspace.array, self.z
        u, normed, y = (array(f"next_time.{part}", z.shape, z.dtype) for part in ("u", "normed", "y"))
        r = array("next_time.r", (z.shape[0],), self.compute)
        time2vec_forward(places.tau, *params.time2vec, z, u)
        rms_norm_forward(u, params.norm, self.config.block.norm_eps, normed, r)
        hidden, act = feed_forward(normed, params.feed_forward, "next_time", self.workspace)
        linear_forward(act, params.feed_forward.w_out, y, z)
        return y, (places, u, r, normed, hidden, act)

    def with_next_time_backward(
        self, dstates: Any, way: tuple[Places, Any, Any, Any, Any, Any], dz: Any, params: NextTimeParams, grads: NextTimeParams
    ) -> None:
        """The gradients of the way of the next time to the token; those of z are added to dz."""
        (places, u, r, normed, hidden, act), array, z = way, self.workspace.array, self.z
        dy, dnormed, dx = (array(f"next_time.{part}", z.shape, z.dtype) for part in ("dy", "dnormed", "dx"))
        fill(dy, 0)
        scatter_add(dstates, self.index, dy)
        feed_forward_backward(dy, params.feed_forward, grads.feed_forward, normed, hidden, act, dnormed, self.workspace)
        du, partial = array("du", z.shape, self.compute), array("norm.partial", (rows.chunks_of(z.shape[0]), z.shape[1]), self.compute)
        rms_norm_backward(dnormed, u, r, params.norm, dy, dx, du, grads.norm, partial)
        time_gradients(du, places.tau, params.time2vec, grads.time2vec, self.workspace)
        scatter_add(dx, self.everywhere, dz)

    def time_nats(self, order: TimeHeadOrder, mixture: MixtureParams, weights: Weights, dz: Any, mine: MixtureParams, dembedding: Any) -> Any:
        """−ln p of the gaps; gradients are added to dz, to the mixture's and to the embedding's."""
        array, resolution, (n, width) = self.workspace.array, self.config.block.time.resolution, (self.count, mixture.b_mixture.size)
        states = self.states(self.z, "time_states", self.params.embedding if order == "token_then_time" else None)
        raw, nats, dnats = array("raw", (n, width), self.compute), array(f"time_nats.{order}", (n,), np.float64), array("dtime", (n,), np.float64)
        matmul(states, False, mixture.w_mixture, False, None, raw)
        time_head_forward(raw, mixture.b_mixture, self.gap, resolution, nats)
        fill(dnats, weights.time)
        wide, partial = array("wide", (n, width), np.float64), array("wide.partial", (rows.chunks_of(n), width), np.float64)
        draw, dbias = array("draw", (n, width), states.dtype), array("dbias", (width,), self.compute)
        dstates = array("dtime_states", states.shape, self.compute)
        time_head_backward(dnats, raw, mixture.b_mixture, self.gap, resolution, draw, dbias, wide, partial)
        scatter_add(dbias.reshape(1, -1), self.everywhere[:1], mine.b_mixture.reshape(1, -1))
        matmul(states, True, draw, False, mine.w_mixture, mine.w_mixture)
        matmul(draw, False, mixture.w_mixture, True, None, dstates)
        scatter_add(dstates, self.index, dz)
        if order == "token_then_time":
            add_by_token(dstates, self.start, self.places, 1.0, True, dembedding)
        return nats

    def all_orders(self, weights: Weights, dz: Any, grads: ModelParams) -> list[Nats]:
        """The nats of each order that is trained; gradients are added to dz (N, E) in the type of arithmetic and to grads."""
        head, mine, array, found = self.params.time_head, grads.time_head, self.workspace.array, []
        dvocabulary = grads.embedding if self.config.tied else grads.w_vocab
        for order in orders_of(self.config):
            next_time = None if head is None or order == "token_then_time" else head.next_time
            source, way = (self.z, None) if next_time is None else self.with_next_time(next_time)
            states = self.states(source, "states")
            dstates = array("dstates", states.shape, self.compute)
            nats, lse = self.token_nats(states, order, weights, dstates, dvocabulary)
            if next_time is None or way is None or mine is None or mine.next_time is None:
                scatter_add(dstates, self.index, dz)
            else:
                self.with_next_time_backward(dstates, way, dz, next_time, mine.next_time)
            time = None
            if head is not None and mine is not None:
                time = self.time_nats(order, head.mixture, weights, dz, mine.mixture, grads.embedding)
            found.append(Nats(order, nats, time, lse))
        return found
