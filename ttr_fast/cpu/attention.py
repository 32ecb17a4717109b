"""Attention on the CPU, with the names of ttr_ref/attention.py, where the mathematics is.

Nothing of size T × T exists (Dao et al. 2022, arXiv:2205.14135): attention_forward.py and attention_backward.py say how.
"""

import numpy as np
from jaxtyping import Float, Inexact
from numba import get_num_threads
from numpy import ndarray

from ttr_fast.cpu.attention_forward import Spec, forward_kernel
from ttr_fast.cpu.attention_plan import documents_of, work_items
from ttr_fast.cpu.attention_tiles import BLOCK
from ttr_fast.cpu.time_bias import LOG2E, bias_table
from ttr_ref.config import TimeConfig
from ttr_ref.time_bias import TimeBias
from ttr_ref.timeline import Timeline

PADDED_TO = 16
"""Head widths are filled up with zeros to a multiple of this."""
NO_WINDOW = np.iinfo(np.int64).max // 4


def attention_forward(
    q: Inexact[ndarray, "B H T_q D"],
    k: Inexact[ndarray, "B G T_k D"],
    v: Inexact[ndarray, "B G T_k D"],
    at_q: Timeline,
    at_k: Timeline,
    bias: TimeBias,
    time: TimeConfig,
    causal: bool = True,
    window: int | None = None,
) -> tuple[Inexact[ndarray, "B H T_q D"], Float[ndarray, "B H T_q"]]:
    """(O, LSE) for float32 or float64.

    Raises ValueError if H is not a multiple of G, or if a causal document's times go backwards.
    """
    (rows, heads, t_q, d), groups, t_k = q.shape, k.shape[1], k.shape[2]
    if heads % groups:
        raise ValueError(f"attention: {heads} query heads cannot share {groups} key/value heads evenly")
    documents, table = documents_of(at_q, at_k, causal), bias_table(bias, time, heads)
    width = -(-d // PADDED_TO) * PADDED_TO
    q, k, v = (np.ascontiguousarray(np.pad(a, ((0, 0), (0, 0), (0, 0), (0, width - d)))) for a in (q, k, v))
    o, lse = np.zeros_like(q), np.full((rows, heads, t_q), -np.inf, q.dtype)
    workers = get_num_threads()
    scratch = np.empty((workers, 2 * BLOCK * width + 2 * BLOCK * BLOCK + 7 * BLOCK), q.dtype)
    forward_kernel(Spec(q.dtype.name, table.kind, table.terms))(
        q.reshape(-1), k.reshape(-1), v.reshape(-1), o.reshape(-1), lse.reshape(-1), (heads, groups, t_q, t_k, width), documents.table,
        documents.time_q, documents.time_k, work_items(documents, heads, causal), causal, NO_WINDOW if window is None else window,
        q.dtype.type(LOG2E / np.sqrt(d)), table.rate, table.parameters.astype(q.dtype), scratch, np.empty((workers, 3 * BLOCK), np.int64)
    )  # fmt: skip
    return o[..., :d], lse
