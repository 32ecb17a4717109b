"""Attention on the CPU, with the names of ttr_ref/attention.py, where the mathematics is.

Nothing of size T × T exists (Dao et al. 2022, arXiv:2205.14135): attention_forward.py and attention_backward.py say how.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Inexact, Int64, Shaped, UInt32
from numba import get_num_threads
from numpy import ndarray

from ttr_fast.cpu.attention_backward import backward_kernels
from ttr_fast.cpu.attention_forward import forward_kernel
from ttr_fast.cpu.attention_operands import Spec
from ttr_fast.cpu.attention_plan import Documents, documents_of, tiles_of, work_items
from ttr_fast.cpu.attention_tiles import BLOCK, MASK_STRIDE
from ttr_fast.cpu.time_bias import LOG2E, bias_gradient, bias_table, sums_size
from ttr_fast.cpu.workspace import Workspace
from ttr_ref.config import TimeConfig
from ttr_ref.dropout import Dropout
from ttr_ref.time_bias import TimeBias
from ttr_ref.timeline import Timeline

PADDED_TO = 16
"""Head widths are filled up with zeros to a multiple of this."""
APART = 144
"""Items between two panels: at the same place of two pages a load waits for a store, and so would whole panels."""
NO_WINDOW = np.iinfo(np.int64).max // 4


class AttentionPlan(NamedTuple):
    """How one batch is attended to: its documents, the work items of the forward, the first key tile of each document for the backward."""

    documents: Documents
    items: Int64[ndarray, "n 3"]
    first_tile: Int64[ndarray, "n_plus_1"]
    causal: bool
    window: int


def plan_attention(at_q: Timeline, at_k: Timeline, heads: int, causal: bool, window: int | None) -> AttentionPlan:
    """Raises ValueError if a causal document's times go backwards."""
    documents = documents_of(at_q, at_k, causal)
    reach = NO_WINDOW if window is None else window
    return AttentionPlan(documents, work_items(documents, heads, causal), tiles_of(documents), causal, reach)


class AttentionCache(NamedTuple):
    """What backward needs. Heads are filled up with zeros to `width`; d is their true width."""

    q: Shaped[ndarray, "B H T_q width"]
    k: Shaped[ndarray, "B G T_k width"]
    v: Shaped[ndarray, "B G T_k width"]
    o: Shaped[ndarray, "B H T_q width"]
    lse: Inexact[ndarray, "B H T_q"]
    plan: AttentionPlan
    bias: TimeBias
    time: TimeConfig
    drop: Dropout | None
    d: int


