"""What comes next, and when, on the CPU; the mathematics is in ttr_ref/next_event.py.

Losses and their gradients are formed in one pass over chunks of targets: what each target's nats count for in the loss is known beforehand, so a
chunk's logits are turned into their gradient where they lie and never formed again.
"""

from typing import NamedTuple

import numpy as np
from numpy import ndarray

from ttr_fast.cpu import rows, simd
from ttr_fast.cpu.cross_entropy import cross_entropy_backward, cross_entropy_forward
from ttr_fast.cpu.dropout import sites_of
from ttr_fast.cpu.embedding import add_by_token
from ttr_fast.cpu.linear import matmul
from ttr_fast.cpu.places import Places, places_of
from ttr_fast.cpu.team import share, team
from ttr_fast.cpu.time_head import time_head_backward, time_head_forward
from ttr_fast.cpu.transformer_block import add_product, feed_forward, feed_forward_backward, normed_with_time, normed_with_time_backward
from ttr_fast.cpu.workspace import Workspace
from ttr_ref.config import ModelConfig, TimeHeadOrder
from ttr_ref.cross_entropy import Standing, chunks, joined, standing_of
from ttr_ref.model import ModelParams
from ttr_ref.next_event import Batch, EventNats, NextTimeParams, gaps, next_timeline, orders_of, target_tokens
from ttr_ref.time_head import MixtureParams


class Weights(NamedTuple):
    """What one target counts for in the loss: its token's nats, its gap's nats, LSE²."""

    token: float
    time: float
    z_loss: float


@team()
def gather(worker, workers, x, index, table, tokens, y):
    """y[n] = x[index[n]], plus table[tokens[n]] if there is a table."""
    e = x.shape[1]
    begin, end = share(worker, workers, index.size)
    for n in range(begin, end):
        for k in range(0, e, rows.lanes_of(x)):
            v = rows.load_part(x, index[n] * e + k, e - k)
            if table is not None:
                v = simd.add(v, rows.load_part(table, tokens[n] * e + k, e - k))
            rows.store_part(v, y, n * e + k, e - k)


@team()
def scatter_add(worker, workers, y, index, x):
    """x[index[n]] += y[n]; no place occurs twice."""
    e = x.shape[1]
    begin, end = share(worker, workers, index.size)
    for n in range(begin, end):
        for k in range(0, e, rows.lanes_of(x)):
            at = index[n] * e + k
            rows.store_part(simd.add(rows.load_part(x, at, e - k), rows.load_part(y, n * e + k, e - k)), x, at, e - k)


def token_nats(
    states: ndarray, vocabulary: ndarray, tied: bool, tokens: ndarray, chunk: int, weights: Weights | None, dstates: ndarray | None,
    dvocabulary: ndarray | None, workspace: Workspace, standings: list[Standing] | None = None,
) -> tuple[ndarray, ndarray]:  # fmt: skip
    """(nats, LSE) of the targets; with weights, dstates is filled and dvocabulary added to. vocabulary: (V, E) if tied, else (E, V).

    standings: gets where the targets of each chunk stand.
    """
    count, size = states.shape[0], vocabulary.shape[0 if tied else 1]
    compute = np.dtype(np.float64 if states.dtype == np.float64 else np.float32)
    nats, lse = np.empty(count, compute), np.empty(count, compute)
    for part in chunks(count, chunk):
        n = part.stop - part.start
        logits = workspace.array("logits", (n, size), compute)
        matmul(states[part], False, vocabulary, tied, logits, None, workspace)
        cross_entropy_forward(logits, tokens[part], nats[part], lse[part])
        if standings is not None:
            standings.append(standing_of(logits, lse[part], tokens[part]))
        if weights is None or dstates is None or dvocabulary is None:
            continue
        dlogits = logits if states.dtype == compute else workspace.array("dlogits", (n, size), states.dtype)
        dlse = (2 * weights.z_loss) * lse[part]
        cross_entropy_backward(np.full(n, weights.token, compute), dlse.astype(compute), tokens[part], lse[part], logits, dlogits)
        matmul(dlogits, False, vocabulary, not tied, dstates[part], None, workspace)
        left, right = (dlogits, states[part]) if tied else (states[part], dlogits)
        matmul(left, True, right, False, dvocabulary, dvocabulary, workspace)
    return nats, lse


