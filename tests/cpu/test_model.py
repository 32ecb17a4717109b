"""The whole model on the CPU: against the oracle, against its own differences, and what holds bit for bit."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from numpy import ndarray

from tests.cpu.model_cases import (
    EXP_TERMS,
    KNOTS,
    NO_WEIGHTS_DROPPED,
    exact_weights,
    in_float64,
    of_matrices,
    oracle_step,
    packed_batch,
    problem_of,
    small_model,
    step,
)
from tests.cpu.storages import assert_same_for_any_threads, threads
from tests.ref.bounds import EPS, noise, reordered_share, same_bits, sensitivity
from tests.ref.cases import ALL_DROPOUTS, BIASES, lively_model, model_configs, packed, random_batch, rising_times, seeds
from ttr_fast.cpu.model import CpuModel, storage_copies
from ttr_ref.config import BiasKind, ModelConfig, RopeKind, TimeHeadOrder
from ttr_ref.dropout import DropoutKey
from ttr_ref.float_dtype import FloatDType
from ttr_ref.model import ModelParams, loss_forward
from ttr_ref.next_event import Batch, EventNats
from ttr_ref.parameters import is_frequency
from ttr_ref.timeline import Timeline, elapsed, timeline_from_lengths
from ttr_ref.tree import leaves_of, named_leaves, named_tree_map, tree_map

F64, F32, BF16, F16 = FloatDType.F64, FloatDType.F32, FloatDType.BF16, FloatDType.F16
EPS_OF = {F32: 2.0**-23, BF16: 2.0**-7, F16: 2.0**-10}
TRAINED = [small_model(F32), small_model(BF16, "exp"), small_model(F16, dropout=NO_WEIGHTS_DROPPED)]
"""Each storage below float64 with a kind of attention that test_attention.py compiles too."""
TRAINED_IDS = ["f32", "bf16", "f16"]
BETWEEN_MATRICES = 16
"""Roundings of a value between two matrices, those of sums apart: the norm's square root, quotient and two products; the gate's cube (3), exponential
(2), sum, quotient and two products; a dropout's factor; the residual; what a sum of two terms still is where a width is one or two."""
few = settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small models wait for threads longer than they compute."""
    with threads(1), np.errstate(invalid="ignore"):  # numbers that are none are meant here
        yield


@pytest.mark.parametrize("kind", BIASES)
@few
@given(data=st.data(), places=st.integers(1, 150), times=st.sampled_from(["unix", "ties", "float"]), seed=seeds)
def test_float64_equals_the_oracle(kind: BiasKind, data: st.DataObject, places: int, times: str, seed: int) -> None:
    """Loss and every gradient, with all options and dropouts: the oracle's sums in another order, over all targets at most, and other elementary
    functions. The loss, a sum of positive numbers, is rounded to its own size too.
    """
    config = data.draw(model_configs(time_bias=kind, dropout=ALL_DROPOUTS, exp_terms=EXP_TERMS, table_knots=KNOTS))
    rng = np.random.default_rng(seed)
    batch = random_batch(rng, config, packed(rng, 2, places, times))
    assume(batch.is_target.any())
    params, key = lively_model(config, seed), DropoutKey(seed, 1)

    def expected(weights: ModelParams) -> tuple:
        return oracle_step(weights, batch, config, key)

    loss_moves, grads_move = sensitivity(of_matrices(expected, params), params)
    loss, grads = expected(params)
    longest_sum = max(3 * config.block.embed_dim, 2 * places) + BETWEEN_MATRICES
    assert reordered_share(step(params, batch, config, key), (loss, grads), (np.asarray(loss_moves + loss), grads_move), longest_sum) <= 1


ROUNDED: list[tuple[FloatDType, BiasKind, RopeKind, TimeHeadOrder | None, int, bool]] = [
    (F32, "log", "split", "both", 2, True), (F32, "table", "time", "token_then_time", 4, False), (F32, "linear", "position", None, 1, False),
    (BF16, "exp", "split", "both", 1, True), (BF16, "exp", "time", "time_then_token", 2, True), (BF16, "exp", "position", None, 4, True),
    (F16, "log", "split", "both", 2, False), (F16, "log", "time", "token_then_time", 1, False), (F16, "log", "position", None, 4, False),
]  # fmt: skip


@pytest.mark.parametrize("dtype, kind, rope, order, kv_heads, weights_dropped", ROUNDED, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_rounded_as_storage_rounds(
    dtype: FloatDType, kind: BiasKind, rope: RopeKind, order: TimeHeadOrder | None, kv_heads: int, weights_dropped: bool, seed: int
) -> None:
    """Against the oracle in float64 on the weights as they are stored, leaf by leaf in norm.

    A stored value rounds by at most eps/2 of itself, with variance eps²/12, and acts like a rounding of the matrix that it meets. A block stores 11
    values going forward and as many gradients, and has four matrices: six roundings a matrix, so √(6/3) times what eps/2 of all weights does. In
    float32 the chains of K ≤ 48 terms round too: partial sums of K/2 times the last one's square. Four standard deviations.
    """
    config = small_model(dtype, kind, rope, order, kv_heads, tied=seed == 1, dropout=ALL_DROPOUTS if weights_dropped else NO_WEIGHTS_DROPPED)
    params, batch, key = problem_of(config, seed)
    weights = exact_weights(params, config)

    def expected(moved: ModelParams) -> tuple:
        return oracle_step(moved, batch, in_float64(config), key)

    moves = noise(of_matrices(expected, weights), weights)
    deviation = EPS_OF[dtype] / 2 * np.sqrt(6 / 3 + (24 if dtype == F32 else 0))
    actual = step(params, batch, config, key, loss_scale=2.0**10 if dtype == F16 else 1.0)
    shares = tree_map(lambda a, e, s: np.linalg.norm(np.float64(a) - e) / (4 * deviation * s) if a.size else 0.0, actual, expected(weights), moves)
    assert max(leaves_of(shares)) <= 1


@pytest.mark.parametrize("kind", BIASES)
def test_gradients_are_differences_of_the_loss(kind: BiasKind) -> None:
    """Without the oracle: in float64, along a random direction for each leaf, by central differences of two widths.

    Theirs is h²/6 times the third derivative, so 4/3 of the narrow one less 1/3 of the wide one is off by less than the two differ. The loss is a
    float64 sum off by few eps of its terms, and divided by h.
    """
    config = small_model(F64, kind, window=9, layers=1)
    params, batch, key = problem_of(config, 5, places=20)
    model, rng = CpuModel(config), np.random.default_rng(0)
    loss, grads = step(params, batch, config, key, model)
    longest = elapsed(batch.at, config.block.time).max()
    for name, leaf in named_leaves(params).items():
        direction = (1e-3 / longest if is_frequency(name) else 1e-3) * rng.choice([-1.0, 1.0], leaf.shape)

        def moved(by: float, name: str = name, direction: ndarray = direction) -> float:
            there = named_tree_map(lambda other, a: a + by * direction if other == name else a, params)
            return float(step(there, batch, config, key, model)[0])

        narrow, wide = ((moved(h) - moved(-h)) / (2 * h) for h in (1.0, 2.0))
        slope = (named_leaves(grads)[name] * direction).sum()
        rounding = 50 * EPS * float(loss)
        assert abs((4 * narrow - wide) / 3 - slope) <= abs(wide - narrow) + rounding, name
        assert abs(wide - narrow) <= 1e-2 * abs(slope) + 1e-7, name


@pytest.mark.parametrize("config", TRAINED, ids=TRAINED_IDS)
def test_how_the_work_is_arranged_changes_no_bit(config: ModelConfig) -> None:
    """One thread and two; checkpoints of one, two or all blocks; a workspace that another batch was in, or that holds numbers that are none."""
    config = replace(config, layers=3)
    params, batch, key = problem_of(config, 1)
    model = CpuModel(config)
    expected = step(params, batch, config, key, model)
    held = model.workspace.nbytes
    step(params, packed_batch(config, 2, places=40), config, DropoutKey(3, 3), model)
    for raw in model.workspace.memory.values():
        raw.fill(0xFF)
    assert same_bits(step(params, batch, config, key, model), expected)
    assert model.workspace.nbytes == held
    assert_same_for_any_threads(lambda: tuple(leaves_of(step(params, batch, config, key))))
    for mode in ("block", "every:2", "every:5"):
        assert same_bits(step(params, batch, config, key, checkpointing=mode), expected)


EVALUATED = [*((F32, kind) for kind in BIASES), (F16, "log")]


def nats_of(params: ModelParams, batch: Batch, config: ModelConfig) -> list[EventNats]:
    return CpuModel(config).nats(storage_copies(params, config), batch)[0]


def at_targets(nats: list[EventNats], chosen: ndarray) -> tuple:
    """The nats of some of the targets."""
    return tuple((n.token[chosen], None if n.time is None else n.time[chosen]) for n in nats)


@pytest.mark.parametrize("dtype, kind", EVALUATED)
@settings(max_examples=6)
@given(places=st.integers(2, 150), cut=st.integers(0, 149), times=st.sampled_from(["unix", "float"]), seed=seeds)
def test_nats_depend_on_the_past_alone(dtype: FloatDType, kind: BiasKind, places: int, cut: int, times: str, seed: int) -> None:
    """A row alone; other tokens and times from `cut` on; no tokens and no times in the padding: every bit of the others' nats stays."""
    config = small_model(dtype, kind)
    rng = np.random.default_rng(seed)
    at = timeline_from_lengths(rising_times(rng, 3, places, times), np.array([places, places // 2, places - 1]))
    batch, params = random_batch(rng, config, at), lively_model(config, seed)
    row = np.broadcast_to(np.arange(3)[:, None], at.time.shape)[batch.is_target]
    column = np.broadcast_to(np.arange(places), at.time.shape)[batch.is_target]
    nats = nats_of(params, batch, config)

    one = Batch(batch.tokens[1:2], at.places(slice(1, 2), slice(None)), *(a[1:2] for a in batch[2:]))
    assert same_bits(at_targets(nats_of(params, one, config), np.ones(int(one.is_target.sum()), bool)), at_targets(nats, row == 1))

    later = np.arange(places) >= cut
    known = batch.is_target & (np.arange(places) < cut - 1)  # both the event and what follows it lie before the cut
    changed = Batch(
        np.where(later, rng.integers(0, config.vocab_size, at.time.shape), batch.tokens), at._replace(time=at.time + 10**6 * later),
        np.where(known, batch.next_tokens, 0), np.where(known, batch.next_times, batch.next_times + 10**6), batch.is_target,
    )  # fmt: skip
    assert same_bits(at_targets(nats_of(params, changed, config), known[batch.is_target]), at_targets(nats, column < cut - 1))
    assert same_bits(at_targets(nats_of(params, without_padding(batch), config), row >= 0), at_targets(nats, row >= 0))


def without_padding(batch: Batch) -> Batch:
    """Tokens outside the vocabulary and times that are none where nothing stands and nothing follows."""
    no_time = np.nan if batch.at.time.dtype == np.float64 else np.iinfo(np.int64).min
    is_token, is_target = batch.at.is_token, batch.is_target
    return Batch(
        np.where(is_token, batch.tokens, -5), batch.at._replace(time=np.where(is_token, batch.at.time, no_time)),
        np.where(is_target, batch.next_tokens, 10**6), np.where(is_target, batch.next_times, no_time), is_target,
    )  # fmt: skip


@pytest.mark.parametrize("config", TRAINED, ids=TRAINED_IDS)
@pytest.mark.parametrize("times", ["unix", "float"])
def test_padding_is_never_read(config: ModelConfig, times: str) -> None:
    """Loss and all gradients keep their bits."""
    params, batch, key = problem_of(config, 4, times=times)
    assert (~batch.at.is_token).any()
    assert same_bits(step(params, without_padding(batch), config, key), step(params, batch, config, key))


@pytest.mark.parametrize("config", TRAINED, ids=TRAINED_IDS)
@pytest.mark.parametrize("shift", [1, -1_700_000_000, 2**60 + 1])
def test_times_and_origin_move_together(config: ModelConfig, shift: int) -> None:
    """Loss and all gradients keep their bits."""
    params, batch, key = problem_of(config, 6, places=90)
    at: Timeline = batch.at._replace(time=batch.at.time + shift)
    time = replace(config.block.time, origin=config.block.time.origin + shift)
    moved = replace(config, block=replace(config.block, time=time))
    assert same_bits(step(params, batch._replace(at=at, next_times=batch.next_times + shift), moved, key), step(params, batch, config, key))


def test_parts_of_a_batch_add_up() -> None:
    """With the whole batch's number of targets as normaliser, losses and gradients of its rows sum to the whole's."""
    config = small_model(F64)
    params, batch, key = problem_of(config, 7)
    count, copies = float(batch.is_target.sum()), storage_copies(params, config)

    def part(rows: slice) -> tuple:
        some = Batch(batch.tokens[rows], batch.at.places(rows, slice(None)), *(a[rows] for a in batch[2:]))
        loss, grads = CpuModel(config).loss_and_gradients(copies, some, key, 0.0, 1.0, 1.0, "none", count)
        return np.asarray(loss), grads

    def whole(weights: ModelParams) -> tuple:
        return oracle_step(weights, batch, config, key)

    loss_moves, grads_move = sensitivity(of_matrices(whole, params), params)
    sums = tree_map(np.add, part(slice(0, 1)), part(slice(1, 2)))
    assert reordered_share(sums, part(slice(0, 2)), (np.asarray(loss_moves + sums[0]), grads_move), batch.tokens.size) <= 1


@pytest.mark.parametrize("token", [-1, 10**6])
def test_target_outside_the_vocabulary(token: int) -> None:
    """Kernels would read whatever lies there."""
    params, batch, key = problem_of(TRAINED[0], 4)
    row, place = np.argwhere(batch.is_target)[-1]
    batch.next_tokens[row, place] = token
    with pytest.raises(ValueError, match=f"next_event: target {token} at row {row}, place {place} is outside the vocabulary of"):
        step(params, batch, TRAINED[0], key)


def test_nothing_to_predict() -> None:
    config = small_model(F64)
    params, batch, key = problem_of(config, 8, places=9)
    with pytest.raises(ValueError, match="loss: the batch has nothing to predict"):
        step(params, batch._replace(is_target=np.zeros_like(batch.is_target)), config, key)


@pytest.mark.parametrize("kind", BIASES)
def test_nats_equal_the_oracle(kind: BiasKind) -> None:
    """Without dropout, in float32; limits as in test_rounded_as_storage_rounds, forward alone."""
    config = small_model(F32, kind)
    params, batch, _ = problem_of(config, 9)
    weights = exact_weights(params, config)

    def expected(moved: ModelParams) -> tuple:
        return tuple((n.token, n.time) for n in loss_forward(moved, batch, in_float64(config))[1])

    moves = noise(of_matrices(expected, weights), weights)
    actual = tuple((n.token, n.time) for n in nats_of(params, batch, config))
    shares = tree_map(
        lambda a, e, s: np.linalg.norm(a - e) / (4 * EPS_OF[F32] / 2 * np.sqrt(2 + 24) * s), actual, expected(weights), moves
    )
    assert max(leaves_of(shares)) <= 1
