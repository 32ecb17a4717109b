"""Attention on the CPU, with the names of ttr_ref/attention.py, where the mathematics is.

Nothing of size T × T exists (Dao et al. 2022, arXiv:2205.14135): attention_forward.py and attention_backward.py say how.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Inexact, Shaped, UInt32
from numba import get_num_threads
from numpy import ndarray

from ttr_fast.cpu.attention_backward import backward_kernel
from ttr_fast.cpu.attention_forward import Spec, forward_kernel
from ttr_fast.cpu.attention_plan import Documents, documents_of, tiles_of, work_items
from ttr_fast.cpu.attention_tiles import BLOCK, MASK_STRIDE
from ttr_fast.cpu.time_bias import LOG2E, bias_gradient, bias_table, sums_size
from ttr_ref.config import TimeConfig
from ttr_ref.dropout import Dropout
from ttr_ref.time_bias import TimeBias
from ttr_ref.timeline import Timeline

PADDED_TO = 16
"""Head widths are filled up with zeros to a multiple of this."""
NO_WINDOW = np.iinfo(np.int64).max // 4


class AttentionCache(NamedTuple):
    """What backward needs. Heads are filled up with zeros to `width`; d is their true width."""

    q: Shaped[ndarray, "B H T_q width"]
    k: Shaped[ndarray, "B G T_k width"]
    v: Shaped[ndarray, "B G T_k width"]
    o: Shaped[ndarray, "B H T_q width"]
    lse: Inexact[ndarray, "B H T_q"]
    documents: Documents
    bias: TimeBias
    time: TimeConfig
    causal: bool
    window: int
    drop: Dropout | None
    d: int


def filled_up(a: Shaped[ndarray, "B heads T D"]) -> Shaped[ndarray, "B heads T width"]:
    """Zeros behind the features of each head, up to a multiple of PADDED_TO."""
    d = a.shape[-1]
    return np.ascontiguousarray(np.pad(a, ((0, 0), (0, 0), (0, 0), (0, -d % PADDED_TO))))


def scratch_of(dtype: np.dtype, width: int, counts: tuple[int, int, int, int]) -> tuple[ndarray, ndarray, ndarray, ndarray]:
    """For each thread that many (BLOCK, width) panels, tiles, vectors of BLOCK numbers and of BLOCK integers."""
    workers, (panels, squares, vectors, limits) = get_num_threads(), counts
    return (
        np.empty((workers, panels, BLOCK * width), dtype),
        np.empty((workers, squares, (BLOCK + 4) * BLOCK), dtype),
        np.empty((workers, vectors, BLOCK), dtype),
        np.empty((workers, limits, BLOCK), np.int64),
    )


def drawing(drop: Dropout | None, compute: np.dtype) -> tuple[UInt32[ndarray, "5"], Inexact[ndarray, ""]]:
    """(`draw` of attention_dropout.py without its head, 1/(1 − p))."""
    if drop is None:
        return np.zeros(5, np.uint32), np.ones((), compute)[()]
    words = (round(drop.p * 2**32), 0, drop.site, drop.key.seed, drop.key.step)
    return np.array([w % 2**32 for w in words], np.uint32), compute.type(1 / (1 - drop.p))


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
    (rows, heads, t_q, d), groups, t_k = q.shape, k.shape[1], k.shape[2]
    if heads % groups:
        raise ValueError(f"attention: {heads} query heads cannot share {groups} key/value heads evenly")
    documents, table = documents_of(at_q, at_k, causal), bias_table(bias, time, heads)
    q, k, v = filled_up(q), filled_up(k), filled_up(v)
    width, reach = q.shape[-1], NO_WINDOW if window is None else window
    spec = Spec(q.dtype.name, table.kind, table.terms, drop is not None)
    compute = np.dtype(spec.compute)
    o, lse = np.zeros_like(q), np.full((rows, heads, t_q), -np.inf, compute)
    forward_kernel(spec)(
        q.reshape(-1), k.reshape(-1), v.reshape(-1), o.reshape(-1), lse.reshape(-1), (heads, groups, t_q, t_k, width), documents.table,
        documents.time_q, documents.time_k, work_items(documents, heads, causal), causal, reach,
        compute.type(LOG2E / np.sqrt(d)), table.rate, table.parameters.astype(compute), *drawing(drop, compute),
        scratch_of(compute, width, (5, 3, 7, 3))
    )  # fmt: skip
    return o[..., :d], lse, AttentionCache(q, k, v, o, lse, documents, bias, time, causal, reach, drop, d)


def attention_backward(
    do: Shaped[ndarray, "B H T_q D"], dlse: Inexact[ndarray, "B H T_q"] | None, cache: AttentionCache
) -> tuple[Inexact[ndarray, "B H T_q D"], Inexact[ndarray, "B G T_k D"], Inexact[ndarray, "B G T_k D"], TimeBias]:
    """(dq, dk, dv, dbias) from the gradients of O and of LSE (None: LSE is not used)."""
    q, k, v, o, lse, documents, bias, time, causal, reach, drop, d = cache
    (_, heads, t_q, width), groups, t_k = q.shape, k.shape[1], k.shape[2]
    table, dtype = bias_table(bias, time, heads), lse.dtype
    first_tile, lanes = tiles_of(documents), 64 // dtype.itemsize
    collected = sums_size(table.kind, table.terms, lanes)
    dq, dk, dv = (np.zeros(a.shape, dtype) for a in (q, k, v))
    partial = np.zeros((first_tile[-1], heads, max(collected // lanes, 1)))
    panels, squares, vectors, limits = scratch_of(dtype, width, (7, 3, 4, 4))
    scratch = panels, squares, vectors, np.empty((panels.shape[0], collected), dtype), limits, np.empty((panels.shape[0], BLOCK * MASK_STRIDE), dtype)
    backward_kernel(Spec(q.dtype.name, table.kind, table.terms, drop is not None))(
        q.reshape(-1), k.reshape(-1), v.reshape(-1), o.reshape(-1), filled_up(do).reshape(-1), lse.reshape(-1),
        (np.zeros_like(lse) if dlse is None else np.ascontiguousarray(dlse)).reshape(-1), np.empty(lse.size, dtype),
        dq.reshape(-1), dk.reshape(-1), dv.reshape(-1), (heads, groups, t_q, t_k, width), documents.table, first_tile, documents.time_q,
        documents.time_k, causal, reach, dtype.type(d**-0.5), table.rate, table.parameters.astype(dtype), partial, *drawing(drop, dtype), scratch
    )  # fmt: skip
    return dq[..., :d], dk[..., :d], dv[..., :d], bias_gradient(bias, time, partial.sum(0))
