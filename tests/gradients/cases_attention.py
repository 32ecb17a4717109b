"""Cases of attention, as one matrix and tile by tile: what each query reads, shared heads, biases, dropout, the gradient of LSE."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray

from ttr_ref.attention import attention_backward, attention_forward
from ttr_ref.blocked_attention import blocked_attention_backward, blocked_attention_forward
from ttr_ref.dropout import Dropout, DropoutKey
from ttr_ref.time_bias import TimeBias
from ttr_ref.timeline import Timeline

from .cases_time import bias_of
from .harness import Arguments, Case, seeded
from .places import TIME, packed, padded, queries_and_keys

Outputs = tuple[ndarray, ...]
At = tuple[Timeline, Timeline]


@dataclass(frozen=True)
class Setting:
    """One way to call attention. `tile` belongs to the blocked form: one that divides neither T_q nor T_k where both are long enough."""

    label: str
    at: At
    tile: int
    heads: int = 2
    groups: int = 2
    d: int = 2
    bias: str = "log"
    causal: bool = True
    window: int | None = None
    p: float = 0.0
    lse: bool = True
    nan: bool = False
    """NaN in the queries, keys and values of padding, which must change nothing."""


def same(at: Timeline) -> At:
    """Queries and keys at the same places."""
    return at, at


SETTINGS = [
    Setting("one token", same(padded((1,), 1)), tile=1, heads=1, groups=1, bias="linear"),
    Setting("causal", same(padded((5, 5), 5)), tile=2, bias="none", lse=False),
    Setting("causal, dropout", same(padded((5,), 5)), tile=3, d=4, p=0.4),
    Setting("not causal", same(padded((3, 3), 3)), tile=2, causal=False, d=4, bias="exp"),
    Setting("not causal, window 3, padding, dropout", same(padded((5, 4), 5)), tile=2, causal=False, window=3, p=0.3, bias="linear"),
    Setting("window 1", same(padded((3, 3), 3)), tile=2, window=1, d=6),
    Setting("window 3", same(padded((7,), 7)), tile=3, window=3, bias="table"),
    Setting("4 heads on 2 groups", same(padded((3, 3), 3)), tile=2, heads=4, bias="exp", lse=False),
    Setting("3 heads on 1 group, window 3, dropout", same(padded((5, 5), 5)), tile=4, heads=3, groups=1, window=3, p=0.3, bias="table"),
    Setting("packed documents", same(packed((0, 2, 5, 8, 10), 2, 5)), tile=2, bias="table", p=0.2),
    Setting("packed documents with padding, window 3, 4 heads on 2 groups", same(packed((0, 1, 4, 7), 1, 9)), tile=4, heads=4, window=3),
    Setting("padding and an empty row", same(padded((5, 0, 3), 5)), tile=2, bias="exp", p=0.3),
    Setting("NaN in padding", same(padded((3, 0, 5), 5)), tile=3, bias="linear", nan=True),
    Setting("T_q < T_k", queries_and_keys((7, 5), 3, 7), tile=2, heads=4, bias="exp"),
    Setting("T_q < T_k, window 3, dropout", queries_and_keys((5, 5), 3, 5), tile=4, window=3, p=0.3, bias="table", lse=False),
    Setting("T_q > T_k: the first queries read nothing", queries_and_keys((3, 2), 5, 3), tile=2, d=4, p=0.3),
    Setting("T_q > T_k, not causal, window 3", queries_and_keys((1, 0), 5, 1), tile=3, causal=False, window=3, bias="linear"),
]


def arguments_of(setting: Setting) -> Arguments:
    """Random q, k, v and bias."""
    rng, (at_q, at_k) = seeded(setting.label), setting.at
    (rows, t_q), t_k = at_q.time.shape, at_k.time.shape[1]
    q = rng.standard_normal((rows, setting.heads, t_q, setting.d))
    k, v = rng.standard_normal((2, rows, setting.groups, t_k, setting.d))
    if setting.nan:
        q[~np.broadcast_to(at_q.is_token[:, None], q.shape[:3])] = np.nan
        k[~np.broadcast_to(at_k.is_token[:, None], k.shape[:3])] = np.nan
        v[~np.broadcast_to(at_k.is_token[:, None], v.shape[:3])] = np.nan
    return {"q": q, "k": k, "v": v, "bias": bias_of(setting.bias, setting.heads, rng)}


def attention_case(setting: Setting, blocked: bool) -> Case:
    """The setting in either form; the cotangents are those of O, and of LSE where it is used."""
    drop = Dropout(setting.p, DropoutKey(1, 2), 8) if setting.p else None
    (at_q, at_k), tile = setting.at, {"tile": setting.tile} if blocked else {}
    attend, attend_back = (blocked_attention_forward, blocked_attention_backward) if blocked else (attention_forward, attention_backward)

    def forward(q: ndarray, k: ndarray, v: ndarray, bias: TimeBias) -> tuple[Outputs, Any]:
        o, lse, cache = attend(q, k, v, at_q, at_k, bias, TIME, setting.causal, setting.window, drop, **tile)
        return (o, lse) if setting.lse else (o,), cache

    def backward(cotangents: Outputs, cache: Any) -> Arguments:
        gradients = attend_back(cotangents[0], cotangents[1] if setting.lse else None, cache)
        return dict(zip(("q", "k", "v", "bias"), gradients, strict=True))

    label = f"{setting.label}, {setting.bias} bias" + (f", tile {setting.tile}" if blocked else "")
    return Case(attend_back, label, arguments_of(setting), forward, backward)


CASES = [attention_case(setting, blocked) for blocked in (False, True) for setting in SETTINGS]
