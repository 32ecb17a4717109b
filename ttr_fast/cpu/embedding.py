"""Token embedding on the CPU; the mathematics is in ttr_ref/embedding.py.

Backward sorts the places by token, by counting, which keeps their order; then each row of the table is one sum over its places, in order, and rows
are dealt to the threads like cards.
"""


from ttr_fast.cpu import rows, simd
from ttr_fast.cpu.jit import inner, kernel
from ttr_fast.cpu.team import share, team

STRIPES = 64
"""Shares of the table: row v belongs to v % STRIPES, so that the common tokens, often neighbours, are not one thread's."""


@kernel()
def first_unknown(tokens, document, vocabulary):
    """The first place whose token is not in the table; −1 if there is none."""
    for i in range(tokens.size):
        if document[i] != -1 and not 0 <= tokens[i] < vocabulary:
            return i
    return -1


@inner()
def gather_row(tokens, document, table, factor, x, i):
    """Row i."""
    e = x.shape[1]
    for k in range(0, e, rows.lanes_of(table)):
        v = rows.full(table, 0)
        if document[i] != -1:
            v = simd.mul(rows.load_part(table, tokens[i] * e + k, e - k), rows.full(table, factor))
        rows.store_part(v, x, i * e + k, e - k)


@team()
def gather(worker, workers, tokens, document, table, factor, x):
    """x (N, E) = factor · table[tokens], zeros in padding."""
    begin, end = share(worker, workers, x.shape[0])
    for i in range(begin, end):
        gather_row(tokens, document, table, factor, x, i)


def embedding_forward(tokens, table, document, x) -> None:
    """x (N, E) = √E table[token]; tokens, document (N,) int64; table (V, E). Zeros in padding, whose tokens are not read.

    Raises ValueError for a token outside 0 … V − 1.
    """
    place = first_unknown(tokens, document, table.shape[0])
    if place >= 0:
        raise ValueError(f"embedding: token {tokens[place]} at place {place} is outside the vocabulary of {table.shape[0]}")
    gather(tokens, document, table, table.shape[1] ** 0.5, x)


@kernel()
def sort_places(tokens, document, start, order):
    """order: the places with token v, ascending, from start[v] to start[v + 1]; start (V + 1,)."""
    start[:] = 0
    for i in range(tokens.size):
        if document[i] != -1:
            start[tokens[i] + 1] += 1
    for v in range(start.size - 1):
        start[v + 1] += start[v]
    for i in range(tokens.size):  # each start moves to its end, which is the next one's start …
        if document[i] != -1:
            order[start[tokens[i]]] = i
            start[tokens[i]] += 1
    for v in range(start.size - 1, 0, -1):  # … so all go back by one
        start[v] = start[v - 1]
    start[0] = 0


@team()
def sum_places(worker, workers, dx, factor, add, dtable, start, order):
    """Each row of the table, a vector of features at a time."""
    vocabulary, e = dtable.shape
    lanes = rows.lanes_of(dtable)
    for block in range(worker, STRIPES, workers):
        for v in range(block, vocabulary, STRIPES):
            if add and start[v] == start[v + 1]:
                continue
            for k in range(0, e, lanes):
                s = rows.full(dtable, 0)
                for o in range(start[v], start[v + 1]):
                    s = simd.add(s, rows.load_part(dx, order[o] * e + k, e - k))
                s = simd.mul(s, rows.full(dtable, factor))
                if add:
                    s = simd.add(s, rows.load_part(dtable, v * e + k, e - k))
                rows.store_part(s, dtable, v * e + k, e - k)


def add_by_token(dx, tokens, document, factor, add, dtable, start, order) -> None:
    """dtable (V, E) = factor Σ dx over the places with each token, or that much more than it was (add). NaN in padding is not read.

    dx (N, E) of any storage; dtable in the type of arithmetic. start (V + 1,), order (N,) int64 are scratch.
    """
    sort_places(tokens, document, start, order)
    sum_places(dx, factor, add, dtable, start, order)


def embedding_backward(dx, tokens, document, add: bool, dtable, start, order) -> None:
    """add_by_token with the factor √E."""
    add_by_token(dx, tokens, document, dtable.shape[1] ** 0.5, add, dtable, start, order)
