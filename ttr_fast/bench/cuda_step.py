"""The sides of `ttr bench step` on a GPU. Parameters, moments and gradients stay there; the batch is uploaded in each step and the loss read."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ttr_fast.bench import cuda_torch, device
from ttr_fast.bench.case import OURS, Prepared
from ttr_fast.bench.step import Case, prepared, with_torch
from ttr_fast.model import load_backend


def ours(case: Case) -> Prepared:
    """The backend."""
    backend: Any = load_backend("cuda")

    def activation_bytes() -> int:
        """The workspace but for gradients and the copies of weights, which are there whatever is kept."""
        return sum(raw.nbytes for name, raw in backend.model.workspace.memory.items() if not name.startswith(("d.", "copy.")))

    def peak_bytes() -> int:
        return int(backend.model.workspace.nbytes)

    return prepared(case, backend)._replace(activation_bytes=activation_bytes, seconds_of=device.seconds_of, peak_bytes=peak_bytes)


SIDES: dict[str, Callable[[Case], Prepared]] = {
    OURS: ours,
    "ours-none": lambda case: ours(replace(case, checkpointing="none")),
    "torch-plain": lambda case: cuda_torch.timed(lambda: with_torch(case, biased=False, device="cuda")),
    "torch-bias": lambda case: cuda_torch.timed(lambda: with_torch(case, biased=True, device="cuda")),
    "torch-compile": lambda case: cuda_torch.timed(lambda: with_torch(case, biased=True, compiled=True, device="cuda")),
    "numpy": lambda case: prepared(case, load_backend("reference")),
}
