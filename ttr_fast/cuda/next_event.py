"""What comes next, and when, on the GPU; the mathematics is in ttr_ref/next_event.py.

Losses and their gradients are formed in one pass over chunks of targets: what each target's nats count for in the loss is known beforehand, so a
chunk's logits are turned into their gradient where they lie and never formed again.

Ladder of `gather_rows` and `scatter_add`:
1. A thread owns a feature of a target. Measured: not yet, no device.

Ladder of `loss_of`:
1. One block, each thread every THREADS-th target, then a tree, in float64. Measured: not yet, no device.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from ttr_fast.cuda import rows
from ttr_fast.cuda.cross_entropy import cross_entropy_backward, cross_entropy_forward
from ttr_fast.cuda.embedding import add_by_token, places_by_token
from ttr_fast.cuda.jit import blocks_for, cuda, kernel
from ttr_fast.cuda.linear import linear_forward, matmul
from ttr_fast.cuda.numbers import load, number, store
from ttr_fast.cuda.places import Places, places_of
from ttr_fast.cuda.rms_norm import rms_norm_backward, rms_norm_forward
from ttr_fast.cuda.rows import THREADS, accumulate, block_sum, fill
from ttr_fast.cuda.time2vec import time2vec_forward
from ttr_fast.cuda.time_head import time_head_backward, time_head_forward
from ttr_fast.cuda.transformer_block import feed_forward, feed_forward_backward, time_gradients
from ttr_fast.cuda.workspace import ALIGNED_TO, Workspace, on_host
from ttr_ref.config import ModelConfig, TimeHeadOrder
from ttr_ref.cross_entropy import Standing, chunks, joined, standing_of
from ttr_ref.model import ModelParams
from ttr_ref.next_event import Batch, NextTimeParams, gaps, next_timeline, orders_of, target_tokens
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


@kernel("C[::1], float64[::1], boolean, C[::1], float64, float64, float64, boolean, float64[::1]", registers=40, shared=8 * THREADS, threads=THREADS)
def sum_losses(token, time, with_time, lse, z_loss, time_weight, divisor, add, loss):
    """One block."""
    scratch, s = cuda.shared.array(THREADS, np.float64), 0.0
    for i in range(cuda.threadIdx.x, token.size, THREADS):
        top = float(lse[i])
        s += float(token[i]) + z_loss * top * top
        if with_time:
            s += time_weight * time[i]
    s = block_sum(scratch, s)
    if cuda.threadIdx.x == 0:
        loss[0] = (loss[0] if add else 0.0) + s / divisor


def loss_of(nats: list[Nats], z_loss: float, time_weight: float, divisor: float, loss) -> None:
    """loss (1,) float64 = Σ (token nats + time_weight · time nats + z_loss · LSE²) / divisor over the targets of all orders."""
    for number_of_order, (_, token, time, lse) in enumerate(nats):
        some = loss if time is None else time
        sum_losses[1, THREADS](token, some, time is not None, lse, z_loss, time_weight, divisor, number_of_order > 0, loss)


class Targets(NamedTuple):
    """What a batch asks for, on the device but for `on_host`, which are the tokens again.

    start, by_token: embedding.places_by_token of the tokens; index: where they are predicted; everywhere: all places; next_places: where what follows
    stands, if its time leads to its token.
    """

    start: Any
    by_token: Any
    index: Any
    tokens: Any
    everywhere: Any
    gap: Any
    next_places: Places | None
    on_host: Int64[ndarray, "N"]


def targets_of(batch: Batch, config: ModelConfig, workspace: Workspace) -> Targets:
    """Raises ValueError if a target is outside the vocabulary."""
    tokens = np.ascontiguousarray(target_tokens(batch, config.vocab_size)).astype(np.int64)
    start, by_token = places_by_token(tokens, np.zeros_like(tokens), config.vocab_size)
    index, everywhere = np.flatnonzero(batch.is_target).astype(np.int64), np.arange(batch.tokens.size)
    given = (start, by_token, index, tokens, everywhere, gaps(batch))
    most = 8 * (start.size + 5 * everywhere.size) + len(given) * ALIGNED_TO
    next_places = None
    if config.time_head is not None and "time_then_token" in orders_of(config):
        next_places = places_of(next_timeline(batch), config.block, "next_time", workspace)
    return Targets(*workspace.upload("targets", given, most), next_places, tokens)


class NextEvents:
    """The targets of one batch: nats in every order, and with weights the gradients of states, embedding, vocabulary and time head.

    closely: also where each target stands among all tokens, in `standings` on the host, and the mixtures' raw numbers in `raw`, for each order.
    """

    def __init__(self, z: Any, params: ModelParams, targets: Targets, config: ModelConfig, workspace: Workspace, closely: bool = False) -> None:
        self.z, self.params, self.targets, self.config, self.workspace = z, params, targets, config, workspace
        self.compute, self.count = config.block.float_dtype.compute, targets.on_host.size
        self.closely, self.standings, self.raw = closely, list[Standing](), list[Any]()

    def per_target(self, name: str, dtype: Any, *width: int) -> Any:
        """An entry for each target, from an array that has one for each place: another batch with more targets asks for nothing."""
        return self.workspace.array(name, (self.z.shape[0], *width), dtype)[: self.count]

    def states(self, x: Any, name: str, table: Any = None) -> Any:
        """The rows of the targets, in storage; with a table the embedding of what comes next is added."""
        y = self.per_target(name, x.dtype, x.shape[1])
        tokens, rows_added = self.targets.tokens, y if table is None else table
        gather_rows[blocks_for(y.size, THREADS), THREADS](x, self.targets.index, rows_added, table is not None, tokens, y)
        return y

    def token_nats(self, states: Any, order: str, weights: Weights | None, dstates: Any, dvocabulary: Any) -> tuple[Any, Any]:
        """(nats, LSE) of the targets; with weights dstates is filled and dvocabulary added to."""
        config, compute, array = self.config, self.compute, self.workspace.array
        vocabulary = self.params.embedding if config.tied else self.params.w_vocab
        size, most, parts = config.vocab_size, min(config.loss_chunk, self.z.shape[0]), list[Standing]()
        nats, lse = self.per_target(f"nats.{order}", compute), self.per_target(f"lse.{order}", compute)
        for part in chunks(self.count, config.loss_chunk):
            n = part.stop - part.start
            logits = array("logits", (most, size), compute)[:n]
            matmul(states[part], False, vocabulary, config.tied, None, logits)
            cross_entropy_forward(logits, self.targets.tokens[part], nats[part], lse[part])
            if self.closely:
                parts.append(standing_of(on_host(logits), on_host(lse[part]), self.targets.on_host[part]))
            if weights is None:
                continue
            dnats, dlse = array("dnats", (most,), compute)[:n], array("dlse.chunk", (most,), compute)[:n]
            dlogits = logits if states.dtype == compute else array("dlogits", (most, size), states.dtype)[:n]
            fill(dnats, weights.token)
            scale_items[blocks_for(n, THREADS), THREADS](lse[part], compute.type(2 * weights.z_loss), dlse)
            cross_entropy_backward(dnats, dlse, self.targets.tokens[part], lse[part], logits, dlogits)
            matmul(dlogits, False, vocabulary, not config.tied, None, dstates[part])
            left, right = (dlogits, states[part]) if config.tied else (states[part], dlogits)
            matmul(left, True, right, False, dvocabulary, dvocabulary)
        if parts:
            self.standings.append(joined(parts))
        return nats, lse

    def with_next_time(self, params: NextTimeParams) -> tuple[Any, Any]:
        """(z + geglu(rms_norm(z + time2vec(t_{i+1}))), what backward needs)."""
        array, z = self.workspace.array, self.z
        places = self.targets.next_places
        assert places is not None
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
        scatter_add(dstates, self.targets.index, dy)
        feed_forward_backward(dy, params.feed_forward, grads.feed_forward, normed, hidden, act, dnormed, self.workspace)
        du, partial = array("du", z.shape, self.compute), array("norm.partial", (rows.chunks_of(z.shape[0]), z.shape[1]), self.compute)
        rms_norm_backward(dnormed, u, r, params.norm, dy, dx, du, grads.norm, partial)
        time_gradients(du, places.tau, params.time2vec, grads.time2vec, self.workspace)
        scatter_add(dx, self.targets.everywhere, dz)

    def time_nats(self, order: TimeHeadOrder, mixture: MixtureParams, weights: Weights | None, dz: Any, grads: ModelParams | None) -> Any:
        """−ln p of the gaps; with weights gradients are added to dz, to the mixture's and to the embedding's."""
        resolution, width = self.config.block.time.resolution, mixture.b_mixture.size
        states = self.states(self.z, "time_states", self.params.embedding if order == "token_then_time" else None)
        raw, nats = self.per_target(f"raw.{order}", self.compute, width), self.per_target(f"time_nats.{order}", np.float64)
        matmul(states, False, mixture.w_mixture, False, None, raw)
        time_head_forward(raw, mixture.b_mixture, self.targets.gap, resolution, nats)
        if self.closely:
            self.raw.append(raw)
        if weights is None or grads is None or grads.time_head is None:
            return nats
        mine, chunks_of_rows = grads.time_head.mixture, rows.chunks_of(self.z.shape[0])
        dnats, wide = self.per_target("dtime", np.float64), self.per_target("wide", np.float64, width)
        partial = self.workspace.array("wide.partial", (chunks_of_rows, width), np.float64)[: rows.chunks_of(self.count)]
        draw, dbias = self.per_target("draw", states.dtype, width), self.workspace.array("dbias", (width,), self.compute)
        dstates = self.per_target("dtime_states", self.compute, states.shape[1])
        fill(dnats, weights.time)
        time_head_backward(dnats, raw, mixture.b_mixture, self.targets.gap, resolution, draw, dbias, wide, partial)
        accumulate(dbias, True, mine.b_mixture)
        matmul(states, True, draw, False, mine.w_mixture, mine.w_mixture)
        matmul(draw, False, mixture.w_mixture, True, None, dstates)
        scatter_add(dstates, self.targets.index, dz)
        if order == "token_then_time":
            add_by_token(dstates, self.targets.start, self.targets.by_token, 1.0, True, grads.embedding)
        return nats

    def order(self, order: TimeHeadOrder, weights: Weights | None, dz: Any, grads: ModelParams | None) -> Nats:
        """The nats of one order."""
        head = self.params.time_head
        next_time = None if head is None or order == "token_then_time" else head.next_time
        source, way = (self.z, None) if next_time is None else self.with_next_time(next_time)
        states = self.states(source, "states")
        dstates = None if grads is None else self.per_target("dstates", self.compute, states.shape[1])
        dvocabulary = None if grads is None else grads.embedding if self.config.tied else grads.w_vocab
        nats, lse = self.token_nats(states, order, weights, dstates, dvocabulary)
        if grads is not None:
            if next_time is None or way is None or grads.time_head is None or grads.time_head.next_time is None:
                scatter_add(dstates, self.targets.index, dz)
            else:
                self.with_next_time_backward(dstates, way, dz, next_time, grads.time_head.next_time)
        return Nats(order, nats, None if head is None else self.time_nats(order, head.mixture, weights, dz, grads), lse)

    def all_orders(self, weights: Weights | None = None, dz: Any = None, grads: ModelParams | None = None) -> list[Nats]:
        """The nats of each order that is trained; with weights gradients are added to dz (N, E) in the type of arithmetic and to grads."""
        return [self.order(order, weights, dz, grads) for order in orders_of(self.config)]
