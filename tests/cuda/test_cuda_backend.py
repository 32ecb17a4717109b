"""The cuda backend against the reference backend: what a step moves, parts of a batch, whole training, saving, predictions, decoding, memory."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy import ndarray

from tests.cpu.storages import stored
from tests.cuda.schedules import in_reverse
from tests.cuda.test_transformer_block import BETWEEN_MATRICES, eps_of_storage
from tests.ref.bounds import reordered_share, same_bits, sensitivity
from tests.ref.cases import ALL_DROPOUTS, NOW, lively_model, packed, random_batch
from ttr_fast.cuda import memory
from ttr_fast.cuda.workspace import on_host
from ttr_fast.cuda_backend import CudaBackend
from ttr_fast.errors import UserError
from ttr_fast.generation.decode import Past, continue_sequences
from ttr_fast.generation.distribution import Sampling
from ttr_fast.generation.sample import EventSampler
from ttr_fast.model import Backend, ReferenceBackend
from ttr_fast.training import step as training
from ttr_fast.training.checkpoint import CheckpointConfig, TextSource
from ttr_fast.training.saves import Saves
from ttr_fast.training.step import TrainState, accumulated, train_step
from ttr_ref.adamw import adamw_init
from ttr_ref.config import BlockConfig, ModelConfig, TimeConfig, TimeHeadConfig, TrainConfig
from ttr_ref.float_dtype import FloatDType
from ttr_ref.loss_scaling import LossScale, loss_scale_init
from ttr_ref.model import ModelParams
from ttr_ref.next_event import Batch
from ttr_ref.parameters import is_frequency, is_matrix
from ttr_ref.time_head import mixture_quantile
from ttr_ref.tree import leaves_of, named_leaves, named_tree_map, tree_map

ROWS, PLACES = 2, 6
TRAIN = TrainConfig(steps=8, rows=ROWS, length=PLACES, warmup=2, learning_rate=0.1, adam_eps=0.1, z_loss=1e-3, time_weight=0.7, seed=3)
"""adam_eps is so large that a gradient which is nothing but rounding moves nothing; with 1e-9 AdamW would make a whole step of it."""


def config_of(dtype: FloatDType, order: str = "token_then_time") -> ModelConfig:
    """One block; more than one chunk of targets."""
    time = TimeConfig(origin=NOW, unit=600.0, shortest=60.0, span=1e6)
    block = BlockConfig(8, 5, 2, 1, window=4, rope="split", time_bias="log", time=time, dropout=ALL_DROPOUTS, float_dtype=dtype)
    return ModelConfig(5, 1, block, time_head=TimeHeadConfig(2, order), loss_chunk=5)


def batch_of(config: ModelConfig, step: int) -> Batch:
    """Another for each step, with something to predict in every row; the first has few targets, the next nearly all."""
    rng = np.random.default_rng(step)
    batch = random_batch(rng, config, packed(rng, ROWS, PLACES, "unix"))
    batch.is_target[:, 2:] &= step > 0
    batch.is_target[:, 0] = True
    return batch


def copied(tree: Any) -> Any:
    return tree_map(np.copy, tree)


def start_of(config: ModelConfig, scale: LossScale | None = None) -> TrainState:
    """Parameters that no other state shares."""
    params = lively_model(config, 0)
    return TrainState(params, adamw_init(params), loss_scale_init(config.block) if scale is None else scale, 0)


@pytest.mark.parametrize("dtype", [FloatDType.F64, FloatDType.BF16, FloatDType.F16], ids=str)
@pytest.mark.parametrize("clip_norm", [1e3, 0.01])
def test_updates_equal_the_oracle(dtype: FloatDType, clip_norm: float) -> None:
    """Three, as in tests/cpu/test_cpu_backend.py: bit for bit where nothing is clipped, and masters stay what float32 makes of them."""
    config, train = config_of(dtype), replace(TRAIN, clip_norm=clip_norm)
    params, scale = lively_model(config, 0), LossScale(2.0**10, 2.0**24)
    mine, theirs, backend, reference = copied(params), params, CudaBackend(), ReferenceBackend()
    my_state, their_state, rng = adamw_init(mine), adamw_init(params), np.random.default_rng(0)
    for _ in range(3):
        grads = tree_map(lambda a: (scale.scale * rng.standard_normal(a.shape)).astype(a.dtype), params)
        mine, my_state, my_norm = backend.update(mine, grads, my_state, scale, 3e-3, config, train)
        theirs, their_state, their_norm = reference.update(theirs, grads, their_state, scale, 3e-3, config, train)
        assert abs(my_norm - their_norm) <= sum(a.size for a in leaves_of(params)) * 2.0**-52 * their_norm
    expected, actual = (theirs, their_state.m, their_state.v), backend.on_host((mine, my_state.m, my_state.v))
    if clip_norm == 1e3:
        assert same_bits(actual, expected)
    else:
        eps = float(np.finfo(dtype.compute).eps)
        for (name, a), e in zip(named_leaves(actual).items(), named_leaves(expected).values(), strict=True):
            np.testing.assert_allclose(a, e, rtol=10 * eps, atol=10 * eps * np.abs(e).max(initial=0.0), err_msg=name)
    copies = named_tree_map(lambda name, a: stored(a, dtype) if is_matrix(name) else a, actual[0])
    assert same_bits(backend.on_host(backend.prepared(mine, config)[2]), copies)


def test_an_overflow_moves_nothing() -> None:
    config = config_of(FloatDType.F16)
    params, backend = lively_model(config, 0), CudaBackend()
    grads = tree_map(np.ones_like, params)
    grads.norm_final[3] = np.inf
    before, state = copied(params), adamw_init(params)
    after, same_state, norm = backend.update(params, grads, state, LossScale(2.0, 4.0), 1e-3, config, TRAIN)
    assert norm == np.inf
    assert same_bits(backend.on_host((after, same_state.m)), (before, tree_map(np.zeros_like, params)))
    assert same_state.steps == 0


def test_parts_add_up_to_the_oracles_whole() -> None:
    """Loss and gradients with every dropout and both orders, float64: the oracle's sums in another order."""
    config, backend = config_of(FloatDType.F64, "both"), CudaBackend()
    params, batch = lively_model(config, 0), batch_of(config, 1)

    def whole(weights: ModelParams) -> tuple[ndarray, Any]:
        fixed = named_tree_map(lambda name, a, there: there if is_frequency(name) else a, weights, params)
        loss, grads = ReferenceBackend().loss_and_gradients(fixed, batch, config, TRAIN, 2, 4.0)
        return np.asarray(loss), grads

    loss, grads = accumulated(backend, params, batch, config, replace(TRAIN, accumulate=2), 2, 4.0)
    expected, moves = whole(params), sensitivity(whole, params)
    moves = np.asarray(moves[0] + expected[0]), moves[1]  # the loss, a sum of positive numbers, is rounded to its own size too
    longest = max(24, config.vocab_size, ROWS * PLACES) + BETWEEN_MATRICES
    assert reordered_share((np.asarray(float(loss)), on_host(grads)), expected, moves, longest) <= 1


