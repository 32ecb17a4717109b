"""Token embedding on the GPU; the mathematics is in ttr_ref/embedding.py.

Tokens come from the host, which checks them and sorts their places by token while a batch is prepared (`places_by_token`). So each row of the table
is one sum over its places, in order, and no two threads add to one number.

Ladder:
1. Forward: a thread owns a feature of a place. Backward: a block owns a row of the table, a thread a feature of it. Measured: not yet, no device.
"""

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from ttr_fast.cuda.jit import blocks_for, cuda, kernel
from ttr_fast.cuda.numbers import load, number, store
from ttr_fast.cuda.rows import THREADS


def places_by_token(
    tokens: Int64[ndarray, "N"], document: Int64[ndarray, "N"], vocabulary: int
) -> tuple[Int64[ndarray, "V_plus_1"], Int64[ndarray, "n"]]:
    """(start, places): the places with token v, ascending, are places[start[v] : start[v + 1]]; padding is left out.

    Raises ValueError for a token outside 0 … V − 1.
    """
    known = np.flatnonzero(document != -1)
    unknown = known[(tokens[known] < 0) | (tokens[known] >= vocabulary)]
    if unknown.size:
        raise ValueError(f"embedding: token {tokens[unknown[0]]} at place {unknown[0]} is outside the vocabulary of {vocabulary}")
    start = np.concatenate([[0], np.cumsum(np.bincount(tokens[known], minlength=vocabulary))])
    return start.astype(np.int64), known[np.argsort(tokens[known], kind="stable")]


@kernel("int64[::1], S[:, ::1], int64[::1], C, S[:, ::1]", registers=32, threads=THREADS)
def gather(tokens, table, document, factor, x):
    """One thread for each item of x."""
    at, e = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, x.shape[1]
    if at < x.shape[0] * e:
        i, k = at // e, at % e
        store(load(table, (tokens[i], k)) * factor if document[i] != -1 else number(table, 0), x, (i, k))


def embedding_forward(tokens, table, document, x) -> None:
    """x (N, E) = √E table[token]; tokens, document (N,) int64, tokens checked by places_by_token; table (V, E). Zeros in padding."""
    compute = np.float64 if table.dtype == np.float64 else np.float32
    gather[blocks_for(x.shape[0] * x.shape[1], THREADS), THREADS](tokens, table, document, compute(table.shape[1] ** 0.5), x)


@kernel("S[:, ::1], int64[::1], int64[::1], C, boolean, C[:, ::1]", registers=40, threads=THREADS)
def sum_places(dx, start, places, factor, add, dtable):
    """Block v has row v of the table."""
    v = cuda.blockIdx.x
    for k in range(cuda.threadIdx.x, dtable.shape[1], THREADS):
        s = number(dx, 0)
        for o in range(start[v], start[v + 1]):
            s += load(dx, (places[o], k))
        dtable[v, k] = dtable[v, k] + s * factor if add else s * factor


def add_by_token(dx, start, places, factor: float, add: bool, dtable) -> None:
    """dtable (V, E) = factor Σ dx over the places with each token, or that much more than it was (add). NaN in padding is not read.

    dx (N, E) of any storage; dtable in the type of arithmetic; start, places: places_by_token.
    """
    sum_places[dtable.shape[0], THREADS](dx, start, places, dtable.dtype.type(factor), add, dtable)


def embedding_backward(dx, start, places, add: bool, dtable) -> None:
    """add_by_token with the factor √E."""
    add_by_token(dx, start, places, dtable.shape[1] ** 0.5, add, dtable)
