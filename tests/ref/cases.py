"""What the property tests draw: attention problems and small models of every kind.

Hypothesis draws sizes, layouts and options, which it can shrink; the arrays come from NumPy's generator, seeded by Hypothesis.
"""

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st
from numpy import ndarray

from ttr_ref.config import BlockConfig, DropoutConfig, ModelConfig, TimeConfig, TimeHeadConfig
from ttr_ref.dropout import ATTENTION, Dropout, DropoutKey
from ttr_ref.model import ModelParams, model_init
from ttr_ref.next_event import Batch
from ttr_ref.parameters import is_frequency, is_matrix
from ttr_ref.time_bias import ExpBias, LinearBias, LogBias, NoBias, TableBias, TimeBias
from ttr_ref.timeline import Timeline, timeline_from_cu_seqlens, timeline_from_lengths
from ttr_ref.tree import named_tree_map

BIASES = ("none", "linear", "log", "exp", "table")
ROPES = ("position", "time", "split")
NOW = 1_700_000_000
"""A UNIX time in seconds: float32 cannot tell it from one two minutes later."""
seeds = st.integers(0, 2**32 - 1)
head_counts = st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 1), (4, 2)])


class Problem(NamedTuple):
    """One attention with its upstream gradients; the first ten are the arguments of attention_forward."""

    q: ndarray
    k: ndarray
    v: ndarray
    at_q: Timeline
    at_k: Timeline
    bias: TimeBias
    time: TimeConfig
    causal: bool
    window: int | None
    drop: Dropout | None
    do: ndarray
    dlse: ndarray | None

    @property
    def arguments(self) -> tuple:
        return tuple(self)[:10]


def random_bias(kind: str, heads: int, rng: np.random.Generator, knots: int = 5) -> TimeBias:
    """Parameters far from their initial values, of both signs where both are allowed."""
    match kind:
        case "none":
            return NoBias()
        case "linear":
            return LinearBias(rng.standard_normal(heads))
        case "log":
            return LogBias(rng.standard_normal(heads), 2 * rng.standard_normal(heads))
        case "exp":
            return ExpBias(rng.standard_normal((heads, 3)), rng.standard_normal((heads, 3)) - 1)
        case _:
            return TableBias(rng.standard_normal((heads, knots)))


def rising_times(rng: np.random.Generator, rows: int, places: int, kind: str) -> ndarray:
    """Times that never go backwards: integers with many ties, UNIX seconds, floats, all equal, or with gaps of up to a century."""
    match kind:
        case "ties":
            return np.cumsum(rng.integers(0, 3, (rows, places)), 1)
        case "unix":
            return NOW + np.cumsum(rng.integers(0, 5000, (rows, places)), 1)
        case "float":
            return np.cumsum(rng.exponential(3.0, (rows, places)), 1)
        case "equal":
            return np.full((rows, places), 7)
        case _:
            return np.cumsum(rng.integers(0, 3 * 10**9, (rows, places)), 1)


time_kinds = st.sampled_from(["ties", "unix", "float", "equal", "centuries"])


def packed(rng: np.random.Generator, rows: int, places: int, kind: str) -> Timeline:
    """Documents of random lengths, now and then empty, packed into rows that end in random padding; times rise within each document only."""
    cuts, time = [0], np.zeros((rows, places), rising_times(rng, 1, 1, kind).dtype)
    for row in range(rows):
        ends = np.sort(rng.integers(0, places + 1, rng.integers(1, 4)))
        ends[-1] = max(ends[-1], places - 1)
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            time[row, start:end] = rising_times(rng, 1, places, kind)[0, : end - start]
            cuts.append(row * places + int(end))
        if row < rows - 1 and cuts[-1] < (row + 1) * places:  # only the last row can end in padding: fill the others
            time[row, ends[-1] :] = rising_times(rng, 1, places, kind)[0, : places - ends[-1]]
            cuts.append((row + 1) * places)
    return timeline_from_cu_seqlens(time, np.array(cuts))


def aligned_to_the_end(rng: np.random.Generator, rows: int, queries: int, keys: int, kind: str, lengths: ndarray) -> tuple[Timeline, Timeline]:
    """Queries that are the last places of the documents whose keys are given; with more queries than keys, the first stand before all keys."""
    time_k = rising_times(rng, rows, keys, kind)
    shift = lengths - np.minimum(lengths, queries) if queries <= keys else np.full(rows, keys - queries)
    place = np.clip(np.arange(queries) + shift[:, None], 0, keys - 1)
    at_q = timeline_from_lengths(np.take_along_axis(time_k, place, 1), np.minimum(queries, lengths - shift), shift)
    return at_q, timeline_from_lengths(time_k, lengths)