def trained(backend: Backend, config: ModelConfig, train: TrainConfig, state: TrainState, until: int) -> tuple[TrainState, list[float]]:
    """(the state on the host, the loss of each step)."""
    losses = []
    while state.step < until:
        state, report = train_step(backend, state, batch_of(config, state.step), config, train)
        assert not report.skipped
        losses.append(report.loss)
    return training.on_host(backend, state), losses


def apart(state: TrainState, other: TrainState) -> float:
    """The norm of the difference of all parameters."""
    norms = [np.linalg.norm(np.float64(a) - b) for a, b in zip(leaves_of(state.params), leaves_of(other.params), strict=True)]
    return float(np.linalg.norm(norms))


@pytest.mark.parametrize("dtype, parts", [(FloatDType.F32, 2), (FloatDType.BF16, 1), (FloatDType.F16, 1)], ids=str)
def test_training(dtype: FloatDType, parts: int, tmp_path: Path) -> None:
    """Two steps with all dropouts.

    Near the reference: the reference itself, trained in this type and in float64, comes apart by the roundings of the type; ours rounds what it
    rounds, in float32 in longer chains, and may be off by four times that, losses by an eps of their size too, as in tests/cpu/test_cpu_backend.py.
    Again, saved after a step and read by another backend: the same bits, and memory that was known before and does not grow.
    """
    config, exact_config, train = config_of(dtype), config_of(FloatDType.F64), replace(TRAIN, accumulate=parts)
    backend = CudaBackend()
    state, losses = trained(backend, config, train, start_of(config), 2)
    reference, expected = trained(ReferenceBackend(), config, train, start_of(config), 2)
    exact_start = start_of(config)
    masters = tree_map(lambda a: a.astype(np.float64), exact_start.params)
    exact, exact_losses = trained(ReferenceBackend(), exact_config, train, TrainState(masters, adamw_init(masters), exact_start.loss_scale, 0), 2)
    off, theirs = np.abs(np.subtract(losses, exact_losses)), np.abs(np.subtract(expected, exact_losses))
    assert (off <= 4 * theirs.max() + eps_of_storage(dtype) * np.abs(exact_losses)).all()
    assert apart(state, exact) <= 4 * apart(reference, exact)

    assert backend.model is not None
    part = next(training.parts_of(batch_of(config, 0), parts))
    needed = memory.of_step(exact_start.params, part, config, train).nbytes
    saves = Saves(tmp_path)
    with in_reverse():
        again = CudaBackend()
        first, _ = trained(again, config, train, start_of(config), 1)
        assert again.model is not None
        assert needed == again.model.workspace.nbytes == backend.model.workspace.nbytes
        saves.save(first, CheckpointConfig(config, train, TextSource(None), (), 0))
        second, _ = trained(CudaBackend(), config, train, saves.newest()[0], 2)
    assert same_bits((second.params, second.optimizer.m, second.optimizer.v), (state.params, state.optimizer.m, state.optimizer.v))
    assert (second.loss_scale, second.optimizer.steps) == (state.loss_scale, 2)


