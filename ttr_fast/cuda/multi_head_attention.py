"""Multi-head attention on the GPU; the mathematics is in ttr_ref/multi_head_attention.py.

The projection's rows (N, (H + 2G) D) stay in the type of arithmetic until rope has turned them into heads (B, H, T, D), rounded once there.
`merge_heads` and `split_heads` carry the factors of dropped heads.

Ladder of these two:
1. A thread owns a feature of a token. Measured: not yet, no device.
"""

from typing import Any, NamedTuple

import numpy as np

from ttr_fast.cuda import rows
from ttr_fast.cuda.attention import AttentionTask, attention_backward, attention_forward, backward_parts
from ttr_fast.cuda.attention_plan import AttentionPlan
from ttr_fast.cuda.dropout import Sites, head_dropout_factors
from ttr_fast.cuda.jit import blocks_for, cuda, kernel
from ttr_fast.cuda.linear import linear_backward_input, linear_backward_weight, linear_forward
from ttr_fast.cuda.numbers import load, store
from ttr_fast.cuda.places import Places
from ttr_fast.cuda.rope import rope_angles, rope_backward, rope_forward
from ttr_fast.cuda.rows import THREADS, fill
from ttr_fast.cuda.time_bias import bias_gradient, bias_table, described, sums_of
from ttr_fast.cuda.workspace import Workspace
from ttr_ref.config import BlockConfig
from ttr_ref.multi_head_attention import MultiHeadAttentionParams


class MultiHeadAttentionCache(NamedTuple):
    """What backward needs, arrays of the device."""

    x: Any
    merged: Any
    q: Any
    k: Any
    v: Any
    o: Any
    lse: Any
    cos: Any
    sin: Any
    factors: Any
    task: AttentionTask


@kernel("S[:, :, :, ::1], C[:, ::1], S[:, ::1]", registers=40, threads=THREADS)
def merge_heads(o, factors, merged):
    """merged (N, H D) = each head of o (B, H, T, D), times factors (N, H); a thread an item."""
    at, width, d = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, merged.shape[1], o.shape[3]
    i, column = at // width, at % width
    if i < merged.shape[0]:
        h = column // d
        store(load(o, (i // o.shape[2], h, i % o.shape[2], column % d)) * factors[i, h], merged, (i, column))


@kernel("S[:, ::1], C[:, ::1], S[:, :, :, ::1]", registers=40, threads=THREADS)
def split_heads(merged, factors, o):
    """The way back."""
    at, width, d = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, merged.shape[1], o.shape[3]
    i, column = at // width, at % width
    if i < merged.shape[0]:
        h = column // d
        store(load(merged, (i, column)) * factors[i, h], o, (i // o.shape[2], h, i % o.shape[2], column % d))


def multi_head_attention_forward(
    x: Any, params: MultiHeadAttentionParams, places: Places, plan: AttentionPlan, config: BlockConfig, drop: Sites, drop_head: Sites, name: str,
    workspace: Workspace,
) -> MultiHeadAttentionCache:  # fmt: skip
    """Up to the merged heads; the caller multiplies them by w_out, since the residual sum is fused with that product."""
    (n, e), (batch, length), compute = x.shape, places.shape, config.float_dtype.compute
    h, g, d = config.heads, config.groups, config.head_dim

    def array(part: str, shape: tuple[int, ...], dtype: Any) -> Any:
        return workspace.array(f"{name}.{part}", shape, dtype)

    qkv = workspace.array("qkv", (n, (h + 2 * g) * d), compute)
    linear_forward(x, params.w_qkv, qkv)
    cos, sin = (array(part, (n, d // 2), compute) for part in ("cos", "sin"))
    rope_angles(places.position, places.tau, places.theta, params.rope_omega, cos, sin)
    q, k, v = (array(part, (batch, heads, length, d), x.dtype) for part, heads in (("q", h), ("k", g), ("v", g)))
    rope_forward(qkv, cos, sin, q, k, v)
    columns = described(params.time_bias, config.time)[-1]
    bias = bias_table(params.time_bias, config.time, array("rate", (h,), compute), array("bias", (h, columns), compute))
    task, o, lse = AttentionTask(plan, bias, drop), array("o", q.shape, x.dtype), array("lse", q.shape[:3], compute)
    attention_forward(q, k, v, task, o, lse)
    factors, merged = array("factors", (n, h), compute), array("merged", (n, e), x.dtype)
    head_dropout_factors(places.document, drop_head, factors)
    merge_heads[blocks_for(n * e, THREADS), THREADS](o, factors, merged)
    return MultiHeadAttentionCache(x, merged, q, k, v, o, lse, cos, sin, factors, task)


def multi_head_attention_backward(
    da: Any, params: MultiHeadAttentionParams, grads: MultiHeadAttentionParams, places: Places, cache: MultiHeadAttentionCache, dx: Any,
    workspace: Workspace,
) -> None:  # fmt: skip
    """dx from da, the gradient of merged @ w_out, both (N, E); the parameters' gradients go into `grads`."""
    x, merged, q, k, v, o, lse, cos, sin, factors, task = cache
    n, compute, heads = x.shape[0], lse.dtype, q.shape[1]
    array = workspace.array
    linear_backward_weight(merged, da, grads.w_out)
    dmerged, do = array("dmerged", merged.shape, x.dtype), array("do", q.shape, x.dtype)
    linear_backward_input(da, params.w_out, dmerged)
    split_heads[blocks_for(n * merged.shape[1], THREADS), THREADS](dmerged, factors, do)
    dq, dk, dv, dlse, bracket = (array(f"attention.d{i}", a.shape, compute) for i, a in enumerate((q, k, v, lse, lse)))
    fill(dlse, 0)
    sums = array("bias.sums", (heads, sums_of(task.bias)), np.float64)
    partial = array("bias.partial", (q.shape[0], backward_parts(q), *sums.shape), np.float64)
    attention_backward(do, dlse, q, k, v, o, lse, task, dq, dk, dv, sums, bracket, partial)
    bias_gradient(params.time_bias, task.bias, sums, grads.time_bias)
    dqkv, pairs = array("dqkv", (n, params.w_qkv.shape[1]), x.dtype), grads.rope_omega.size
    rope_backward(dq, dk, dv, q, k, cos, sin, places.tau, dqkv, grads.rope_omega, array("rope.partial", (rows.chunks_of(n), pairs), np.float64))
    linear_backward_weight(x, dqkv, grads.w_qkv)
    linear_backward_input(dqkv, params.w_qkv, dx)
