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
    hidden = torch.full(delta.shape[-2:], -torch.inf, dtype=dtype, device=times.device).triu(1)
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


def flex_score(torch: Any, times: Any, time: TimeConfig, wide: Any, like: TimeBias) -> Callable[[TimeBias], Any]:
    """From a bias like the given one, of tensors, to FlexAttention's score_mod; times (B, T) are whole seconds since the first."""
    last = like.table.shape[1] - 1 if isinstance(like, TableBias) else 0

    def build(bias: Any) -> Any:
        slope: Any = torch.nn.functional.softplus(bias.a) if isinstance(bias, LinearBias | LogBias) else None
        rate: Any = torch.exp(bias.log_rate) if isinstance(bias, ExpBias) else torch.exp(-bias.rho) if isinstance(bias, LogBias) else None

        def score(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
            delta = (times[b, i] - times[b, j]).clamp(min=0).to(wide)
            match bias:
                case LinearBias():
                    return s - slope[h] * (delta / time.unit)
                case LogBias():
                    return s - slope[h] * torch.log1p(delta * rate[h])
                case ExpBias(alpha, _):
                    for m in range(alpha.shape[1]):
                        s = s + alpha[h, m] * torch.exp(-rate[h, m] * delta)
                    return s
                case TableBias(table):
                    u = torch.log2(1 + delta / time.shortest).clamp(max=last)
                    below = u.to(torch.int32).clamp(max=last - 1)
                    return s + torch.lerp(table[h, below], table[h, below + 1], u - below)
            return s

        return score

    return build


def prepared(case: Case, bias: str, device: str) -> Prepared:
    """scaled_dot_product_attention without the bias ("none") or with it as attn_mask ("mask"), of the queries' type as PyTorch wants it, or
    FlexAttention, compiled, with the bias as score_mod ("flex").
    """
    torch: Any = importlib.import_module("torch")  # it need not be installed
    torch.set_num_threads(case.threads)
    p = inputs(case)
    both = case.passes == "both"
    q, k, v = (as_tensor(torch, a).to(device).requires_grad_(both) for a in (p.q, p.k, p.v))
    do = as_tensor(torch, p.do).to(device)
    parameters = tree_map(lambda a: torch.from_numpy(a).to(device).requires_grad_(both), p.bias) if bias != "none" else NoBias()
    leaves = tuple(parameters)  # each bias is one flat tuple
    wide = torch.float64 if case.dtype == "f64" else torch.float32
    attend = torch.nn.functional.scaled_dot_product_attention
    if bias == "flex":
        flex = importlib.import_module("torch.nn.attention.flex_attention")
        since = torch.from_numpy(p.at.time - p.at.time[:, :1]).to(device, torch.int32)
        score, compiled = flex_score(torch, since, p.time, wide, p.bias), torch.compile(flex.flex_attention, dynamic=False)
        causal = flex.create_block_mask(lambda b, h, i, j: i >= j, None, None, case.length, case.length, device=device)
    elif bias == "mask":
        mask = bias_mask(torch, torch.from_numpy(p.at.time).to(device), p.time, wide, p.bias)

    def forward() -> Any:
        if bias == "flex":
            return compiled(q, k, v, score_mod=score(parameters), block_mask=causal)
        if bias == "mask":
            return attend(q, k, v, attn_mask=mask(parameters).to(q.dtype), dropout_p=case.dropout)
        return attend(q, k, v, is_causal=True, dropout_p=case.dropout)

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