def predictions(backend: Backend, params: ModelParams, batch: Batch, config: ModelConfig) -> tuple[Any, ...]:
    found = backend.predict(params, batch, config, True)
    return tuple((p.token_nats, p.time_nats, p.gap, mixture_quantile(p.mixture, 0.5), p.standing.top_nats) for p in found)


def test_predictions_equal_the_oracle() -> None:
    """Nats, medians, the likeliest token's nats and ranks, in both orders, float64; what is positive is rounded to its own size too."""
    config, backend = config_of(FloatDType.F64, "both"), CudaBackend()
    params, batch = lively_model(config, 0), batch_of(config, 1)

    def expected(weights: ModelParams) -> tuple[Any, ...]:
        fixed = named_tree_map(lambda name, a, there: there if is_frequency(name) else a, weights, params)
        return predictions(ReferenceBackend(), fixed, batch, config)

    theirs = expected(params)
    moves = tree_map(lambda s, e: np.asarray(s + np.abs(e).max()), sensitivity(expected, params), theirs)
    assert reordered_share(predictions(backend, params, batch, config), theirs, moves, 24 + BETWEEN_MATRICES) <= 1
    ranks = [[p.standing.rank.tolist() for p in b.predict(params, batch, config, True)] for b in (backend, ReferenceBackend())]
    assert ranks[0] == ranks[1]
    assert all(p.mixture is None and p.standing is None for p in backend.predict(params, batch, config, False))


def test_continuations_equal_the_oracles() -> None:
    """Tokens and times of two rows, float64: nothing that is drawn is close enough to a border for the order of a sum to matter."""
    config = config_of(FloatDType.F64, "both")
    params, found = lively_model(config, 0), []
    for backend in (CudaBackend(), ReferenceBackend()):
        pasts = [Past(np.arange(n) % 5, NOW + 900 * np.arange(n), np.random.default_rng(n)) for n in (2, 4)]
        events = continue_sequences(backend, params, config, pasts, EventSampler(params, config, Sampling()), lambda row, event: False)
        found.append(list(islice(events, 6)))
    assert found[0] == found[1]
    assert {row for row, _ in found[0]} == {0, 1}


def test_a_decoder_keeps_its_weights() -> None:
    """Another model of the same kind comes along on the same backend."""
    config, found, token, time = config_of(FloatDType.BF16), [], np.array([1]), np.array([NOW])
    for another in (False, True):
        backend = CudaBackend()
        state = backend.decode_start(lively_model(config, 0), config, 1, np.int64)
        if another:
            backend.prepared(lively_model(config, 1), config)
        found.append(backend.decode(state, token, time, config)[0])
    assert same_bits((found[0],), (found[1],))


def test_too_little_memory_is_told_before_anything_happens() -> None:
    """With what is needed, what there is, and what would do."""
    config, train, params = config_of(FloatDType.F32), replace(TRAIN, accumulate=1), lively_model(config_of(FloatDType.F32), 0)
    batch, beside = batch_of(config, 1), 3 * memory.bytes_of(params)
    needed = beside + memory.of_step(params, batch, config, train).nbytes
    smaller = {said: beside + nbytes for said, nbytes in memory.smaller_steps(params, batch, config, train)}
    assert list(smaller) == ["--train.checkpointing block", "--train.accumulate 2", "--train.checkpointing block --train.accumulate 2"]
    again = [said for said, _ in memory.smaller_steps(params, batch, config, replace(train, rows=12, accumulate=6))]
    assert again == ["--train.checkpointing block", "--train.accumulate 12", "--train.checkpointing block --train.accumulate 12"]
    half = smaller["--train.accumulate 2"]
    assert half < min(needed, smaller["--train.checkpointing block"])
    start = rf"^--backend cuda: a step of 2 rows of 6 tokens needs {needed / 2**20:.2f} MiB of the GPU's memory, there are"
    fits = rf"{half / 2**20:.2f} MiB; --train.accumulate 2 needs {half / 2**20:.2f} MiB$"
    for limit, end in ((half, fits), (half - 1, r".* MiB; it takes a smaller model$")):
        backend = CudaBackend(limit)
        with pytest.raises(UserError, match=rf"{start} {end}"):
            backend.loss_and_gradients(params, batch, config, train, 0, 1.0)
        assert backend.masters is None
    with pytest.raises(UserError, match=r"^--backend cuda: decoding 3 rows needs .* there are 0\.00 MiB; it takes a smaller model$"):
        CudaBackend(1).decode_start(params, config, 3, np.int64)
    with pytest.raises(UserError, match=r"^--backend cuda: a prediction of 2 rows of 6 tokens needs "):
        CudaBackend(1).predict(params, batch, config, False)
