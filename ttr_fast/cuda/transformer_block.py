"""One transformer block on the GPU; the mathematics is in ttr_ref/transformer_block.py.

Made of the kernels of its neighbours: without dropout the residual sums are the ends of the products that feed them, with it those of the pass that
draws; backward's norm adds the residual's gradient. Each value that the oracle rounds to storage is rounded once here too.
"""

from typing import Any, NamedTuple

import numpy as np

from ttr_fast.cuda import rows
from ttr_fast.cuda.attention_plan import AttentionPlan
from ttr_fast.cuda.dropout import Sites, backward_order, dropout_backward, dropout_forward, sites_of
from ttr_fast.cuda.feed_forward_geglu import geglu_backward, geglu_forward
from ttr_fast.cuda.linear import linear_backward_input, linear_backward_weight, linear_forward
from ttr_fast.cuda.multi_head_attention import MultiHeadAttentionCache, multi_head_attention_backward, multi_head_attention_forward
from ttr_fast.cuda.places import Places
from ttr_fast.cuda.rms_norm import rms_norm_backward, rms_norm_forward
from ttr_fast.cuda.time2vec import time2vec_backward, time2vec_forward
from ttr_fast.cuda.workspace import Workspace
from ttr_ref.config import BlockConfig
from ttr_ref.dropout import AFTER_ATTENTION, AFTER_FEED_FORWARD, ATTENTION, FEED_FORWARD, WHOLE_HEAD, DropoutKey, dropout_at
from ttr_ref.feed_forward_geglu import FeedForwardGegluParams
from ttr_ref.time2vec import Time2VecParams
from ttr_ref.transformer_block import TransformerBlockParams


class BlockSites(NamedTuple):
    """The dropouts of one block."""

    weights: Sites
    heads: Sites
    after_attention: Sites
    after_feed_forward: Sites
    last_first: Sites
    """Those after the feed-forward, as backward takes them."""


class TransformerBlockCache(NamedTuple):
    """What backward needs: the normed sums, their scales, what norms give, the hidden features and their gate."""

    u: Any
    r: Any
    normed: Any
    attention: MultiHeadAttentionCache
    h: Any
    h_r: Any
    h_normed: Any
    hidden: Any
    act: Any
    sites: BlockSites


def block_sites(config: BlockConfig, key: DropoutKey | None, layer: int) -> BlockSites:
    """What is drawn in a block, in arrays of the host; key None draws nothing."""
    p, compute = config.dropout, config.float_dtype.compute
    places = {"attn": [ATTENTION], "head": [WHOLE_HEAD], "block": [AFTER_ATTENTION]}
    weights, heads, after = (sites_of([dropout_at(getattr(p, name), key, layer, place) for place in at], compute) for name, at in places.items())
    last = sites_of([dropout_at(p.ff, key, layer, FEED_FORWARD), dropout_at(p.block, key, layer, AFTER_FEED_FORWARD)], compute)
    return BlockSites(weights, heads, after, last, backward_order(last))


def add_product(a: Any, w: Any, residual: Any, sites: Sites, places: Places, y: Any, workspace: Workspace) -> None:
    """y = residual + drop(a w)."""
    if sites.factors.size == 0:
        linear_forward(a, w, y, residual)
        return
    product = workspace.array("product", y.shape, sites.factors.dtype)
    linear_forward(a, w, product)
    dropout_forward(product, residual, sites, places.position, places.document, y)


def feed_forward(normed: Any, params: FeedForwardGegluParams, name: str, workspace: Workspace) -> tuple[Any, Any]:
    """The hidden features and their gate; the caller multiplies the latter by w_out."""
    n, f = normed.shape[0], params.w_out.shape[0]
    hidden, act = workspace.array(f"{name}.hidden", (n, 2 * f), normed.dtype), workspace.array(f"{name}.act", (n, f), normed.dtype)
    linear_forward(normed, params.w_in, hidden)
    geglu_forward(hidden, act)
    return hidden, act


