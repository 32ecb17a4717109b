"""What accumulation over parts of a batch rests on: the loss is a sum over targets, divided by what one is told."""

import numpy as np

from tests.ref.cases import NOW
from ttr_ref.config import BlockConfig, ModelConfig, TimeConfig, TimeHeadConfig
from ttr_ref.model import loss_backward, loss_forward, model_init
from ttr_ref.next_event import Batch
from ttr_ref.timeline import timeline_from_lengths
from ttr_ref.tree import leaves_of


def test_the_normaliser_divides_loss_and_gradients() -> None:
    """8 and 16 instead of the 4 targets there are: powers of two, so a half and a quarter bit for bit."""
    config = ModelConfig(3, 1, BlockConfig(4, 3, 2, time=TimeConfig(origin=NOW)), time_head=TimeHeadConfig(2, "both"))
    params, times = model_init(config, 0), NOW + np.array([[0, 3, 3, 9, 20]])
    tokens = np.array([[0, 2, 1, 1, 0]])
    batch = Batch(tokens[:, :-1], timeline_from_lengths(times[:, :-1], np.array([4])), tokens[:, 1:], times[:, 1:], np.ones((1, 4), bool))
    loss, nats, cache = loss_forward(params, batch, config, z_loss=0.01)
    whole = sum(n.token.sum() + n.time.sum() for n in nats if n.time is not None) + 0.01 * sum((s * s).sum() for s in cache.lse)
    np.testing.assert_allclose(loss, whole / (4 * len(nats)), rtol=1e-14)  # two orders of adding some twenty numbers
    for share, normalizer in ((0.5, 8.0), (0.25, 16.0)):
        part, _, part_cache = loss_forward(params, batch, config, z_loss=0.01, normalizer=normalizer)
        assert part == share * loss
        for g, expected in zip(leaves_of(loss_backward(1.0, part_cache)), leaves_of(loss_backward(1.0, cache)), strict=True):
            np.testing.assert_array_equal(g, share * expected)
