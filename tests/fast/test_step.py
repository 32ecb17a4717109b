"""One step of training, whole or in parts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tests.ref.bounds import reordered_share, same_bits, sensitivity
from tests.ref.cases import ALL_DROPOUTS, lively_model, model_configs, packed, random_batch, seeds
from ttr_fast.data.sequences import EventSequences
from ttr_fast.model import Backend, ReferenceBackend, load_backend
from ttr_fast.training.loop import train
from ttr_fast.training.metrics import MetricsFile
from ttr_fast.training.step import accumulated, parts_of, train_start, train_step
from ttr_ref.adamw import AdamWState, adamw_init
from ttr_ref.config import BlockConfig, ModelConfig, TrainConfig
from ttr_ref.float_dtype import FloatDType
from ttr_ref.next_event import Batch
from ttr_ref.tree import tree_map

ROWS = 4


def problem(config: ModelConfig, seed: int, places: int = 6) -> Batch:
    rng = np.random.default_rng(seed)
    batch = random_batch(rng, config, packed(rng, ROWS, places, "unix"))
    batch.is_target[0, 0] = True
    return batch


@settings(max_examples=12, deadline=None)
@given(config=model_configs(dropout=ALL_DROPOUTS), seed=seeds, parts=st.sampled_from([2, 4]))
def test_parts_add_up_to_the_whole(config: ModelConfig, seed: int, parts: int) -> None:
    """Loss and gradients with every dropout, float64, for parts with different numbers of targets; sums over places in another order."""
    params, batch = lively_model(config, seed), problem(config, seed)
    whole = TrainConfig(rows=ROWS, z_loss=1e-2, time_weight=0.7, seed=seed)

    def gradients(train: TrainConfig, moved: object = params) -> tuple:
        loss, grads = accumulated(ReferenceBackend(), moved, batch, config, train, 3, 1.0)
        return np.asarray(loss), grads

    sensitive = sensitivity(lambda moved: gradients(whole, moved), params)
    longest = batch.tokens.size * max(config.vocab_size, 2 * config.block.embed_dim + config.block.hidden_dim)
    assert reordered_share(gradients(replace(whole, accumulate=parts)), gradients(whole), sensitive, longest) <= 1


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_a_part_is_the_batch_without_the_others(name: str) -> None:
    """The same bits as the parts alone, added by hand: what a backend gives is not overwritten by the next part."""
    config = ModelConfig(5, 1, BlockConfig(8, 4, 2, window=4, dropout=ALL_DROPOUTS, float_dtype=FloatDType.F32))
    params, train = lively_model(config, 0), TrainConfig(rows=ROWS, accumulate=2)
    batch = problem(config, 0)
    targets = float(batch.is_target.sum())
    each = [load_backend(name).loss_and_gradients(params, part, config, train, 0, 4.0, targets) for part in parts_of(batch, 2)]  # type: ignore[arg-type]
    loss, grads = accumulated(load_backend(name), params, batch, config, train, 0, 4.0)  # type: ignore[arg-type]
    assert float(loss) == float(each[0][0]) + float(each[1][0])
    assert same_bits(grads, tree_map(np.add, each[0][1], each[1][1]))
    halves = list(parts_of(batch, 2))
    assert set(halves[0].at.document.ravel()) & set(halves[1].at.document.ravel()) <= {-1}, "a document keeps its number, and so its dropout"


class Untouched(ReferenceBackend):
    """Says so when it is asked."""

    def loss_and_gradients(self, *arguments: object, **named: object) -> tuple:
        raise AssertionError


def test_nothing_to_predict_moves_nothing() -> None:
    """A part of nothing is left out, a batch of nothing is a step that does nothing."""
    config, train = ModelConfig(5, 1, BlockConfig(8, 4, 2)), TrainConfig(rows=ROWS, accumulate=4)
    state, batch = train_start(config, train), problem(config, 0)
    batch.is_target[:2] = False
    assert len(list(parts_of(batch, 4))) <= 2
    losses = [float(accumulated(ReferenceBackend(), state.params, batch, config, how, 0, 1.0)[0]) for how in (train, replace(train, accumulate=1))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-13)
    batch.is_target[:] = False
    backend: Backend = Untouched()
    after, report = train_step(backend, state, batch, config, train)
    assert (after.step, report.targets, report.loss, report.skipped) == (1, 0, 0.0, False)
    assert same_bits((after.params, after.optimizer.m), (state.params, adamw_init(state.params).m))


class Elsewhere:
    """An array that no host can read."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.size = array, array.size


class FarBackend(ReferenceBackend):
    """Keeps what it moves elsewhere, as a GPU does; `on_host` alone fetches it."""

    @staticmethod
    def near(tree: Any) -> Any:
        return tree_map(lambda a: a.array if isinstance(a, Elsewhere) else a, tree)

    def loss_and_gradients(self, params: Any, *arguments: Any, **named: Any) -> Any:
        return super().loss_and_gradients(self.near(params), *arguments, **named)

    def update(self, params: Any, grads: Any, optimizer: Any, *arguments: Any) -> Any:
        optimizer = AdamWState(self.near(optimizer.m), self.near(optimizer.v), optimizer.steps)
        params, optimizer, norm = super().update(self.near(params), grads, optimizer, *arguments)
        m, v = (tree_map(Elsewhere, tree) for tree in (optimizer.m, optimizer.v))
        return tree_map(Elsewhere, params), AdamWState(m, v, optimizer.steps), norm

    def predict(self, params: Any, *arguments: Any) -> Any:
        return super().predict(self.near(params), *arguments)

    def on_host(self, tree: Any) -> Any:
        return self.near(tree)


def test_a_backend_may_keep_parameters_to_itself(tmp_path: Path) -> None:
    """What is saved and what comes out in the end are arrays of the host, the same as with a backend that hides nothing."""
    lengths, rng = np.full(6, 9), np.random.default_rng(0)
    times = rng.integers(1, 50, (6, 9)).cumsum(1).ravel()
    offsets = np.concatenate([[0], lengths.cumsum()])
    events = EventSequences(tuple("abcdef"), rng.integers(0, 3, 54).astype(np.int32), times, offsets, tuple("xyz"))
    config = ModelConfig(3, 1, BlockConfig(8, 4, 2, window=4))
    run = TrainConfig(steps=3, rows=2, length=6, evaluate_every=2)
    ends, saved = [], dict[str, list[Any]](near=[], far=[])
    for name, backend in (("near", ReferenceBackend()), ("far", FarBackend())):
        metrics, kept = MetricsFile(tmp_path / f"{name}.jsonl"), saved[name]
        ends.append(train(backend, events, events, config, run, metrics, name, keep=lambda state, _, kept=kept: kept.append(state)))
    assert all(same_bits((state.params, state.optimizer.m), (other.params, other.optimizer.m)) for state, other in zip(*saved.values(), strict=True))
    assert same_bits((ends[0].params, ends[0].optimizer.v), (ends[1].params, ends[1].optimizer.v))