def feed_forward_backward(
    df: Any, params: FeedForwardGegluParams, grads: FeedForwardGegluParams, normed: Any, hidden: Any, act: Any, dnormed: Any, workspace: Workspace
) -> None:
    """dnormed from df, the gradient of act @ w_out. The hidden features give their place to their gradient."""
    dact = workspace.array("dact", act.shape, df.dtype)
    linear_backward_weight(act, df, grads.w_out)
    linear_backward_input(df, params.w_out, dact)
    geglu_backward(dact, hidden, hidden)
    linear_backward_weight(normed, hidden, grads.w_in)
    linear_backward_input(hidden, params.w_in, dnormed)


def time_gradients(du: Any, tau: Any, params: Time2VecParams, grads: Time2VecParams, workspace: Workspace) -> None:
    """Those of Time2Vec, whose features got the gradient du."""
    time2vec_backward(du, tau, *params, *grads, workspace.array("time2vec.partial", (2, rows.chunks_of(du.shape[0]), du.shape[1]), np.float64))


def transformer_block_forward(
    x: Any, params: TransformerBlockParams, places: Places, plan: AttentionPlan, config: BlockConfig, sites: BlockSites, name: str, y: Any,
    workspace: Workspace,
) -> TransformerBlockCache:  # fmt: skip
    """y (N, E) from x (N, E). `name`: under which the workspace keeps what backward needs; sites: block_sites, on the device."""
    n, compute, eps = x.shape[0], config.float_dtype.compute, config.norm_eps

    def array(part: str, shape: tuple[int, ...], dtype: Any = x.dtype) -> Any:
        return workspace.array(f"{name}.{part}", shape, dtype)

    u, r, normed = x, array("r", (n,), compute), array("normed", x.shape)
    if params.time2vec is not None:
        u = array("u", x.shape)
        time2vec_forward(places.tau, params.time2vec.omega, params.time2vec.phi, x, u)
    rms_norm_forward(u, params.norm_attention, eps, normed, r)
    attention = multi_head_attention_forward(normed, params.attention, places, plan, config, sites.weights, sites.heads, name, workspace)
    h, h_r, h_normed = array("h", x.shape), array("h.r", (n,), compute), array("h.normed", x.shape)
    add_product(attention.merged, params.attention.w_out, x, sites.after_attention, places, h, workspace)
    rms_norm_forward(h, params.norm_feed_forward, eps, h_normed, h_r)
    hidden, act = feed_forward(h_normed, params.feed_forward, name, workspace)
    add_product(act, params.feed_forward.w_out, h, sites.after_feed_forward, places, y, workspace)
    return TransformerBlockCache(u, r, normed, attention, h, h_r, h_normed, hidden, act, sites)


def transformer_block_backward(
    dy: Any, params: TransformerBlockParams, grads: TransformerBlockParams, places: Places, cache: TransformerBlockCache, dx: Any,
    workspace: Workspace,
) -> None:  # fmt: skip
    """dx from dy, both (N, E) in storage; `grads` is filled. The hidden features give their place to their gradient."""
    array, (n, e), compute = workspace.array, dy.shape, cache.r.dtype
    branch, dnormed, dh = (array(part, dy.shape, dy.dtype) for part in ("branch", "dnormed", "dh"))
    partial = array("norm.partial", (rows.chunks_of(n), e), compute)

    def through(d: Any, sites: Sites) -> Any:
        """d through the dropout of a branch."""
        if sites.factors.size:
            dropout_backward(d, sites, places.position, places.document, branch)
        return branch if sites.factors.size else d

    df = through(dy, cache.sites.last_first)
    feed_forward_backward(df, params.feed_forward, grads.feed_forward, cache.h_normed, cache.hidden, cache.act, dnormed, workspace)
    rms_norm_backward(dnormed, cache.h, cache.h_r, params.norm_feed_forward, dy, dh, None, grads.norm_feed_forward, partial)
    da = through(dh, cache.sites.after_attention)
    multi_head_attention_backward(da, params.attention, grads.attention, places, cache.attention, dnormed, workspace)
    du = None if grads.time2vec is None else array("du", dy.shape, compute)
    rms_norm_backward(dnormed, cache.u, cache.r, params.norm_attention, dh, dx, du, grads.norm_attention, partial)
    if params.time2vec is not None and grads.time2vec is not None:
        time_gradients(du, places.tau, params.time2vec, grads.time2vec, workspace)
