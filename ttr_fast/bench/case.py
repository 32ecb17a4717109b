"""What every kind of benchmark has in common: a case, what is called, and the options of the command."""

import abc
import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import tyro
from numpy import ndarray

from ttr_fast.cuda.found import SIMULATED
from ttr_fast.errors import UserError
from ttr_fast.model import check_usable
from ttr_ref.float_dtype import HALF_FORMATS, FloatDType

if TYPE_CHECKING:
    from ttr_fast.bench.measure import Failure, Result

OURS = "ours"
BenchBackend = Literal["cpu", "cuda"]
PLOT_SUFFIXES = (".png", ".pdf", ".svg")


class Prepared(NamedTuple):
    """One side of a case, its inputs made: what is timed, and how its result becomes named arrays for comparison."""

    call: Callable[[], Any]
    named: Callable[[Any], dict[str, ndarray]]
    activation_bytes: Callable[[], int] | None = None
    """What is held between forward and backward, scratch included; None where that is not known."""
    seconds_of: Callable[[Callable[[], Any], int], float] | None = None
    """Mean seconds of so many calls, by a clock of its own; None: that of the host."""
    peak_bytes: Callable[[], int] | None = None
    """How far memory has risen beyond the inputs, where it is not that of the process."""


@dataclass(frozen=True, kw_only=True)
class Case(abc.ABC):
    """One problem to be timed. The module ttr_fast.bench.KIND holds a subclass called Case and SIDES, which prepare it for a side;
    for a GPU, SIDES are those of ttr_fast.bench.cuda_KIND."""

    kind: ClassVar[str]
    axis: ClassVar[str] = "size"
    """What `size` is called."""
    dtype: str
    threads: int
    seed: int = 0
    backend: BenchBackend = "cpu"

    @property
    def where(self) -> str:
        """What it runs on, in words."""
        return "GPU" if self.backend == "cuda" else f"{self.threads} threads"

    @property
    @abc.abstractmethod
    def flops(self) -> int:
        """Additions and multiplications that the mathematics needs; what is computed twice counts once."""

    @property
    @abc.abstractmethod
    def bytes(self) -> int:
        """What has to be read or written at least: each input and each output once."""

    def result_bytes(self, side: str) -> int:
        """Of what a call leaves with its caller."""
        return 0

    @property
    @abc.abstractmethod
    def size(self) -> float:
        """What plots have on their horizontal axis."""

    @property
    @abc.abstractmethod
    def series(self) -> str:
        """The case in words, without its size."""

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """The case in words."""

    @abc.abstractmethod
    def small(self) -> Self:
        """The same code with next to nothing to do: compiles and warms up."""

    def shared_with(self, peer: str) -> Self:
        """What both sides compute alike, for the comparison before anything is timed."""
        return self

    @abc.abstractmethod
    def limit(self, name: str) -> float:
        """How far two correct results called `name` may lie apart, as a share of the largest entry."""


