"""Decoding with the rings on the GPU against the oracle."""

from dataclasses import replace

import numpy as np
import pytest
from numpy import ndarray

from tests.cpu.storages import stored, values
from tests.cuda.test_model import config_of
from tests.cuda.test_transformer_block import BETWEEN_MATRICES, eps_of_storage
from tests.ref.bounds import noise, reordered_share, sensitivity
from tests.ref.cases import lively_model, rising_times
from ttr_fast.cuda.decode import CudaDecoder
from ttr_fast.cuda.workspace import Workspace, on_device, on_host
from ttr_ref.config import ModelConfig
from ttr_ref.float_dtype import FloatDType
from ttr_ref.model import ModelParams, model_forward
from ttr_ref.parameters import is_frequency, is_matrix
from ttr_ref.timeline import timeline_from_lengths
from ttr_ref.tree import named_tree_map, tree_map

ROWS, TOKENS, WINDOW = 2, 5, 3


def problem(config: ModelConfig, times: str) -> tuple[ModelParams, ndarray, ndarray]:
    rng = np.random.default_rng(0)
    return lively_model(config, 0), rng.integers(0, config.vocab_size, (ROWS, TOKENS)), rising_times(rng, ROWS, TOKENS, times)


def decoder_of(params: ModelParams, config: ModelConfig, times: ndarray) -> CudaDecoder:
    dtype = config.block.float_dtype
    weights = on_device(named_tree_map(lambda name, a: stored(a, dtype) if is_matrix(name) else a, params))
    return CudaDecoder(weights, config, ROWS, times.dtype.type, Workspace())


def decoded(params: ModelParams, tokens: ndarray, times: ndarray, config: ModelConfig) -> tuple[ndarray]:
    """z of every token, one step each."""
    decoder = decoder_of(params, config, times)
    return (np.stack([values(on_host(decoder.step(tokens[:, n], times[:, n]))) for n in range(TOKENS)], 1),)


def windowed(dtype: FloatDType, **block: object) -> ModelConfig:
    config = config_of(dtype, None, True)
    return replace(config, block=replace(config.block, window=WINDOW, **block))


@pytest.mark.parametrize("kind, times", [("log", "unix"), ("table", "float")])
def test_equals_the_forward_pass_of_the_oracle(kind: str, times: str) -> None:
    """In float64, while the ring fills and as it goes round: the oracle's sums in another order."""
    config = windowed(FloatDType.F64, time_bias=kind, table_knots=5)
    params, tokens, time = problem(config, times)
    at = timeline_from_lengths(time, np.full(ROWS, TOKENS))

    def oracle(weights: ModelParams) -> tuple[ndarray]:
        fixed = named_tree_map(lambda name, a, there: there if is_frequency(name) else a, weights, params)
        return (model_forward(fixed, tokens, at, config)[0],)

    found = decoded(params, tokens, time, config)
    assert reordered_share(found, oracle(params), sensitivity(oracle, params), 48 + BETWEEN_MATRICES) <= 1


@pytest.mark.parametrize("dtype", [FloatDType.F32, FloatDType.BF16, FloatDType.F16], ids=str)
def test_rounded_as_storage_rounds(dtype: FloatDType) -> None:
    """As in test_model.py, where the derivation is named."""
    config, exact = windowed(dtype), windowed(FloatDType.F64)
    params, tokens, time = problem(config, "unix")
    at = timeline_from_lengths(time, np.full(ROWS, TOKENS))
    weights = named_tree_map(lambda name, a: values(stored(a, dtype)) if is_matrix(name) else a.astype(np.float64), params)

    def oracle(moved: ModelParams) -> tuple[ndarray]:
        fixed = named_tree_map(lambda name, a, there: there if is_frequency(name) else a, moved, weights)
        return (model_forward(fixed, tokens, at, exact)[0],)

    deviation = eps_of_storage(dtype) / 2 * np.sqrt(6 / 3 + (24 if dtype == FloatDType.F32 else 0))
    (found,) = decoded(params, tokens, time, config)
    (moves,) = tree_map(lambda s: 4 * deviation * s, noise(oracle, weights))
    assert np.linalg.norm(found - oracle(weights)[0]) <= moves


def test_what_it_refuses() -> None:
    """In a sentence, and nothing has happened then."""
    config = windowed(FloatDType.F32)
    params, tokens, time = problem(config, "unix")
    decoder = decoder_of(params, config, time)
    with pytest.raises(ValueError, match=r"decode: 2 tokens and times are needed, got shapes \(1,\) and \(2,\)"):
        decoder.step(tokens[:1, 0], time[:, 0])
    with pytest.raises(ValueError, match="decode: token 7 of row 1 is outside the vocabulary of 7"):
        decoder.step(np.array([0, 7]), time[:, 0])
    decoder.step(tokens[:, 0], time[:, 1])
    with pytest.raises(ValueError, match=r"decode: times go backwards in row 0: 17\d+ is followed by 17\d+"):
        decoder.step(tokens[:, 1], time[:, 1] - 1)
    assert on_host(decoder.past.seen).tolist() == [1, 1]
    for block, message in ((replace(config.block, window=None), "window is None"), (replace(config.block, causal=False), "is not causal")):
        with pytest.raises(ValueError, match=message):
            CudaDecoder(params, replace(config, block=block), 1, np.int64, Workspace())
