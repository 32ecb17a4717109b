"""Multi-head attention on the CPU; the mathematics is in ttr_ref/multi_head_attention.py.

The projection's rows (N, (H + 2G) D) stay in the type of arithmetic until rope has turned them into heads (B, H, T, width), rounded once there.
`merge_heads` and `split_heads` carry the factors of dropped heads. Everything is written into arrays of the workspace; those whose name starts with
the block's live until backward.
"""

from typing import NamedTuple

import numpy as np
from numpy import ndarray

from ttr_fast.cpu import rows, simd
from ttr_fast.cpu.attention import AttentionCache, AttentionPlan, attend, attend_backward, padded_width
from ttr_fast.cpu.dropout import head_dropout_factors, sites_of
from ttr_fast.cpu.linear import linear_backward_input, linear_backward_weight, linear_forward
from ttr_fast.cpu.places import Places
from ttr_fast.cpu.rope import rope_angles, rope_backward, rope_forward
from ttr_fast.cpu.team import share, team
from ttr_fast.cpu.workspace import Workspace
from ttr_ref.config import BlockConfig
from ttr_ref.dropout import ATTENTION, WHOLE_HEAD, DropoutKey, dropout_at
from ttr_ref.multi_head_attention import MultiHeadAttentionParams


class MultiHeadAttentionCache(NamedTuple):
    """What backward needs."""

    x: ndarray
    merged: ndarray
    attention: AttentionCache
    cos: ndarray
    sin: ndarray
    factors: ndarray
    params: MultiHeadAttentionParams


@team()
def merge_heads(worker, workers, o, d, factors, merged):
    """merged (N, H D) = the first d features of each head of o (B, H, T, width), times factors (N, H)."""
    _, heads, places, width = o.shape
    begin, end = share(worker, workers, merged.shape[0])
    for i in range(begin, end):
        for h in range(heads):
            source, target = (((i // places) * heads + h) * places + i % places) * width, (i * heads + h) * d
            factor = rows.full(o, factors[i, h])
            for x in range(0, d, rows.lanes_of(o)):
                rows.store_part(simd.mul(rows.load_part(o, source + x, d - x), factor), merged, target + x, d - x)


@team()
def split_heads(worker, workers, merged, d, factors, o):
    """The way back, zeros behind each head's features."""
    _, heads, places, width = o.shape
    begin, end = share(worker, workers, merged.shape[0])
    for i in range(begin, end):
        for h in range(heads):
            source, target = (i * heads + h) * d, (((i // places) * heads + h) * places + i % places) * width
            factor = rows.full(o, factors[i, h])
            for x in range(0, width, rows.lanes_of(o)):
                simd.store(simd.mul(rows.load_part(merged, source + x, d - x), factor), o, target + x)


def multi_head_attention_forward(
    x: ndarray, params: MultiHeadAttentionParams, places: Places, plan: AttentionPlan, config: BlockConfig, key: DropoutKey | None, layer: int,
    name: str, workspace: Workspace,
) -> MultiHeadAttentionCache:  # fmt: skip
    """Up to the merged heads; the caller multiplies them by w_out, since the residual sum is fused with that product."""
    n, e = x.shape
    batch, length = places.shape
    h, g, d = config.heads, config.groups, config.head_dim
    width, compute = padded_width(d), config.float_dtype.compute
    qkv = workspace.array("qkv", (n, (h + 2 * g) * d), compute)
    linear_forward(x, params.w_qkv, qkv, workspace=workspace)
    cos, sin = (workspace.array(f"{name}.{part}", (n, d // 2), compute) for part in ("cos", "sin"))
    rope_angles(places.position, places.tau, params.rope_omega, config, cos, sin)
    q = workspace.array(f"{name}.q", (batch, h, length, width), x.dtype)
    k, v = (workspace.array(f"{name}.{part}", (batch, g, length, width), x.dtype) for part in ("k", "v"))
    rope_forward(qkv, cos, sin, d, q, k, v)
    o, lse = workspace.array(f"{name}.o", q.shape, x.dtype), workspace.array(f"{name}.lse", q.shape[:3], compute)
    if places.has_padding:
        o.fill(0)
        lse.fill(-np.inf)
    attention = AttentionCache(q, k, v, o, lse, plan, params.time_bias, config.time, dropout_at(config.dropout.attn, key, layer, ATTENTION), d)
    attend(attention, workspace)
    factors = workspace.array(f"{name}.factors", (n, h), compute)
    head_dropout_factors(places.document, sites_of([dropout_at(config.dropout.head, key, layer, WHOLE_HEAD)], compute), factors)
    merged = workspace.array(f"{name}.merged", (n, e), x.dtype)
    merge_heads(o, d, factors, merged)
    return MultiHeadAttentionCache(x, merged, attention, cos, sin, factors, params)


def multi_head_attention_backward(
    da: ndarray, grads: MultiHeadAttentionParams, places: Places, cache: MultiHeadAttentionCache, dx: ndarray, workspace: Workspace
) -> None:
    """dx from da, the gradient of merged @ w_out, both (N, E); the parameters' gradients go into `grads`."""
    x, merged, attention, cos, sin, factors, params = cache
    compute, n = attention.lse.dtype, x.shape[0]
    linear_backward_weight(merged, da, grads.w_out, workspace=workspace)
    dmerged = workspace.array("dmerged", merged.shape, x.dtype)
    linear_backward_input(da, params.w_out, dmerged, workspace=workspace)
    do = workspace.array("do", attention.q.shape, x.dtype)
    split_heads(dmerged, attention.d, factors, do)
    dq = workspace.array("dq", attention.q.shape, compute)
    dk, dv = (workspace.array(part, attention.k.shape, compute) for part in ("dk", "dv"))
    dbias = attend_backward(do, workspace.zeros("dlse", attention.lse.shape, compute), dq, dk, dv, attention, workspace)
    for mine, new in zip(grads.time_bias, dbias, strict=True):
        mine[...] = new
    dqkv = workspace.array("dqkv", (n, params.w_qkv.shape[1]), x.dtype)
    partial = workspace.array("rope.partial", (rows.chunks_of(n), dq.shape[-1]), np.float64)
    rope_backward(dq, dk, dv, attention.q, attention.k, cos, sin, places.tau, attention.d, dqkv, grads.rope_omega, partial)
    linear_backward_weight(x, dqkv, grads.w_qkv, workspace=workspace)
    linear_backward_input(dqkv, params.w_qkv, dx, workspace=workspace)
