"""One transformer block on the CPU; the mathematics is in ttr_ref/transformer_block.py.

What is fused: the time features are added and the sum is normed in one pass over the rows; without dropout the residual sums are the ends of the
products that feed them; backward's norm adds the residual's gradient. Each value that the oracle rounds to storage is rounded once here too.
"""

from typing import NamedTuple

import numpy as np
from numpy import ndarray

from ttr_fast.cpu import rows
from ttr_fast.cpu.attention import AttentionPlan
from ttr_fast.cpu.dropout import Sites, dropout_backward, dropout_forward, sites_of
from ttr_fast.cpu.feed_forward_geglu import geglu_backward, geglu_forward
from ttr_fast.cpu.linear import linear_backward_input, linear_backward_weight, linear_forward
from ttr_fast.cpu.multi_head_attention import MultiHeadAttentionCache, multi_head_attention_backward, multi_head_attention_forward
from ttr_fast.cpu.places import Places
from ttr_fast.cpu.rms_norm import rms_norm_add_forward, rms_norm_backward, rms_norm_forward
from ttr_fast.cpu.time2vec import time2vec_backward, time2vec_forward
from ttr_fast.cpu.workspace import Workspace
from ttr_ref.config import BlockConfig
from ttr_ref.dropout import AFTER_ATTENTION, AFTER_FEED_FORWARD, FEED_FORWARD, DropoutKey, dropout_at
from ttr_ref.feed_forward_geglu import FeedForwardGegluParams
from ttr_ref.time2vec import Time2VecParams
from ttr_ref.transformer_block import TransformerBlockParams


class NormedInput(NamedTuple):
    """u = x + time2vec(τ), or x itself; its root mean squares; the normed rows."""

    u: ndarray
    r: ndarray
    normed: ndarray


class FeedForwardCache(NamedTuple):
    """What backward needs of norm, product, gate and product."""

    norm: NormedInput
    hidden: ndarray
    act: ndarray


class TransformerBlockCache(NamedTuple):
    """What backward needs."""

    input: NormedInput
    attention: MultiHeadAttentionCache
    feed_forward: FeedForwardCache
    key: DropoutKey | None
    layer: int


def normed_with_time(
    x: ndarray, tau: ndarray, time2vec: Time2VecParams | None, norm: ndarray, config: BlockConfig, name: str, workspace: Workspace
) -> NormedInput:
    """rms_norm(x + time2vec(τ)), without features rms_norm(x)."""
    n, e = x.shape
    compute, eps = config.float_dtype.compute, config.float_dtype.compute.type(config.norm_eps)
    r, normed = workspace.array(f"{name}.r", (n,), compute), workspace.array(f"{name}.normed", (n, e), x.dtype)
    if time2vec is None:
        rms_norm_forward(x, norm, eps, normed, r)
        return NormedInput(x, r, normed)
    features, u = workspace.array("features", (n, e), compute), workspace.array(f"{name}.u", (n, e), x.dtype)
    time2vec_forward(tau, time2vec.omega, time2vec.phi, features)
    rms_norm_add_forward(x, features, norm, eps, u, normed, r)
    return NormedInput(u, r, normed)


def normed_with_time_backward(
    dnormed: ndarray, residual: ndarray, tau: ndarray, norm: ndarray, cache: NormedInput, dx: ndarray, dnorm: ndarray,
    dtime2vec: Time2VecParams | None, workspace: Workspace,
) -> None:  # fmt: skip
    """dx = residual + (through the norm); the gradients of the norm and of Time2Vec."""
    n, e = dnormed.shape
    partial = workspace.array("norm.partial", (rows.chunks_of(n), e), norm.dtype)
    du = None if dtime2vec is None else workspace.array("features", (n, e), norm.dtype)
    rms_norm_backward(dnormed, cache.u, cache.r, norm, residual, dx, du, dnorm, partial)
    if dtime2vec is not None:
        both = workspace.array("time2vec.gradients", (2, e), np.float64)
        time2vec_backward(du, tau, dtime2vec.omega, dtime2vec.phi, both, workspace.array("time2vec.partial", (rows.chunks_of(n), 2 * e), np.float64))


def feed_forward(x: ndarray, params: FeedForwardGegluParams, norm: NormedInput, name: str, workspace: Workspace) -> FeedForwardCache:
    """geglu(normed) up to the gated hidden features; the caller multiplies them by w_out."""
    n, f = x.shape[0], params.w_out.shape[0]
    hidden, act = workspace.array(f"{name}.hidden", (n, 2 * f), x.dtype), workspace.array(f"{name}.act", (n, f), x.dtype)
    linear_forward(norm.normed, params.w_in, hidden, workspace=workspace)
    geglu_forward(hidden, act)
    return FeedForwardCache(norm, hidden, act)


