"""The sides of `ttr bench decode` on a GPU: the decoder's step and the product with the embedding that makes logits of its states."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ttr_fast.bench import cuda_torch, device
from ttr_fast.bench.case import OURS, Prepared
from ttr_fast.bench.decode import Case, events, prepared, with_torch
from ttr_fast.cpu.half import as_bits
from ttr_fast.cuda.decode import CudaDecoder
from ttr_fast.cuda.linear import linear_backward_input
from ttr_fast.cuda.workspace import Workspace, on_device, on_host
from ttr_ref.float_dtype import FloatDType, to_storage
from ttr_ref.model import model_init
from ttr_ref.parameters import is_matrix
from ttr_ref.tree import named_tree_map


def ours(case: Case) -> Prepared:
    """`position` tokens are decoded beforehand."""
    config, dtype, coming = case.config, FloatDType(case.dtype), events(case)
    masters = model_init(config, case.seed)
    weights = on_device(named_tree_map(lambda name, a: as_bits(to_storage(a, dtype)) if is_matrix(name) else a, masters))
    decoder = CudaDecoder(weights, config, case.batch, np.int64, Workspace())

    def call() -> Any:
        z = decoder.step(*next(coming))
        logits = decoder.workspace.array("logits", (case.batch, case.vocabulary), dtype.compute)
        linear_backward_input(z, weights.embedding, logits)
        return logits

    for _ in range(case.position):
        call()
    return Prepared(call, lambda logits: {"logits": on_host(logits)}, seconds_of=device.seconds_of, peak_bytes=lambda: decoder.workspace.nbytes)


SIDES: dict[str, Callable[[Case], Prepared]] = {
    OURS: ours,
    "ours-at-window": lambda case: ours(replace(case, position=case.window)),
    "torch-plain": lambda case: cuda_torch.timed(lambda: with_torch(case, "cuda")),
    "numpy": lambda case: prepared(case, "reference"),
}