@st.composite
def problems(
    draw: st.DrawFn, kinds: tuple[str, ...] = BIASES, dropout: bool = True, self_attention: bool = False, most: int = 9,
    widths: tuple[int, ...] = (2, 4, 6),
) -> Problem:  # fmt: skip
    """Attention over packed rows, over padded rows, or of a few queries to more keys (or the other way round)."""
    rng = np.random.default_rng(draw(seeds))
    heads, groups = draw(head_counts)
    rows, width, keys = draw(st.integers(1, 3)), draw(st.sampled_from(widths)), draw(st.integers(1, most))
    layout = draw(st.sampled_from(["packed", "padded"] if self_attention else ["packed", "padded", "aligned"]))
    times = draw(time_kinds)
    if layout == "packed":
        at_k = at_q = packed(rng, rows, keys, times)
    else:
        queries = keys if layout == "padded" else draw(st.integers(1, most))
        lengths = rng.integers(0, keys + 1, rows) if layout == "padded" or queries <= keys else np.full(rows, keys)
        at_q, at_k = aligned_to_the_end(rng, rows, queries, keys, times, lengths)
    queries = at_q.time.shape[1]
    scale = draw(st.sampled_from([0.1, 1.0, 3.0]))
    q, do = scale * rng.standard_normal((rows, heads, queries, width)), rng.standard_normal((rows, heads, queries, width))
    k, v = rng.standard_normal((2, rows, groups, keys, width))
    time = TimeConfig(unit=draw(st.sampled_from([0.5, 1.0, 1000.0])), shortest=draw(st.sampled_from([0.3, 1.0, 60.0])))
    drop = Dropout(draw(st.sampled_from([0.1, 0.5])), DropoutKey(draw(seeds), 3), ATTENTION) if dropout and draw(st.booleans()) else None
    dlse = rng.standard_normal(q.shape[:3]) if draw(st.booleans()) else None
    bias = random_bias(draw(st.sampled_from(kinds)), heads, rng)
    return Problem(q, k, v, at_q, at_k, bias, time, draw(st.booleans()), draw(st.none() | st.integers(1, most + 2)), drop, do, dlse)


ALL_DROPOUTS = DropoutConfig(0.2, 0.1, 0.3, 0.25)


@st.composite
def model_configs(draw: st.DrawFn, **fixed: object) -> ModelConfig:
    """Small models with every option; `fixed` holds fields of ModelConfig or BlockConfig that are not to be drawn."""
    heads, kv_heads = draw(head_counts)
    block = {
        "embed_dim": heads * draw(st.sampled_from([2, 4])),
        "hidden_dim": draw(st.integers(1, 5)),
        "heads": heads,
        "kv_heads": kv_heads,
        "window": draw(st.none() | st.integers(1, 9)),
        "rope": draw(st.sampled_from(ROPES)),
        "time_bias": draw(st.sampled_from(BIASES)),
        "time2vec": draw(st.booleans()),
        "table_knots": 5,
        "time": TimeConfig(origin=NOW, unit=draw(st.sampled_from([1.0, 600.0])), shortest=draw(st.sampled_from([1.0, 60.0])), span=1e6),
    }
    order = draw(st.sampled_from([None, "token_then_time", "time_then_token", "both"]))
    model = {
        "vocab_size": draw(st.integers(2, 7)),
        "layers": draw(st.integers(1, 3)),
        "tied": draw(st.booleans()),
        "time_head": None if order is None else TimeHeadConfig(3, order),
        "loss_chunk": draw(st.integers(1, 30)),
    }
    for name, value in fixed.items():
        (model if name in model else block)[name] = value
    return ModelConfig(block=BlockConfig(**block), **model)


def lively_model(config: ModelConfig, seed: int) -> ModelParams:
    """Initial parameters, except that none is zero or one where it starts so: norms, phases, biases and tables are moved at random."""
    rng = np.random.default_rng(seed)

    def moved(name: str, a: ndarray) -> ndarray:
        if is_matrix(name) or is_frequency(name):
            return a
        return a + (0.3 * rng.standard_normal(a.shape)).astype(a.dtype)

    return named_tree_map(moved, model_init(config, seed))


def random_batch(rng: np.random.Generator, config: ModelConfig, at: Timeline) -> Batch:
    """Random tokens at the places of `at`. What follows each is the next place of its document, or an event beyond it; four of five are predicted."""
    tokens = rng.integers(0, config.vocab_size, at.time.shape)
    inside = np.zeros(at.time.shape, bool)
    inside[:, :-1] = at.document[:, 1:] == at.document[:, :-1]
    beyond = (at.time + rng.integers(0, 5000, at.time.shape)).astype(at.time.dtype)
    next_tokens = np.where(inside, np.roll(tokens, -1, 1), rng.integers(0, config.vocab_size, at.time.shape))
    next_times = np.where(inside, np.roll(at.time, -1, 1), beyond)
    return Batch(tokens, at, next_tokens, next_times, at.is_token & (rng.random(at.time.shape) < 0.8))