def feed_forward_backward(
    df: ndarray, params: FeedForwardGegluParams, grads: FeedForwardGegluParams, cache: FeedForwardCache, dnormed: ndarray, workspace: Workspace
) -> None:
    """dnormed from df, the gradient of act @ w_out. The hidden features give their place to their gradient."""
    n, f = df.shape[0], params.w_out.shape[0]
    linear_backward_weight(cache.act, df, grads.w_out, workspace=workspace)
    dact, dhidden = workspace.array("dact", (n, f), df.dtype), cache.hidden
    linear_backward_input(df, params.w_out, dact, workspace=workspace)
    geglu_backward(dact, cache.hidden, dhidden)
    linear_backward_weight(cache.norm.normed, dhidden, grads.w_in, workspace=workspace)
    linear_backward_input(dhidden, params.w_in, dnormed, workspace=workspace)


def add_product(a: ndarray, w: ndarray, residual: ndarray, sites, places: Places, y: ndarray, workspace: Workspace) -> None:
    """y = residual + drop(a w)."""
    if sites.factors.size == 0:
        linear_forward(a, w, y, residual=residual, workspace=workspace)
        return
    product = workspace.array("product", y.shape, sites.factors.dtype)
    linear_forward(a, w, product, workspace=workspace)
    dropout_forward(product, residual, sites, places.position, places.document, y)


def block_sites(config: BlockConfig, key: DropoutKey | None, layer: int):
    """(dropout after attention, dropouts after the feed-forward)."""
    compute, p = config.float_dtype.compute, config.dropout
    after = [dropout_at(p.ff, key, layer, FEED_FORWARD), dropout_at(p.block, key, layer, AFTER_FEED_FORWARD)]
    return sites_of([dropout_at(p.block, key, layer, AFTER_ATTENTION)], compute), sites_of(after, compute)


def transformer_block_forward(
    x: ndarray, params: TransformerBlockParams, places: Places, plan: AttentionPlan, config: BlockConfig, key: DropoutKey | None, layer: int,
    name: str, y: ndarray, workspace: Workspace,
) -> TransformerBlockCache:  # fmt: skip
    """y (N, E) from x (N, E). `name`: under which the workspace keeps what backward needs."""
    after_attention, after_feed_forward = block_sites(config, key, layer)
    first = normed_with_time(x, places.tau, params.time2vec, params.norm_attention, config, f"{name}.attention", workspace)
    attention = multi_head_attention_forward(first.normed, params.attention, places, plan, config, key, layer, name, workspace)
    h = workspace.array(f"{name}.h", x.shape, x.dtype)
    add_product(attention.merged, params.attention.w_out, x, after_attention, places, h, workspace)
    second = normed_with_time(h, places.tau, None, params.norm_feed_forward, config, f"{name}.feed_forward", workspace)
    cache = feed_forward(h, params.feed_forward, second, name, workspace)
    add_product(cache.act, params.feed_forward.w_out, h, after_feed_forward, places, y, workspace)
    return TransformerBlockCache(first, attention, cache, key, layer)


def transformer_block_backward(
    dy: ndarray, params: TransformerBlockParams, grads: TransformerBlockParams, places: Places, cache: TransformerBlockCache, config: BlockConfig,
    workspace: Workspace,
) -> None:  # fmt: skip
    """dy becomes dx in its place; `grads` is filled."""
    after_attention, after_feed_forward = block_sites(config, cache.key, cache.layer)
    branch, dnormed = workspace.array("branch", dy.shape, dy.dtype), workspace.array("dnormed", dy.shape, dy.dtype)

    def through(sites: Sites) -> ndarray:
        """dy through the dropout of one branch."""
        if sites.factors.size == 0:
            return dy
        dropout_backward(dy, sites, places.position, places.document, branch)
        return branch

    feed_forward_backward(through(after_feed_forward), params.feed_forward, grads.feed_forward, cache.feed_forward, dnormed, workspace)
    normed_with_time_backward(
        dnormed, dy, places.tau, params.norm_feed_forward, cache.feed_forward.norm, dy, grads.norm_feed_forward, None, workspace
    )
    multi_head_attention_backward(through(after_attention), grads.attention, places, cache.attention, dnormed, workspace)
    normed_with_time_backward(dnormed, dy, places.tau, params.norm_attention, cache.input, dy, grads.norm_attention, params.time2vec, workspace)
    if grads.time2vec is not None:
        both = workspace.array("time2vec.gradients", (2, dy.shape[1]), np.float64)
        grads.time2vec.omega[...], grads.time2vec.phi[...] = both
