"""PyTorch's side of `ttr bench attention`."""

import importlib
from collections.abc import Callable
from typing import Any

from numpy import ndarray

from ttr_fast.bench.attention import Case, inputs
from ttr_fast.bench.case import Prepared, as_tensor, from_tensor
from ttr_ref.config import TimeConfig
from ttr_ref.time_bias import ExpBias, LinearBias, LogBias, NoBias, TableBias, TimeBias
from ttr_ref.tree import tree_map


def bias_mask(torch: Any, times: Any, time: TimeConfig, dtype: Any, like: TimeBias) -> Callable[[TimeBias], Any]:
    """From a bias like the given one, of tensors, to the mask (B, H, T, T) of times (B, T), −∞ at the future.

    The differences of times, which have no parameters, are made here.
    """
    delta = (times[:, :, None] - times[:, None]).clamp(min=0).to(dtype)[:, None]
    hidden = torch.full(delta.shape[-2:], -torch.inf, dtype=dtype).triu(1)
    below: Any = None
    fraction: Any = None
    if isinstance(like, TableBias):
        last = like.table.shape[1] - 1
        u = torch.log2(1 + delta[:, 0] / time.shortest).clamp(max=last)
        below = u.long().clamp(max=last - 1)
        fraction = u - below

    def per_head(a: Any) -> Any:
        return a[:, None, None]

    def build(bias: Any) -> Any:
        match bias:
            case NoBias():
                return hidden
            case LinearBias(a):
                return hidden - per_head(torch.nn.functional.softplus(a)) * (delta / time.unit)
            case LogBias(a, rho):
                return hidden - per_head(torch.nn.functional.softplus(a)) * torch.log1p(delta / per_head(torch.exp(rho)))
            case ExpBias(alpha, log_rate):
                rate = torch.exp(log_rate)
                return hidden + sum(per_head(alpha[:, m]) * torch.exp(-per_head(rate[:, m]) * delta) for m in range(alpha.shape[1]))
            case TableBias(table):
                return hidden + torch.lerp(table[:, below], table[:, below + 1], fraction).transpose(0, 1)

    return build


def prepared(case: Case, biased: bool) -> Prepared:
    """scaled_dot_product_attention, with the bias as attn_mask or without any. The mask is of the type that PyTorch wants: that of the queries."""
    torch: Any = importlib.import_module("torch")  # it need not be installed
    torch.set_num_threads(case.threads)
    p = inputs(case)
    both = case.passes == "both"
    q, k, v = (as_tensor(torch, a).requires_grad_(both) for a in (p.q, p.k, p.v))
    do = as_tensor(torch, p.do)
    parameters = tree_map(lambda a: torch.from_numpy(a).requires_grad_(both), p.bias) if biased else NoBias()
    leaves = tuple(parameters)  # each bias is one flat tuple
    wide = torch.float64 if case.dtype == "f64" else torch.float32
    mask = bias_mask(torch, torch.from_numpy(p.at.time), p.time, wide, p.bias) if biased else None
    attend = torch.nn.functional.scaled_dot_product_attention

    def forward() -> Any:
        if mask is None:
            return attend(q, k, v, is_causal=True, dropout_p=case.dropout)
        return attend(q, k, v, attn_mask=mask(parameters).to(q.dtype), dropout_p=case.dropout)

    def call() -> tuple[Any, ...]:
        if not both:
            with torch.no_grad():
                return (forward(),)
        o = forward()
        return (o, *torch.autograd.grad(o, (q, k, v, *leaves), do))

    def arrays(results: tuple[Any, ...]) -> dict[str, ndarray]:
        names = ("o", "dq", "dk", "dv", *(f"dbias.{name}" for name in getattr(parameters, "_fields", ())))
        return {name: from_tensor(torch, tensor) for name, tensor in zip(names, results, strict=False)}

    return Prepared(call, arrays)
