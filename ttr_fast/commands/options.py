"""Options that several commands share, and the model that they describe."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ttr_fast.data.sequences import EventSequences
from ttr_fast.data.sources.times import TimeUnit
from ttr_fast.durable import TEMPORARY, sweep
from ttr_fast.errors import UserError
from ttr_fast.model import Backend, BackendName, load_backend
from ttr_ref.config import BiasKind, BlockConfig, DropoutConfig, ModelConfig, RopeKind, TimeConfig, TimeHeadConfig, TimeHeadOrder
from ttr_ref.float_dtype import FloatDType

DTypeName = Literal["f64", "f32", "bf16", "f16"]


@dataclass(frozen=True)
class Columns:
    """Which columns of a CSV, or fields of JSON, are read, and the unit of their times."""

    entity: str = "entity"
    """Column that says whose event it is."""
    time: str = "time"
    """Column with the time of the event."""
    token: tuple[str, ...] = ("token",)
    """Column with what happened; several are joined to one token with a |."""
    time_unit: TimeUnit | None = None
    """UNIX seconds, milli-, micro- or nanoseconds, or ISO 8601 with a zone; by the look of the first time if not given."""


@dataclass(frozen=True)
class ModelOptions:
    """Sizes of the network, and what it does with time."""

    layers: int = 2
    embed_dim: int = 64
    hidden_dim: int = 128
    heads: int = 4
    kv_heads: int | None = None
    """Heads of keys and values; as many as heads if not given."""
    window: int | None = 64
    """How many events a query sees, itself included; also the size of the ring buffer."""
    rope: RopeKind = "position"
    with_time: bool = True
    """Without time the model sees the order of events alone: no Time2Vec, no Δt bias, no rotation by time, no next-time head."""
    time2vec: bool = True
    """Whether features of the time are added to each block's input."""
    time_bias: BiasKind = "log"
    next_time: bool = True
    """Whether the time of the next event is predicted too."""
    components: int = 8
    """Log-normals in the mixture for the next gap."""
    order: TimeHeadOrder = "both"
    dropout: DropoutConfig = field(default_factory=lambda: DropoutConfig(ff=0.2, block=0.2))
    dtype: DTypeName = "f32"
    """Storage of activations and of the weights that are computed with."""

    def config(self, vocab_size: int, time: TimeConfig) -> ModelConfig:
        """The model's configuration. Raises UserError for sizes that do not fit together."""
        try:
            block = BlockConfig(
                self.embed_dim,
                self.hidden_dim,
                self.heads,
                self.kv_heads,
                window=self.window,
                rope=self.rope if self.with_time else "position",
                time2vec=self.with_time and self.time2vec,
                time_bias=self.time_bias if self.with_time else "none",
                time=time,
                dropout=self.dropout,
                float_dtype=FloatDType(self.dtype),
            )
            head = TimeHeadConfig(self.components, self.order) if self.with_time and self.next_time else None
            return ModelConfig(vocab_size, self.layers, block, time_head=head)
        except ValueError as error:
            raise UserError(str(error)) from error


def loaded_backend(name: BackendName) -> Backend:
    """The backend; where its kernels have yet to be compiled, or are simulated, that is said, because nothing moves meanwhile."""
    backend = load_backend(name)
    if name == "cpu":
        from ttr_fast.cpu.jit import nothing_is_compiled

        if nothing_is_compiled():
            print("compiling kernels for this machine as they are needed, once: the first steps take about half a minute", file=sys.stderr)
    if name == "cuda":
        from ttr_fast.cuda.found import SIMULATED

        simulated = "--backend cuda: simulated on the CPU, since NUMBA_ENABLE_CUDASIM=1 is set: for tiny models only"
        compiling = "compiling kernels for the GPU as they are needed, in every process anew: the first step takes longer"
        print(simulated if SIMULATED else compiling, file=sys.stderr)
    return backend


def check_unused(folder: Path) -> Path:
    """The folder for a new run. Raises UserError if something is there already: nothing is ever overwritten.

    What a run left that was killed at its very start goes.
    """
    if folder.exists() and (not folder.is_dir() or any(not path.name.startswith(TEMPORARY) for path in folder.iterdir())):
        raise UserError(f"{folder}: there is something already; name another folder with --out")
    sweep(folder)
    return folder


def free_folder(name: str) -> Path:
    """runs/NAME, or runs/NAME-2, -3, … : the first that does not exist."""
    candidates = (Path("runs") / (name if n == 1 else f"{name}-{n}") for n in range(1, 10_000))
    return next(folder for folder in candidates if not folder.exists())


def describe(events: EventSequences) -> str:
    """One line about a set of events."""
    return f"{events.n_tokens:,} events of {events.n_sequences:,} entities, {len(events.vocabulary)} kinds of token"
