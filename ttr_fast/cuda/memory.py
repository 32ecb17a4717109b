"""What a step, a prediction or decoding asks of the device's memory, known before anything is launched.

Nothing is estimated: the host goes through all of it with a workspace that counts (workspace.py) and kernels that do nothing (jit.unlaunched).
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ttr_fast.cuda.decode import CudaDecoder
from ttr_fast.cuda.jit import unlaunched
from ttr_fast.cuda.model import CudaModel, storage_copies
from ttr_fast.cuda.workspace import Workspace
from ttr_ref.config import ModelConfig, TrainConfig
from ttr_ref.dropout import DropoutKey
from ttr_ref.model import ModelParams
from ttr_ref.next_event import Batch
from ttr_ref.tree import leaves_of


def bytes_of(tree: object) -> int:
    """All arrays of a tree."""
    return sum(leaf.nbytes for leaf in leaves_of(tree))


def said(nbytes: int) -> str:
    """As a person reads it."""
    return f"{nbytes / 2**30:.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.2f} MiB"


def of_step(params: ModelParams, batch: Batch, config: ModelConfig, train: TrainConfig) -> Workspace:
    """What one step, of which the batch is one of train.accumulate parts, holds beside parameters and moments."""
    model = CudaModel(config, counting=True)
    with unlaunched():
        copies, key = storage_copies(params, config, model.workspace), DropoutKey(train.seed, 0)
        loss, grads = model.loss_and_gradients(copies, batch, key, train.z_loss, train.time_weight, 1.0, train.checkpointing, 1.0)
        if train.accumulate > 1:
            loss, grads = model.added(loss, grads, True)
        model.update(params, params, params, grads, copies, 1, 1.0, 1.0, train)
    return model.workspace


def of_prediction(params: ModelParams, batch: Batch, config: ModelConfig) -> Workspace:
    """What a prediction holds beside the parameters."""
    model = CudaModel(config, counting=True)
    with unlaunched():
        model.nats(storage_copies(params, config, model.workspace), batch)
    return model.workspace


def of_decoding(params: ModelParams, config: ModelConfig, rows: int, time_dtype: type[np.int64] | type[np.float64]) -> Workspace:
    """What decoding holds beside the parameters, with copies of its own."""
    workspace = Workspace(counting=True)
    with unlaunched():
        decoder = CudaDecoder(storage_copies(params, config, workspace), config, rows, time_dtype, workspace)
        decoder.step(np.zeros(rows, np.int64), np.zeros(rows, time_dtype))
    return workspace


def smaller_steps(params: ModelParams, batch: Batch, config: ModelConfig, train: TrainConfig) -> Iterator[tuple[str, int]]:
    """(options, bytes beside parameters and moments) of steps that give the same and ask for less: activations are computed again, or the batch is
    taken in more parts.
    """
    rows = batch.tokens.shape[0]
    for parts in (n for n in range(1, rows + 1) if rows % n == 0):
        for checkpointing in dict.fromkeys((train.checkpointing, "block")):
            other = replace(train, checkpointing=checkpointing, accumulate=train.accumulate * parts)
            if other == train:
                continue
            some = slice(0, rows // parts)
            part = Batch(batch.tokens[some], batch.at.places(some, slice(None)), *(a[some] for a in batch[2:]))
            options = {"checkpointing": checkpointing, "accumulate": other.accumulate}
            said = " ".join(f"--train.{name} {value}" for name, value in options.items() if value != getattr(train, name))
            yield said, of_step(params, part, config, other).nbytes
