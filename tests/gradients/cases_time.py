"""Cases of what knows about time: features of a moment, the bias in attention, rotary pairs, the density of the next gap."""

from typing import Any

import numpy as np
from numpy import ndarray

from ttr_ref.config import BlockConfig, RopeKind, TimeConfig
from ttr_ref.rope import rope_backward, rope_forward, time_pairs
from ttr_ref.time2vec import Time2VecParams, time2vec_backward, time2vec_forward
from ttr_ref.time_bias import ExpBias, LinearBias, LogBias, NoBias, TableBias, TimeBias, time_bias_backward, time_bias_forward
from ttr_ref.time_head import MixtureParams, time_head_backward, time_head_forward
from ttr_ref.timeline import Timeline

from .harness import Arguments, Case, seeded
from .places import START, TIME, packed, padded, times

Outputs = tuple[ndarray, ...]
KINDS = ("linear", "log", "exp", "table")


def time2vec_case(label: str, at: Timeline, e: int, time: TimeConfig) -> Case:
    label = f"{label}, B × T {at.time.shape}, E {e}"
    rng = seeded(label)

    def forward(params: Time2VecParams) -> tuple[Outputs, Any]:
        y, cache = time2vec_forward(at, params, time)
        return (y,), cache

    def backward(dy: Outputs, cache: Any) -> Arguments:
        return {"params": time2vec_backward(dy[0], cache)}

    return Case(time2vec_backward, label, {"params": Time2VecParams(*rng.standard_normal((2, e)))}, forward, backward)


def bias_of(kind: str, heads: int, rng: np.random.Generator) -> TimeBias:
    """Random parameters of a kind, with reaches of some minutes to hours."""
    scale = np.log(3600) + rng.standard_normal((heads, 2))
    match kind:
        case "linear":
            return LinearBias(rng.standard_normal(heads))
        case "log":
            return LogBias(rng.standard_normal(heads), scale[:, 0])
        case "exp":
            return ExpBias(rng.standard_normal((heads, 2)), -scale)
        case "table":
            return TableBias(rng.standard_normal((heads, 5)))
    return NoBias()


def time_bias_case(kind: str, shape: tuple[int, int, int], heads: int) -> Case:
    """Among the differences are 0, whole knots, and some behind the last knot; the first is between two knots."""
    label = f"{kind}, Δ {shape}, H {heads}"
    rng = seeded(label)
    delta = rng.choice([0.0, 1.0, 60.0, 180.0, 700.0, 1e4, 86_400.0], shape) * rng.choice([1.0, 1.37], shape)
    delta[0, 0, 0] = 250.0

    def forward(**params: TimeBias) -> tuple[Outputs, Any]:
        b, cache = time_bias_forward(delta, params[kind], TIME)
        return (np.broadcast_to(b, (shape[0], heads, *shape[1:])),), cache

    def backward(db: Outputs, cache: Any) -> Arguments:
        return {kind: time_bias_backward(db[0], cache)}

    return Case(time_bias_backward, label, {kind: bias_of(kind, heads, rng)}, forward, backward)


def rope_case(kind: RopeKind, at: Timeline, heads: int, d: int) -> Case:
    rows, places = at.time.shape
    label = f"{kind}, x {(rows, heads, places, d)}"
    rng, config = seeded(label), BlockConfig(embed_dim=heads * d, hidden_dim=1, heads=heads, rope=kind, rope_base=10.0, time=TIME)

    def forward(x: ndarray, omega: ndarray) -> tuple[Outputs, Any]:
        y, cache = rope_forward(x, at, omega, config)
        return (y,), cache

    def backward(dy: Outputs, cache: Any) -> Arguments:
        return dict(zip(("x", "omega"), rope_backward(dy[0], cache), strict=True))

    arguments = {"x": rng.standard_normal((rows, heads, places, d)), "omega": rng.standard_normal(time_pairs(config))}
    return Case(rope_backward, label, arguments, forward, backward)


def time_head_case(count: int, e: int, components: int, resolution: float) -> Case:
    """Gaps of 0, below, at and far above the resolution."""
    label = f"N {count}, E {e}, M {components}, resolution {resolution}"
    rng = seeded(label)
    gap = np.resize([1700.0, 0.0, 30.0, 12.0, 86_400.0], count)

    def forward(u: ndarray, params: MixtureParams) -> tuple[Outputs, Any]:
        nats, cache = time_head_forward(u, gap, params, resolution)
        return (nats,), cache

    def backward(dnats: Outputs, cache: Any) -> Arguments:
        return dict(zip(("u", "params"), time_head_backward(dnats[0], cache), strict=True))

    b = np.concatenate([rng.standard_normal(components), np.log(900) + rng.standard_normal(components), rng.standard_normal(components)])
    params = MixtureParams(0.5 * rng.standard_normal((e, 3 * components)), b)
    return Case(time_head_backward, label, {"u": rng.standard_normal((count, e)), "params": params}, forward, backward)


def at_floats(rows: int, places: int) -> Timeline:
    """One document a row at float64 times."""
    at = padded((places,) * rows, places)
    return at._replace(time=(times(rows, places) - START).astype(np.float64) / 7)


CASES = [
    time2vec_case("int64 from the origin", padded((1,), 1), 2, TIME),
    time2vec_case("int64 with padding", padded((5, 0, 3), 5), 6, TIME),
    time2vec_case("int64 far from the origin", packed((0, 3, 7, 11), 2, 7), 5, TimeConfig(unit=60.0)),
    time2vec_case("float64", at_floats(2, 3), 3, TimeConfig(origin=0.25, unit=100.0)),
    *(
        time_bias_case(kind, shape, heads)
        for kind in KINDS
        for shape, heads in (((1, 1, 1), 1), ((2, 3, 5), 3), ((3, 7, 2), 2))
    ),
    *(
        rope_case(kind, at, heads, d)
        for kind in ("position", "time", "split")
        for at, heads, d in ((padded((3,), 3), 1, 2), (packed((0, 2, 5, 9), 2, 5), 3, 4), (padded((7, 4, 0), 7), 2, 6))
    ),
    rope_case("split", at_floats(3, 1), 1, 6),
    time_head_case(1, 2, 1, 30.0),
    time_head_case(5, 3, 4, 30.0),
    time_head_case(7, 4, 3, 1e-3),
]
