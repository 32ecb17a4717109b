"""Attention on the GPU, with the names of ttr_ref/attention.py, where the mathematics is.

Nothing of size T × T exists (Dao et al. 2022, arXiv:2205.14135): attention_forward.py and attention_backward.py say how, and for storage in 16 bits
attention_tensor_forward.py and attention_tensor_backward.py; `kernels_for` chooses. What a batch and its parameters mean to kernels is worked out by
plan_attention, bias_table and sites_of, once for all blocks or all steps; arrays are buffers of whoever calls.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Inexact, Shaped
from numpy import ndarray

from ttr_fast.cuda import attention_fragments
from ttr_fast.cuda.attention_backward import bracket_rows, key_kernel, query_kernel
from ttr_fast.cuda.attention_forward import forward_kernel
from ttr_fast.cuda.attention_fragments import TENSOR_SPECS, WARPS
from ttr_fast.cuda.attention_plan import AttentionPlan
from ttr_fast.cuda.attention_tensor_backward import tensor_key_kernel, tensor_query_kernel
from ttr_fast.cuda.attention_tensor_forward import tensor_forward_kernel
from ttr_fast.cuda.attention_tiles import THREADS, spec_for
from ttr_fast.cuda.dropout import Sites
from ttr_fast.cuda.jit import COMPUTE, HALVES, blocks_for
from ttr_fast.cuda.rows import sum_chunks
from ttr_fast.cuda.time_bias import BiasTable


class Kernels(NamedTuple):
    """What runs for one storage and width of heads."""

    forward: Any
    query: Any
    """Backward, pass one."""
    key: Any
    """Backward, pass two."""
    tile: int
    """Queries of a block, and keys: what plan_attention has to be told."""
    threads: int
    sums: int
    """How many parts of the sums of the bias's gradient a block has."""


def kernels_for(storage: np.dtype, d: int) -> Kernels:
    """Those on tensor cores for int16 and uint16, the bits of f16 and bf16, if d is a multiple of 16; else the readable ones.

    Raises ValueError if a head is wider than any kernel.
    """
    if storage.name in HALVES and d % 16 == 0 and d <= TENSOR_SPECS[-1].width:
        wide = next(spec for spec in TENSOR_SPECS if d <= spec.width)
        return Kernels(
            tensor_forward_kernel(wide), tensor_query_kernel(wide), tensor_key_kernel(wide), attention_fragments.TILE, attention_fragments.THREADS,
            WARPS,
        )  # fmt: skip
    spec = spec_for(np.dtype(COMPUTE[storage.name]), d)
    return Kernels(forward_kernel(spec), query_kernel(spec), key_kernel(spec), spec.tile, THREADS, 1)


class AttentionTask(NamedTuple):
    """What both directions are told beside their operands."""

    plan: AttentionPlan
    bias: BiasTable
    drop: Sites


def common(task: AttentionTask, compute: np.dtype, d: int) -> tuple[Any, ...]:
    """The last arguments of all kernels."""
    return *task.plan[:8], *task.bias, compute.type(d**-0.5), *task.drop


def attention_forward(
    q: Shaped[ndarray, "B H T_q D"],
    k: Shaped[ndarray, "B G T_k D"],
    v: Shaped[ndarray, "B G T_k D"],
    task: AttentionTask,
    o: Shaped[ndarray, "B H T_q D"],
    lse: Inexact[ndarray, "B H T_q"],
) -> None:
    """O in the storage of q, k and v, LSE in the type of arithmetic.

    Raises ValueError if H is not a multiple of G, or if a head is wider than any kernel.
    """
    (rows, heads, places, d), groups, compute = q.shape, k.shape[1], np.dtype(COMPUTE[q.dtype.name])
    if heads % groups:
        raise ValueError(f"attention: {heads} query heads cannot share {groups} key/value heads evenly")
    kernels = kernels_for(q.dtype, d)
    grid = blocks_for(places, kernels.tile), heads, rows
    kernels.forward[grid, kernels.threads](q, k, v, o, lse, task.plan.keys, *common(task, compute, d))


def attention_backward(
    do: Shaped[ndarray, "B H T_q D"],
    dlse: Inexact[ndarray, "B H T_q"],
    q: Shaped[ndarray, "B H T_q D"],
    k: Shaped[ndarray, "B G T_k D"],
    v: Shaped[ndarray, "B G T_k D"],
    o: Shaped[ndarray, "B H T_q D"],
    lse: Inexact[ndarray, "B H T_q"],
    task: AttentionTask,
    dq: Inexact[ndarray, "B H T_q D"],
    dk: Inexact[ndarray, "B G T_k D"],
    dv: Inexact[ndarray, "B G T_k D"],
    sums: Float64[ndarray, "H n"],
    bracket: Inexact[ndarray, "B H T_q"],
    partial: Float64[ndarray, "B parts H n"],
) -> None:
    """dq, dk, dv in the type of arithmetic; sums (H, time_bias.sums_of), from which time_bias.bias_gradient makes the gradients of the parameters.

    bracket, and partial with backward_parts(q) parts, are scratch.
    """
    (rows, heads, places, d), groups = q.shape, k.shape[1]
    kernels, last = kernels_for(q.dtype, d), common(task, lse.dtype, d)
    bracket_rows[blocks_for(bracket.size, THREADS), THREADS](o, do, dlse, bracket)
    grid = blocks_for(places, kernels.tile), heads, rows
    kernels.query[grid, kernels.threads](q, k, v, do, lse, bracket, dq, partial, task.plan.keys, *last)
    grid = blocks_for(k.shape[2], kernels.tile), groups, rows
    kernels.key[grid, kernels.threads](q, k, v, do, lse, bracket, dk, dv, task.plan.queries, *last)
    if sums.size:
        sum_chunks(partial.reshape(-1, sums.size), sums.reshape(-1))


def backward_parts(q: Shaped[ndarray, "B H T_q D"]) -> int:
    """In how many parts backward sums the bias's gradient of a row and head."""
    kernels = kernels_for(q.dtype, q.shape[3])
    return blocks_for(q.shape[2], kernels.tile) * kernels.sums
