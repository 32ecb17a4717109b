"""What tokens are drawn from, against its definition in exact arithmetic; what is drawn, against the distribution."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given, strategies as st

from ttr_fast.errors import UserError
from ttr_fast.generation.distribution import Sampling, distribution, drawn

EPS = 2.0**-52
LOGITS = st.lists(st.one_of(st.integers(-3, 3).map(float), st.floats(-30, 30), st.just(-math.inf)), min_size=1, max_size=12)
"""Whole numbers so that many are equal."""
HOW = st.builds(
    Sampling, temperature=st.sampled_from([0.1, 0.7, 1.0, 3.0]), top_k=st.one_of(st.none(), st.integers(1, 14)),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 1.0)), min_p=st.one_of(st.just(0.0), st.floats(0.0, 1.0), st.just(1.0)),
)  # fmt: skip


def by_definition(logits: list[float], how: Sampling) -> list[float]:
    """As in the module's docstring, token by token, sums of the weights exact; nothing where rounding decides who is kept."""
    top = max(logits)
    weight = [Fraction(float(np.exp((x - top) / how.temperature))) for x in logits]
    kept, tokens = [], sorted(range(len(logits)), key=lambda v: (-logits[v], v))[: how.top_k]
    limit = Fraction(how.top_p) * sum(weight[v] for v in tokens)
    for v in tokens:
        below = sum((weight[u] for u in kept), Fraction(0))
        assume(below == limit or abs(below - limit) > 4 * len(logits) * EPS * float(limit))
        if how.top_p < 1 and below >= limit:
            break
        kept.append(v)
    kept = [v for v in kept if weight[v] >= Fraction(how.min_p)]
    total = sum(weight[v] for v in kept)
    return [float(weight[v] / total) if v in kept else 0.0 for v in range(len(logits))]


@given(logits=LOGITS, how=HOW)
@example(logits=[0.0] * 4, how=Sampling(top_k=2, top_p=0.5)).via("top-p of what top-k has left")
def test_the_distribution_is_what_is_defined(logits: list[float], how: Sampling) -> None:
    """Which tokens are kept, exactly; their probabilities up to the rounding of a sum of n weights and of a division."""
    assume(max(logits) > -math.inf)
    expected = by_definition(logits, how)
    p = distribution(np.array(logits), how)
    assert ((p > 0) == (np.array(expected) > 0)).all()
    np.testing.assert_allclose(p, expected, rtol=(len(logits) + 2) * EPS, atol=0)


@given(n=st.integers(1, 40), places=st.integers(1, 40), share=st.integers(1, 40))
def test_equal_tokens_are_kept_from_the_first_on(n: int, places: int, share: int) -> None:
    """Of n equal ones top-k keeps the first k, top-p the fewest whose count reaches the share, min-p all."""
    logits = np.full(n, 1.5)
    assert np.flatnonzero(distribution(logits, Sampling(top_k=places))).tolist() == list(range(min(places, n)))
    kept = np.flatnonzero(distribution(logits, Sampling(top_p=min(share / n, 1.0))))
    assert kept.tolist() == list(range(min(math.ceil(share / n * n), n)))
    assert distribution(logits, Sampling(min_p=1.0)).tolist() == [1 / n] * n


@pytest.mark.parametrize("how", [Sampling(), Sampling(0.0), Sampling(top_k=2), Sampling(top_p=0.5), Sampling(5e-324), Sampling(1e308, top_k=1)])
def test_one_token_far_above_all_others(how: Sampling) -> None:
    """±1e5 leaves nothing to the others; and the first of two equal ones is the likeliest. No warning, whatever the temperature."""
    logits = np.array([-1e5, -np.inf, 1e5, -1e5])
    assert distribution(logits, how).tolist() == [0, 0, 1, 0]
    assert distribution(np.array([0.0, 7, 7], np.float32), Sampling(0.0)).tolist() == [0, 1, 0]


@pytest.mark.parametrize("logits", [[0.0, math.nan], [math.inf, 0.0], [-math.inf, -math.inf]])
def test_logits_that_are_no_numbers(logits: list[float]) -> None:
    with pytest.raises(UserError, match="the model's largest logit is (nan|inf|-inf), expected a number"):
        distribution(np.array(logits), Sampling())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"temperature": -1.0}, "--temperature must be 0 or positive, got -1.0"),
        ({"temperature": math.nan}, "--temperature must be 0 or positive, got nan"),
        ({"top_k": 0}, "--top-k must be at least 1, got 0"),
        ({"top_p": 0.0}, "--top-p must be above 0 and at most 1, got 0.0"),
        ({"min_p": 1.1}, "--min-p must be from 0 to 1, got 1.1"),
    ],
)
def test_numbers_out_of_range(options: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the whole sentence is compared
        Sampling(**options)  # type: ignore[arg-type]
    assert str(caught.value) == sentence


@pytest.mark.parametrize("how", [Sampling(), Sampling(0.5, top_k=6), Sampling(top_p=0.8), Sampling(2.0, min_p=0.3)], ids=str)
def test_tokens_come_as_often_as_the_distribution_says(how: Sampling) -> None:
    """Pearson's χ² with k degrees of freedom is below k + 2 √(k x) + 2 x with probability 1 − e^−x (Laurent & Massart 2000, lemma 1), here 0.9999."""
    p = distribution(np.random.default_rng(1).standard_normal(9), how)
    rng, draws, x = np.random.default_rng(2), 20_000, math.log(1e4)
    counts = np.bincount([drawn(p, rng) for _ in range(draws)], minlength=9)
    assert not counts[p == 0].any()
    expected, freedom = draws * p[p > 0], np.count_nonzero(p) - 1
    assert ((counts[p > 0] - expected) ** 2 / expected).sum() < freedom + 2 * math.sqrt(freedom * x) + 2 * x


class Always:
    """A generator of one number."""

    def __init__(self, number: float) -> None:
        self.number = number

    def random(self) -> float:
        return self.number


@pytest.mark.parametrize(("number", "token"), [(0.0, 1), (0.2499, 1), (0.25, 3), (1 - 2.0**-53, 3)])
def test_the_ends_of_the_cumulative_distribution(number: float, token: int) -> None:
    """A token of probability 0 is never drawn, not by the smallest number and not by the largest."""
    assert drawn(np.array([0, 0.25, 0, 0.75, 0]), Always(number)) == token  # type: ignore[arg-type]