class NextEvents:
    """The targets of one batch: nats in every order, and with weights the gradients of states, embedding, vocabulary and time head.

    closely: also where each target stands among all tokens, in `standings`, for each order. Raises ValueError if one is outside the vocabulary.
    """

    def __init__(
        self, z: ndarray, params: ModelParams, batch: Batch, places: Places, config: ModelConfig, workspace: Workspace, closely: bool = False
    ) -> None:
        self.z, self.params, self.batch, self.places, self.config, self.workspace = z, params, batch, places, config, workspace
        self.index = np.flatnonzero(batch.is_target).astype(np.int64)
        self.tokens = np.ascontiguousarray(target_tokens(batch, params.embedding.shape[0])).astype(np.int64)
        self.vocabulary = params.embedding if params.w_vocab is None else params.w_vocab
        self.compute = config.block.float_dtype.compute
        self.raw: list[ndarray] = []
        self.closely, self.standings = closely, list[Standing]()

    def states(self, x: ndarray, name: str, table: ndarray | None = None) -> ndarray:
        """The rows of the targets, in storage; with a table the embedding of what comes next is added."""
        y = self.workspace.array(name, (self.index.size, x.shape[1]), x.dtype)
        gather(x, self.index, table, self.tokens, y)
        return y

    def order(self, order: TimeHeadOrder, weights: Weights | None, dz: ndarray | None, grads: ModelParams | None) -> tuple[EventNats, ndarray]:
        """(nats, LSE) of one order; with weights its gradients are added to dz (N, E) in the type of arithmetic and to grads."""
        head, workspace, config = self.params.time_head, self.workspace, self.config
        source, way = self.z, None
        if head is not None and order == "time_then_token" and head.next_time is not None:
            source, way = self.with_next_time(head.next_time)
        states = self.states(source, "states")
        dstates = None if grads is None else workspace.array("dstates", states.shape, self.compute)
        dvocabulary = None if grads is None else (grads.embedding if config.tied else grads.w_vocab)
        parts: list[Standing] | None = [] if self.closely else None
        nats, lse = token_nats(states, self.vocabulary, config.tied, self.tokens, config.loss_chunk, weights, dstates, dvocabulary, workspace, parts)
        if parts:
            self.standings.append(joined(parts))
        if dz is not None and dstates is not None and grads is not None:
            if way is None or head is None or grads.time_head is None:
                scatter_add(dstates, self.index, dz)
            else:
                self.with_next_time_backward(dstates, way, dz, head.next_time, grads.time_head.next_time)
        time_nats = None if head is None else self.time_nats(order, head.mixture, weights, dz, grads)
        return EventNats(order, nats, time_nats), lse

    def with_next_time(self, params: NextTimeParams):
        """(z + geglu(rms_norm(z + time2vec(t_{i+1}))), what backward needs)."""
        at, block = next_timeline(self.batch), self.config.block
        places = places_of(at, block.time)
        norm = normed_with_time(self.z, places.tau, params.time2vec, params.norm, block, "next_time", self.workspace)
        cache = feed_forward(self.z, params.feed_forward, norm, "next_time", self.workspace)
        y = self.workspace.array("next_time.y", self.z.shape, self.z.dtype)
        add_product(cache.act, params.feed_forward.w_out, self.z, sites_of([], self.compute), places, y, self.workspace)
        return y, (places, cache)

    def with_next_time_backward(self, dstates: ndarray, way, dz: ndarray, params, mine) -> None:
        """The gradients of the way of the next time to the token."""
        places, cache = way
        workspace = self.workspace
        dy = workspace.zeros("next_time.dy", self.z.shape, self.z.dtype)
        scatter_add(dstates, self.index, dy)
        dnormed = workspace.array("dnormed", self.z.shape, self.z.dtype)
        feed_forward_backward(dy, params.feed_forward, mine.feed_forward, cache, dnormed, workspace)
        normed_with_time_backward(dnormed, dy, places.tau, params.norm, cache.norm, dy, mine.norm, params.time2vec, workspace)
        mine.time2vec.omega[...], mine.time2vec.phi[...] = workspace.array("time2vec.gradients", (2, dy.shape[1]), np.float64)
        scatter_add(dy, np.arange(dy.shape[0]), dz)

    def time_nats(
        self, order: TimeHeadOrder, mixture: MixtureParams, weights: Weights | None, dz: ndarray | None, grads: ModelParams | None
    ) -> ndarray:
        """−ln p of the gaps."""
        workspace, resolution = self.workspace, self.config.block.time.resolution
        states = self.states(self.z, "time_states", self.params.embedding if order == "token_then_time" else None)
        gap, count, width = gaps(self.batch), self.index.size, mixture.b_mixture.size
        raw = workspace.array(f"raw.{order}", (count, width), self.compute)
        matmul(states, False, mixture.w_mixture, False, raw, None, workspace)
        nats, bias = np.empty(count), mixture.b_mixture.astype(np.float64)
        time_head_forward(raw, bias, gap, resolution, nats)
        self.raw.append(raw)
        if weights is None or dz is None or grads is None or grads.time_head is None:
            return nats
        draw = workspace.array("draw", (count, width), self.compute)
        dbias, partial = np.empty(width), workspace.array("draw.partial", (rows.chunks_of(count), width), np.float64)
        time_head_backward(np.full(count, weights.time), raw, bias, gap, resolution, draw, dbias, partial)
        grads.time_head.mixture.b_mixture[...] += dbias
        matmul(states, True, draw, False, grads.time_head.mixture.w_mixture, grads.time_head.mixture.w_mixture, workspace)
        dstates = workspace.array("dtime_states", states.shape, self.compute)
        matmul(draw, False, mixture.w_mixture, True, dstates, None, workspace)
        scatter_add(dstates, self.index, dz)
        if order == "token_then_time":
            start, places = np.empty(grads.embedding.shape[0] + 1, np.int64), np.empty(count, np.int64)
            add_by_token(dstates, self.tokens, np.zeros(count, np.int64), 1.0, True, grads.embedding, start, places)
        return nats

    def all_orders(self, weights: Weights | None = None, dz: ndarray | None = None, grads: ModelParams | None = None):
        """(nats, LSE) of each order that is trained."""
        self.raw.clear()
        return [self.order(order, weights, dz, grads) for order in orders_of(self.config)]
