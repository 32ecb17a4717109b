"""Decoding on the CPU: bit for bit the windowed forward pass over the whole sequence, however often the ring has wrapped."""

import tracemalloc
from dataclasses import replace
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from numpy import ndarray

from tests.cpu.storages import threads
from tests.ref.bounds import reordered_share, sensitivity
from tests.ref.cases import NOW, ROPES, lively_model, rising_times, seeds
from ttr_fast.cpu.decode import CpuDecoder
from ttr_fast.cpu.half import as_bits, as_storage
from ttr_fast.cpu.kv_ring import tiles_of
from ttr_fast.cpu.linear import matmul
from ttr_fast.cpu.model import CpuModel, storage_copies
from ttr_fast.cpu.places import places_of
from ttr_fast.cpu_backend import CpuBackend
from ttr_fast.model import ReferenceBackend
from ttr_ref.config import BiasKind, BlockConfig, ModelConfig, RopeKind, TimeConfig
from ttr_ref.float_dtype import FloatDType
from ttr_ref.model import ModelParams, model_forward
from ttr_ref.next_event import Batch
from ttr_ref.timeline import timeline_from_lengths
from ttr_ref.tree import named_tree_map

VARIANTS: list[tuple[BiasKind, str]] = [("log", "f32"), ("exp", "bf16"), ("table", "f16"), ("linear", "f64"), ("none", "f32")]
"""Kind of bias, storage: each once."""
by_variant = pytest.mark.parametrize("kind, name", VARIANTS, ids=str)
sizes = settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])


class Case(NamedTuple):
    """A model as kernels compute with it, and what it is to read."""

    config: ModelConfig
    params: ModelParams
    tokens: ndarray
    times: ndarray

    def rows(self, which: slice) -> "Case":
        """Some rows alone."""
        return self._replace(tokens=self.tokens[which], times=self.times[which])


def case(kind: BiasKind, name: str, window: int, rows: int, length: int, seed: int, times: str = "unix", rope: RopeKind = "split",
         gain: float = 1.0, heads: tuple[int, int] = (4, 2)) -> Case:  # fmt: skip
    """Two blocks; `heads` of queries and of keys and values; `gain` makes the scores larger."""
    rng = np.random.default_rng(seed)
    stretch = 1e6 if times == "centuries" else 1.0
    time = TimeConfig(origin=NOW if times == "unix" else 0, unit=600 * stretch, span=1e6 * stretch)
    block = BlockConfig(24, 20, *heads, window=window, rope=rope, time_bias=kind, time2vec=seed % 2 == 0, float_dtype=FloatDType(name), table_knots=5,
                        time=time)  # fmt: skip
    config = ModelConfig(37, 2, block, tied=seed % 3 != 0)
    params = named_tree_map(lambda leaf, a: a * a.dtype.type(gain) if leaf.endswith("w_qkv") else a, lively_model(config, seed))
    return Case(config, params, rng.integers(0, config.vocab_size, (rows, length)), rising_times(rng, rows, length, times))


def forward(c: Case, start: int = 0) -> tuple[ndarray, ndarray]:
    """z (B, T, E) and logits (B, T, V) of the whole sequences, the first token at position `start`."""
    at = timeline_from_lengths(c.times, np.full(c.tokens.shape[0], c.tokens.shape[1]), start)
    weights = storage_copies(c.params, c.config)
    batch = Batch(c.tokens, at, c.tokens, c.times, at.is_token)
    trunk, _ = CpuModel(c.config).trunk(weights, batch, places_of(at, c.config.block.time), None, "none")
    vocabulary = weights.embedding if weights.w_vocab is None else weights.w_vocab
    logits = np.empty((trunk.z.shape[0], c.config.vocab_size), c.config.block.float_dtype.compute)
    matmul(trunk.z, False, vocabulary, c.config.tied, logits)
    return trunk.z.reshape(*c.tokens.shape, -1), logits.reshape(*c.tokens.shape, -1)


def decoder_of(c: Case) -> CpuDecoder:
    return CpuDecoder(storage_copies(c.params, c.config), c.config, c.tokens.shape[0], c.times.dtype.type)


