"""The sides of `ttr bench attention` on a GPU.

Ours finds ready what a batch gives to all blocks, the plan; what depends on parameters, the table of the bias and its gradients, is timed.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy import ndarray

from ttr_fast.bench import cuda_torch, device
from ttr_fast.bench.attention import Case, inputs, with_numpy, with_torch
from ttr_fast.bench.case import OURS, Prepared
from ttr_fast.cpu.half import as_bits, as_storage
from ttr_fast.cuda.attention import AttentionTask, attention_backward, attention_forward, backward_parts, kernels_for
from ttr_fast.cuda.attention_plan import plan_attention
from ttr_fast.cuda.dropout import sites_of
from ttr_fast.cuda.rows import fill
from ttr_fast.cuda.time_bias import bias_gradient, bias_table, described, sums_of
from ttr_fast.cuda.workspace import Workspace, on_device, on_host
from ttr_ref.dropout import Dropout, DropoutKey
from ttr_ref.float_dtype import FloatDType
from ttr_ref.tree import named_leaves


def ours(case: Case) -> Prepared:
    """One copy, which the cache may hold."""
    p, compute = inputs(case), FloatDType(case.dtype).compute
    q, k, v, do, bias = on_device((*map(as_bits, p[:4]), p.bias))
    plan = on_device(plan_attention(p.at, p.at, True, None, kernels_for(q.dtype, case.head_dim).tile))
    drop = on_device(sites_of([Dropout(case.dropout, DropoutKey(case.seed, 0), 0) if case.dropout else None], compute))
    workspace, columns = Workspace(), described(p.bias, p.time)[-1]
    array = workspace.array

    def call() -> tuple[Any, ...]:
        table = bias_table(bias, p.time, array("rate", (case.heads,), compute), array("bias", (case.heads, columns), compute))
        task, o, lse = AttentionTask(plan, table, drop), array("o", q.shape, q.dtype), array("lse", q.shape[:3], compute)
        attention_forward(q, k, v, task, o, lse)
        if case.passes == "forward":
            return (o,)
        dq, dk, dv = (array(name, a.shape, compute) for name, a in (("dq", q), ("dk", k), ("dv", v)))
        dlse, bracket = array("dlse", lse.shape, compute), array("bracket", lse.shape, compute)
        fill(dlse, 0)
        sums = array("sums", (case.heads, sums_of(table)), np.float64)
        partial = array("partial", (case.batch, backward_parts(q), *sums.shape), np.float64)
        attention_backward(do, dlse, q, k, v, o, lse, task, dq, dk, dv, sums, bracket, partial)
        dbias = type(bias)(*(array(f"d.{name}", leaf.shape, compute) for name, leaf in named_leaves(bias).items()))
        bias_gradient(bias, table, sums, dbias)
        return o, dq, dk, dv, dbias

    def arrays(results: tuple[Any, ...]) -> dict[str, ndarray]:
        here = on_host(results)
        found = dict(zip(("o", "dq", "dk", "dv"), (as_storage(here[0]).astype(compute), *here[1:4]), strict=False))
        return found | {f"dbias.{name}": leaf for name, leaf in named_leaves(here[4] if len(here) > 4 else ()).items()}

    return Prepared(call, arrays, seconds_of=device.seconds_of, peak_bytes=lambda: workspace.nbytes)


def turned(case: Case) -> Prepared:
    """Ours, over inputs that the cache does not hold."""
    return device.rotated(lambda: ours(case), case.bytes, device.cache_bytes())


def with_gpu(case: Case, bias: str) -> Prepared:
    """PyTorch's."""
    return cuda_torch.timed(lambda: with_torch(case, bias, "cuda"), case.bytes)


SIDES: dict[str, Callable[[Case], Prepared]] = {
    OURS: turned,
    "ours-plain": lambda case: turned(replace(case, dropout=0.0)),
    "torch-plain": lambda case: with_gpu(case, "none"),
    "torch-bias": lambda case: with_gpu(case, "mask"),
    "torch-flex": lambda case: with_gpu(case, "flex"),
    "numpy": with_numpy,
}
