"""The sides of `ttr bench gemm` on a GPU: ours, PyTorch's cuBLAS, and NumPy on the host to check against.

PyTorch's products of float32 matrices stay in float32: its tensor cores' TF32, which rounds the factors to 11 bits, is off unless one asks for it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ttr_fast.bench import cuda_torch, device
from ttr_fast.bench.case import OURS, Prepared
from ttr_fast.bench.gemm import Case, inputs, with_numpy, with_torch
from ttr_fast.cpu.half import as_bits, as_storage
from ttr_fast.cuda.linear import linear_forward
from ttr_fast.cuda.workspace import on_device, on_host


def ours(case: Case) -> Prepared:
    """Matrices that lie on the device."""

    def make() -> Prepared:
        x, w, y = (on_device(as_bits(a)) for a in inputs(case))

        def call() -> Any:
            linear_forward(x, w, y)
            return y

        return Prepared(call, lambda y: {"y": as_storage(on_host(y)).astype(np.float64)}, seconds_of=device.seconds_of, peak_bytes=lambda: 0)

    return device.rotated(make, case.bytes, device.cache_bytes())


SIDES: dict[str, Callable[[Case], Prepared]] = {
    OURS: ours,
    "ours-f32": lambda case: ours(replace(case, dtype="f32")),
    "torch": lambda case: cuda_torch.timed(lambda: with_torch(case, "cuda"), case.bytes),
    "numpy": with_numpy,
}