def decoded(c: Case, spoil: bool = False) -> tuple[ndarray, ndarray]:
    """The same, token by token; `spoil`: NaN in every slot of the rings that no token of the window has taken."""
    decoder, states, logits = decoder_of(c), [], []
    for n in range(c.tokens.shape[1]):
        if spoil:
            spoil_free_slots(decoder, n)
        states.append(decoder.step(c.tokens[:, n], c.times[:, n]).copy())
        logits.append(decoder.logits().copy())
    return np.stack(states, 1), np.stack(logits, 1)


def spoil_free_slots(decoder: CpuDecoder, n: int) -> None:
    """NaN wherever token n may not look: outside the window, all but the time of the first key of its own tile, to which times are related."""
    slots = tiles_of(decoder.window) * 64
    held = np.array([s % slots for s in range(max(n - decoder.window + 1, 0), n)], np.int64)
    free = np.setdiff1d(np.arange(slots), held)
    for block in decoder.blocks:
        k, v = block.ring
        if k.dtype == np.uint32:  # two numbers in a word: of one token's key, of two tokens' values
            keys, values = (a.view(np.uint16).reshape(*a.shape, 2) for a in (k, v))
            nan = as_bits(np.array(np.nan, ml_dtypes.bfloat16))
            keys[:, :, free // 64, :, free % 64] = values[:, :, free // 64, free % 64 // 2, :, free % 2] = nan
            continue
        nan = np.array(np.nan, as_storage(k).dtype).view(k.dtype)
        k[:, :, free // 64, :, free % 64] = v[:, :, free // 64, free % 64] = nan
    decoder.past.time[:, np.setdiff1d(free, n // 64 * 64 % slots)] = np.nan


def assert_same_bits(a: tuple[ndarray, ...], b: tuple[ndarray, ...]) -> None:
    for x, y in zip(a, b, strict=True):
        assert np.isfinite(as_storage(y).astype(np.float64)).all()
        assert np.ascontiguousarray(x).tobytes() == np.ascontiguousarray(y).tobytes()


@by_variant
@sizes
@given(window=st.one_of(st.integers(1, 20), st.integers(50, 150)), rows=st.integers(1, 6), share=st.floats(0.2, 3.3),
       times=st.sampled_from(["unix", "float", "ties", "centuries"]), rope=st.sampled_from(ROPES), gain=st.sampled_from([1.0, 8.0]),
       heads=st.sampled_from([(4, 2), (3, 1), (1, 1)]), seed=seeds)  # fmt: skip
def test_equals_the_windowed_forward_pass(kind, name, window, rows, share, times, rope, gain, heads, seed) -> None:
    """Every bit of z and logits, up to more than three turns of the ring, NaN in all slots that are free; large scores move references."""
    length = 1 + int(share * min(tiles_of(window) * 64, 130))
    c = case(kind, name, window, rows, length, seed, times, rope, gain, heads)
    with threads(1 + seed % 2):
        assert_same_bits(decoded(c, spoil=True), forward(c))


@given(rows=st.integers(2, 6), seed=seeds)
@settings(max_examples=5)
def test_a_row_has_the_same_bits_whatever_stands_beside_it(rows: int, seed: int) -> None:
    """Alone and in a batch, one and two threads."""
    c = case("log", "f32", 100, rows, 230, seed)
    with threads(2):
        together = decoded(c)
    for one in (0, rows - 1):
        which = slice(one, one + 1)
        for count in (1, 2):
            with threads(count):
                assert_same_bits(decoded(c.rows(which)), tuple(a[which] for a in together))


@pytest.mark.parametrize("heads, name", [((4, 2), "f32"), ((3, 1), "f32"), ((4, 2), "bf16")])
def test_references_move(heads: tuple[int, int], name: str) -> None:
    """Scores beyond 2^60 above that of a query's own tile. Two threads deal out the tiles of three heads, and do such a head again."""
    c = case("none", name, 200, 1, 330, 4, gain=60.0, heads=heads)
    for count in (1, 2):
        with threads(count):
            assert_same_bits(decoded(c), forward(c))


def test_after_a_million_tokens() -> None:
    """At positions beyond 10^6 a token that no longer sees the ring's beginning gets the bits of a forward pass that starts there too."""
    start, length = 10**6 + 17, 200
    c = case("log", "f32", 40, 1, length, 6)
    decoder = decoder_of(c)
    decoder.past.seen[:] = start
    decoder.past.first[:] = c.times[:, 0]
    z = np.stack([decoder.step(c.tokens[:, n], c.times[:, n]).copy() for n in range(length)], 1)
    settled = c.config.layers * 39 + 63  # and no longer relates times to a key that was never there
    assert_same_bits((z[:, settled:],), (forward(c, start)[0][:, settled:],))


def test_a_step_asks_for_no_memory() -> None:
    """Nothing but small change after the first step, wherever the ring stands, and logits too."""
    c = case("log", "f32", 100, 2, 3, 8)
    decoder = decoder_of(c)

    def step(n: int) -> None:
        decoder.step(c.tokens[:, n], c.times[:, n])
        decoder.logits()

    step(0)
    held = decoder.workspace.nbytes
    tracemalloc.start()
    try:
        step(1)
        decoder.past.seen[:] = 10**6
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        step(2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 3000
    assert decoder.workspace.nbytes == held


@pytest.mark.parametrize("times", ["unix", "float"])
def test_the_backend_decodes_what_the_oracle_does(times: str) -> None:
    """Through the protocol of ttr_fast.model, in float64."""
    c = case("linear", "f64", 50, 2, 90, 3, times)
    found = []
    for backend in (CpuBackend(), ReferenceBackend()):
        state, states = backend.decode_start(c.params, c.config, 2, c.times.dtype.type), []
        for n in range(c.tokens.shape[1]):
            z, state = backend.decode(state, c.tokens[:, n], c.times[:, n], c.config)
            states.append(z)
        found.append(np.stack(states, 1))
    at = timeline_from_lengths(c.times, np.full(2, c.tokens.shape[1]))
    limit = sensitivity(lambda p: (model_forward(p, c.tokens, at, c.config)[0],), c.params)
    longest = max(3 * c.config.block.embed_dim, 2 * c.config.block.hidden_dim, c.config.block.window)
    assert found[0].dtype == np.float64
    assert reordered_share((found[0],), (found[1],), limit, longest) <= 1


def test_rows_with_different_histories() -> None:
    """A row that has seen more than its neighbour has the bits it has alone."""
    c = case("log", "f32", 30, 2, 120, 10)
    decoder, alone, behind = decoder_of(c), decoder_of(c.rows(slice(0, 1))), 37
    for n in range(behind):
        alone.step(c.tokens[:1, n], c.times[:1, n])
    for block, other in zip(decoder.blocks, alone.blocks, strict=True):
        block.ring.k[0], block.ring.v[0] = other.ring.k[0], other.ring.v[0]
    for mine, its in zip(decoder.past, alone.past, strict=True):
        mine[0] = its[0]
    for n in range(c.tokens.shape[1] - behind):
        tokens, times = (np.array([a[0, behind + n], a[1, n]]) for a in (c.tokens, c.times))
        assert decoder.step(tokens, times)[0].tobytes() == alone.step(tokens[:1], times[:1])[0].tobytes()


def test_what_it_refuses() -> None:
    """In a sentence, and nothing has happened then."""
    c = case("log", "f32", 5, 2, 4, 0)
    decoder = decoder_of(c)
    with pytest.raises(ValueError, match=r"decode: 2 tokens and times are needed, got shapes \(1,\) and \(2,\)"):
        decoder.step(c.tokens[:1, 0], c.times[:, 0])
    with pytest.raises(ValueError, match="decode: token 37 of row 1 is outside the vocabulary of 37"):
        decoder.step(np.array([0, 37]), c.times[:, 0])
    decoder.step(c.tokens[:, 0], c.times[:, 1])
    with pytest.raises(ValueError, match=r"decode: times go backwards in row 0: 17\d+ is followed by 17\d+"):
        decoder.step(c.tokens[:, 1], c.times[:, 1] - 1)
    assert decoder.past.seen.tolist() == [1, 1]
    for block, message in ((replace(c.config.block, window=None), "window is None"), (replace(c.config.block, causal=False), "is not causal")):
        with pytest.raises(ValueError, match=message):
            CpuDecoder(c.params, replace(c.config, block=block), 1)
