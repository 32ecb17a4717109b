"""Rotary pairs as complex numbers: pair k of a token is multiplied by e^(i angle), its angle position · θ_k or τ ω_k."""

import numpy as np
import pytest

from tests.ref.cases import NOW, ROPES
from ttr_ref.config import BlockConfig, RopeKind, TimeConfig
from ttr_ref.rope import rope_forward, time_pairs
from ttr_ref.timeline import timeline_from_cu_seqlens

EPS = np.finfo(np.float64).eps
BASE = 10000.0
TIME = TimeConfig(origin=NOW, unit=7.0)


@pytest.mark.parametrize("kind", ROPES)
@pytest.mark.parametrize("d", [2, 6, 8])
def test_a_pair_is_multiplied_by_its_phase(kind: RopeKind, d: int) -> None:
    """Packed documents, the second from its position 40 on: angles count from the start of the document, times from the origin."""
    rng = np.random.default_rng(d)
    time = NOW + np.cumsum(rng.integers(0, 50, (2, 5)), axis=1)
    at = timeline_from_cu_seqlens(time, np.array([0, 2, 5, 9]), shift=np.array([0, 40, 0]))
    config = BlockConfig(embed_dim=3 * d, hidden_dim=1, heads=3, rope=kind, rope_base=BASE, time=TIME)
    x, omega = rng.standard_normal((2, 3, 5, d)), rng.standard_normal(time_pairs(config))
    y, _ = rope_forward(x, at, omega, config)

    by_index = d // 2 - omega.size
    assert by_index == {"position": d // 2, "time": 0, "split": d // 4}[kind]
    position = np.array([[0, 1, 40, 41, 42], [0, 1, 2, 3, 0]])
    theta = np.array([BASE ** (-2 * k / d) for k in range(by_index)])
    tau = np.where(at.is_token, (time - NOW) / TIME.unit, 0)
    angle = np.concatenate([position[..., None] * theta, tau[..., None] * omega], axis=-1)
    expected = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)[:, None]
    # each angle is rounded twice here and thrice there, relative to itself or to half a turn; a product of two complex numbers adds a few roundings
    limit = EPS * (4 * np.abs(angle)[:, None] + 12) * np.abs(expected)
    assert np.all(np.abs(y[..., 0::2] + 1j * y[..., 1::2] - expected) <= limit)