def padded_width(d: int) -> int:
    """The width to which a head of d features is filled up with zeros."""
    return -(-d // PADDED_TO) * PADDED_TO


def filled_up(a: Shaped[ndarray, "B heads T D"]) -> Shaped[ndarray, "B heads T width"]:
    """Zeros behind the features of each head; the array itself where none are needed."""
    d = a.shape[-1]
    if padded_width(d) == d:
        return np.ascontiguousarray(a)
    return np.pad(a, ((0, 0), (0, 0), (0, 0), (0, padded_width(d) - d)))


def scratch_of(
    workspace: Workspace, dtype: np.dtype, width: int, counts: tuple[int, int, int, int]
) -> tuple[ndarray, ndarray, ndarray, ndarray, ndarray]:
    """For each thread that many (BLOCK, width) panels, tiles, vectors of BLOCK numbers and of BLOCK integers, and BLOCK times."""
    workers, (panels, squares, vectors, limits) = get_num_threads(), counts
    return (
        workspace.array("attention.panels", (workers, panels, BLOCK * width + APART), dtype),
        workspace.array("attention.squares", (workers, squares, (BLOCK + 4) * BLOCK), dtype),
        workspace.array("attention.vectors", (workers, vectors, BLOCK), dtype),
        workspace.array("attention.limits", (workers, limits, BLOCK), np.int64),
        workspace.array("attention.moments", (workers, BLOCK), np.float64),
    )


def drawing(drop: Dropout | None, compute: np.dtype) -> tuple[UInt32[ndarray, "workers 5"], Inexact[ndarray, ""]]:
    """(`draw` of attention_dropout.py for each worker, who fills in the head; 1/(1 − p))."""
    p, words = (0.0, (0,) * 5) if drop is None else (drop.p, (round(drop.p * 2**32), 0, drop.site, drop.key.seed, drop.key.step))
    return np.array([[w % 2**32 for w in words]] * get_num_threads(), np.uint32), compute.type(1 / (1 - p))


def attend(cache: AttentionCache, workspace: Workspace) -> None:
    """Fill the cache's O and LSE. Places without a query keep what is there."""
    q, k, v, o, lse, plan, bias, time, drop, d = cache
    (_, heads, t_q, width), groups, t_k = q.shape, k.shape[1], k.shape[2]
    table = bias_table(bias, time, heads)
    spec = Spec(q.dtype.name, table.kind, table.terms, drop is not None)
    compute, documents = np.dtype(spec.compute), plan.documents
    forward_kernel(spec)(
        q.reshape(-1), k.reshape(-1), v.reshape(-1), o.reshape(-1), lse.reshape(-1), (heads, groups, t_q, t_k, width), documents.table,
        documents.time_q, documents.time_k, plan.items, plan.causal, plan.window, compute.type(LOG2E / np.sqrt(d)), table.rate,
        table.parameters.astype(compute), *drawing(drop, compute), scratch_of(workspace, compute, width, (4, 3, 7, 3))
    )  # fmt: skip


def attend_backward(
    do: Shaped[ndarray, "B H T_q width"],
    dlse: Inexact[ndarray, "B H T_q"],
    dq: Inexact[ndarray, "B H T_q width"],
    dk: Inexact[ndarray, "B G T_k width"],
    dv: Inexact[ndarray, "B G T_k width"],
    cache: AttentionCache,
    workspace: Workspace,
) -> TimeBias:
    """Fill dq, dk, dv; the gradients of the bias's parameters."""
    q, k, v, o, lse, plan, bias, time, drop, d = cache
    (_, heads, t_q, width), groups, t_k = q.shape, k.shape[1], k.shape[2]
    table, dtype, documents = bias_table(bias, time, heads), lse.dtype, plan.documents
    lanes = 64 // dtype.itemsize
    collected = sums_size(table.kind, table.terms, lanes)
    partial = workspace.zeros("attention.partial", (int(plan.first_tile[-1]), heads, max(collected // lanes, 1)), np.float64)
    panels, squares, vectors, limits, moments = scratch_of(workspace, dtype, width, (7, 6, 4, 4))
    sums = workspace.array("attention.sums", (panels.shape[0], collected), dtype)
    masks = workspace.array("attention.masks", (panels.shape[0], BLOCK * MASK_STRIDE), dtype)
    for a in (dq, dk, dv):
        a.fill(0)
    delta = workspace.array("attention.delta", (lse.size,), dtype)
    bracket_rows, backward = backward_kernels(Spec(q.dtype.name, table.kind, table.terms, drop is not None))
    bracket_rows(o.reshape(-1), do.reshape(-1), dlse.reshape(-1), delta, width)
    backward(
        q.reshape(-1), k.reshape(-1), v.reshape(-1), do.reshape(-1), lse.reshape(-1), delta, dq.reshape(-1), dk.reshape(-1), dv.reshape(-1),
        (heads, groups, t_q, t_k, width), documents.table, plan.first_tile, documents.time_q, documents.time_k, plan.causal, plan.window,
        dtype.type(d**-0.5), table.rate,
        table.parameters.astype(dtype), partial, *drawing(drop, dtype), (panels, squares, vectors, sums, limits, masks, moments)
    )  # fmt: skip
    return bias_gradient(bias, time, partial.sum(0))


def attention_forward(
    q: Shaped[ndarray, "B H T_q D"],
    k: Shaped[ndarray, "B G T_k D"],
    v: Shaped[ndarray, "B G T_k D"],
    at_q: Timeline,
    at_k: Timeline,
    bias: TimeBias,
    time: TimeConfig,
    causal: bool = True,
    window: int | None = None,
    drop: Dropout | None = None,
) -> tuple[Shaped[ndarray, "B H T_q D"], Inexact[ndarray, "B H T_q"], AttentionCache]:
    """(O, LSE, cache); q, k, v and O are carriers of one storage (half.py).

    Raises ValueError if H is not a multiple of G, or if a causal document's times go backwards.
    """
    heads, groups, d = q.shape[1], k.shape[1], q.shape[3]
    if heads % groups:
        raise ValueError(f"attention: {heads} query heads cannot share {groups} key/value heads evenly")
    compute = np.dtype(np.float64 if q.dtype == np.float64 else np.float32)
    padded = filled_up(q)
    o, lse = np.zeros_like(padded), np.full(q.shape[:3], -np.inf, compute)
    plan = plan_attention(at_q, at_k, heads, causal, window)
    cache = AttentionCache(padded, filled_up(k), filled_up(v), o, lse, plan, bias, time, drop, d)
    attend(cache, Workspace())
    return o[..., :d], lse, cache


def attention_backward(
    do: Shaped[ndarray, "B H T_q D"], dlse: Inexact[ndarray, "B H T_q"] | None, cache: AttentionCache
) -> tuple[Inexact[ndarray, "B H T_q D"], Inexact[ndarray, "B G T_k D"], Inexact[ndarray, "B G T_k D"], TimeBias]:
    """(dq, dk, dv, dbias) from the gradients of O and of LSE (None: LSE is not used), in the type of arithmetic."""
    dtype, d = cache.lse.dtype, cache.d
    dq, dk, dv = (np.empty(a.shape, dtype) for a in (cache.q, cache.k, cache.v))
    dlse = np.zeros_like(cache.lse) if dlse is None else np.ascontiguousarray(dlse)
    dbias = attend_backward(filled_up(do), dlse, dq, dk, dv, cache, Workspace())
    return dq[..., :d], dk[..., :d], dv[..., :d], dbias
