"""Matrix products Y = X W of an (M, K) by a (K, N) matrix, Y given beforehand. 16-bit matrices are sums of float32, rounded once.

    torch      torch.mm(x, w, out=y)
    numpy      np.matmul(x, w, out=y), float32 only
    ours-f32   ours in float32
"""

import importlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy import ndarray

from ttr_fast.bench import case as common
from ttr_fast.bench.case import OURS, Prepared, as_tensor, at_least, chosen_peers, from_tensor, given_all, stored_eps
from ttr_fast.errors import UserError
from ttr_ref.float_dtype import FloatDType, to_storage

PeerName = Literal["torch", "numpy", "ours-f32"]
DEFAULT_SIZE = 1024


@dataclass(frozen=True, kw_only=True)
class Case(common.Case):
    """(M, K) times (K, N)."""

    kind: ClassVar[str] = "gemm"
    m: int
    k: int
    n: int

    @property
    def flops(self) -> int:
        """A multiplication and an addition for each term."""
        return 2 * self.m * self.k * self.n

    @property
    def bytes(self) -> int:
        """All three matrices."""
        return (self.m * self.k + self.k * self.n + self.m * self.n) * FloatDType(self.dtype).storage.itemsize

    @property
    def size(self) -> float:
        """The side of the cube with as many terms."""
        return float(np.cbrt(self.m * self.k * self.n))

    @property
    def series(self) -> str:
        """Without sizes."""
        return f"{self.dtype}, {self.where}"

    @property
    def label(self) -> str:
        """As a row of the table begins."""
        return f"gemm {self.dtype} {self.m} × {self.k} × {self.n}, {self.where}"

    def small(self) -> Self:
        """A few dozen rows and columns."""
        return replace(self, m=min(self.m, 64), k=min(self.k, 64), n=min(self.n, 64))

    def shared_with(self, peer: str) -> Self:
        """Against ours in float32, float32."""
        return replace(self, dtype="f32") if peer == "ours-f32" else self

    def limit(self, name: str) -> float:
        """Two sums of K terms are K eps of Σ |x w| ≈ 2/π K apart at most, and the largest entry is above √K; then storage rounds each once."""
        dtype = FloatDType(self.dtype)
        return float(np.finfo(dtype.compute).eps) * self.k**1.5 + stored_eps(dtype)


def inputs(case: Case) -> tuple[ndarray, ndarray, ndarray]:
    """(x, w, y), y to be overwritten."""
    rng, dtype = np.random.default_rng(case.seed), FloatDType(case.dtype)
    x, w = (to_storage(rng.standard_normal(shape).astype(dtype.compute), dtype) for shape in ((case.m, case.k), (case.k, case.n)))
    return x, w, np.zeros((case.m, case.n), dtype.storage)


def prepared(product: Callable[[ndarray, ndarray, ndarray], Any], case: Case, taken: Callable[[ndarray], Any] = lambda a: a) -> Prepared:
    """A function of (x, w, y), as it takes them, that overwrites y."""
    x, w, y = inputs(case)
    operands = taken(x), taken(w), taken(y)
    return Prepared(lambda: product(*operands), lambda _: {"y": y.astype(np.float64)})


def ours(case: Case) -> Prepared:
    """linear_forward(x, w, y) of carriers, with a workspace as in training."""
    linear, half, workspace = (importlib.import_module(f"ttr_fast.cpu.{name}") for name in ("linear", "half", "workspace"))
    lent = workspace.Workspace()
    return prepared(lambda x, w, y: linear.linear_forward(x, w, y, workspace=lent), case, half.as_bits)


def with_numpy(case: Case) -> Prepared:
    """Whatever BLAS NumPy came with."""
    return prepared(lambda x, w, y: np.matmul(x, w, out=y), case)


def with_torch(case: Case, device: str = "cpu") -> Prepared:
    """On the CPU, tensors over the same memory."""
    torch: Any = importlib.import_module("torch")  # it need not be installed
    torch.set_num_threads(case.threads)
    x, w, y = (as_tensor(torch, a).to(device) for a in inputs(case))

    def product() -> Any:
        with torch.no_grad():
            return torch.mm(x, w, out=y)

    return Prepared(product, lambda y: {"y": from_tensor(torch, y).astype(np.float64)})


SIDES: dict[str, Callable[[Case], Prepared]] = {
    OURS: ours,
    "ours-f32": lambda case: ours(replace(case, dtype="f32")),
    "torch": with_torch,
    "numpy": with_numpy,
}


@dataclass(frozen=True, kw_only=True)
class GemmOptions(common.Options):
    """Matrix products against PyTorch or NumPy's BLAS. Most options take several values; every combination is a case.

    Examples:

        ttr bench gemm

        ttr bench gemm --size 512 1024 2048 --dtype f32 bf16 --plot gemm.png

        ttr bench gemm --shape 4096 512 2048 --peer numpy torch --json -

        ttr bench gemm --backend cuda --dtype bf16 --size 8192
    """

    dtype: tuple[Literal["f32", "bf16", "f16"], ...] = ("f32",)
    size: tuple[int, ...] = ()
    """M = K = N; 1024 if neither --size nor --shape is given."""
    shape: tuple[tuple[int, int, int], ...] = ()
    """M K N, and again for each further shape."""
    peer: tuple[PeerName, ...] = ()
    """What to compare with; not given: torch."""

    def comparisons(self) -> list[tuple[common.Case, str | None]]:
        """The product of all options."""
        self.check()
        shapes = [(n, n, n) for n in self.size] + list(self.shape) or [(DEFAULT_SIZE,) * 3]
        for shape in shapes:
            at_least("--shape" if shape in self.shape else "--size", shape if shape in self.shape else shape[0], 1)
        given_all({"--dtype": self.dtype})
        peers = chosen_peers(self.against, self.peer, ("torch",), self.backend)
        if "numpy" in peers and set(self.dtype) != {"f32"}:
            raise UserError("--peer numpy multiplies f32 only: NumPy's BLAS knows no 16-bit matrices")
        return [
            (Case(dtype=dtype, **self.setting(threads), m=m, k=k, n=n), peer)
            for dtype, threads, (m, k, n), peer in itertools.product(self.dtype, self.threads, shapes, peers)
        ]