def stored_eps(dtype: FloatDType) -> float:
    """The distance of 1 from the next stored number, 0 where storage rounds nothing."""
    return 2.0 ** (1 - HALF_FORMATS[dtype].precision) if dtype in HALF_FORMATS else 0.0


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True)
class Options(abc.ABC):
    """What can be said of every benchmark."""

    backend: BenchBackend = "cpu"
    """cuda: on an NVIDIA GPU."""
    against: Literal["torch", "none"] = "torch"
    """What to compare with unless --peer says it: PyTorch, or nothing."""
    threads: tuple[int, ...] = (processors(),)
    """Threads of each side, on the CPU."""
    samples: int = 9
    """Samples of each side; medians and quartiles are of these."""
    least_ms: float = 50.0
    """A sample repeats the call until it takes about this long."""
    cold: bool = False
    """Also time whole processes from their start to the end of a first call: with no compiled kernels on disk, then with them."""
    seed: int = 0
    """Of the inputs; both sides get the same."""
    json: Annotated[str | None, tyro.conf.arg(metavar="FILE|-")] = None
    """One JSON object a line for each comparison: into a file beside the table, or - for stdout in its place."""
    plot: Path | None = None
    """Draw time, speed, memory and roofline into this file (.png, .pdf or .svg)."""

    goes_on: ClassVar[bool] = False
    """Whether the others are still measured after a comparison that failed."""

    @property
    def limit_s(self) -> float | None:
        """Seconds that a process may take for one answer; None: as long as it likes."""
        return None

    @abc.abstractmethod
    def comparisons(self) -> list[tuple[Case, str | None]]:
        """Every case with its peer, None for our side alone. Raises UserError."""

    def setting(self, threads: int) -> dict[str, Any]:
        """What every case is told."""
        return {"threads": threads, "seed": self.seed, "backend": self.backend}

    def starts_cold(self, case: Case, peer: str | None) -> bool:
        """Whether cold starts of this comparison are timed."""
        return self.cold

    def sampling(self, case: Case) -> tuple[int, float]:
        """(samples of each side, milliseconds that one takes at least)."""
        return self.samples, self.least_ms

    def record(self, result: "Result | Failure") -> dict[str, Any]:
        """The line of --json."""
        return result.record()

    def text(self, results: list["Result"]) -> str:
        """What is printed."""
        from ttr_fast.bench.report import table

        return table(results)

    def check(self) -> None:
        """Raises UserError for values that no benchmark can take."""
        at_least("--samples", self.samples, 1)
        at_least("--seed", self.seed, 0)
        if not 0 < self.least_ms < float("inf"):
            raise UserError(f"--least-ms must be positive, got {self.least_ms}")
        if self.backend == "cuda":
            check_usable("cuda")
            if self.threads != (processors(),):
                raise UserError("--threads is for the CPU: leave it out with --backend cuda")
        if not self.threads or not all(1 <= n <= processors() for n in self.threads):
            raise UserError(f"--threads must be from 1 to {processors()}, the processors there are, got {shown(self.threads)}")
        if self.plot is not None and self.plot.suffix.lower() not in PLOT_SUFFIXES:
            raise UserError(f"--plot {self.plot}: expected a file that ends in {', '.join(PLOT_SUFFIXES)}")
        for name, file in (("--plot", self.plot), ("--json", None if self.json in (None, "-") else Path(str(self.json)))):
            if file is not None and not file.absolute().parent.is_dir():
                raise UserError(f"{name} {file}: there is no folder {file.parent}")


def at_least(name: str, value: int | tuple[int, ...], least: int) -> None:
    """Raises UserError for a smaller value, or for none."""
    values = value if isinstance(value, tuple) else (value,)
    if not values or min(values) < least:
        raise UserError(f"{name} must be at least {least}, got {shown(values)}")


def given_all(options: dict[str, tuple[Any, ...]]) -> None:
    """Raises UserError for one without a value."""
    for name, values in options.items():
        if not values:
            raise UserError(f"{name} must be given a value")


def shown(values: tuple[Any, ...]) -> str:
    """As on the command line."""
    return " ".join(map(str, values)) or "nothing"


def chosen_peers(against: str, named: tuple[str, ...], defaults: tuple[str, ...], backend: BenchBackend = "cpu") -> tuple[str | None, ...]:
    """The peers of a run; None alone where nothing is compared, be it that PyTorch is not there."""
    if against == "none" and named:
        raise UserError(f"--against none compares with nothing, but --peer {shown(named)} was given: leave one of them out")
    if against == "none":
        return (None,)
    peers = dict.fromkeys(named or defaults)
    there = tuple(p for p in peers if not p.startswith("torch") or torch_is_there(backend))
    return there or (None,)


def torch_is_installed() -> bool:
    """Found without importing it."""
    return importlib.util.find_spec("torch") is not None


@functools.cache
def torch_has_gpu() -> bool:
    """Whether PyTorch is installed, made for CUDA, and finds a GPU."""
    return torch_is_installed() and bool(importlib.import_module("torch").cuda.is_available())


def torch_is_there(backend: BenchBackend) -> bool:
    """Whether PyTorch can be measured on the same hardware."""
    return torch_has_gpu() if backend == "cuda" else torch_is_installed()


def is_simulated(backend: BenchBackend) -> bool:
    """Whether kernels for the GPU run in the simulator, and times say nothing."""
    return backend == "cuda" and SIMULATED


def as_tensor(torch: Any, a: ndarray) -> Any:
    """A tensor over the memory of an array in storage type; bf16, which PyTorch does not take from NumPy, as bits."""
    if a.dtype == FloatDType.BF16.storage:
        return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(a)


def from_tensor(torch: Any, tensor: Any) -> ndarray:
    """An array, of float32 where the tensor has 16 bits."""
    tensor = tensor.detach()
    array: ndarray = (tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()).cpu().numpy()
    return array
