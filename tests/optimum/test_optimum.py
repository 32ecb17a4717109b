"""The optima themselves: entropies against enumeration, likelihoods against direct sums and integrals, samples against both."""

from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from numpy import ndarray

from tests.optimum import arms, hawkes, markov, recipes
from tests.optimum.arms import LIMIT, Arm, Entropy, Row, event_sequences, mean_and_error
from ttr_fast.commands.options import ModelOptions
from ttr_fast.model import Prediction
from ttr_fast.training.step import train_start
from ttr_ref.config import TimeConfig, TrainConfig

SURE = 5.0
"""Standard errors: exceeded once in two million."""
GATES = get_args(markov.Gate)


def small_chain() -> markov.GatedChain:
    """Three tokens whose marginal chain is far from uniform."""
    rng = np.random.default_rng(4)
    return markov.GatedChain(np.array([0.6, 0.4]), rng.dirichlet(np.array([0.3, 1.0, 3.0]), size=(2, 3)), np.array([[1.0, 10.0], [100.0, 1000.0]]))


def ranges_of(chain: markov.GatedChain, times: ndarray) -> ndarray:
    """In which range each gap lies."""
    gaps = np.diff(times)[..., None]
    inside = (chain.ranges[:, 0] <= gaps) & (gaps <= chain.ranges[:, 1])
    assert (inside.sum(axis=-1) == 1).all()
    return inside.argmax(axis=-1)


def enumerated_entropy(chain: markov.GatedChain, gate: markov.Gate, seen_gaps: list[int]) -> float:
    """H(K₃ | K₀, K₁, K₂ and some of the gaps) over all tokens and gaps, gap j lying before event j."""
    joint: dict[tuple[int, ...], float] = {}
    before: dict[tuple[int, ...], float] = {}
    pi, tokens, ranges = markov.stationary(chain.mean_transition), range(3), range(2)
    for gaps in product(ranges, repeat=4):
        for ks in product(tokens, repeat=4):
            p = pi[ks[0]] * np.prod(chain.probability[list(gaps)])
            for j in range(3):
                p *= chain.transition[gaps[j if gate == "last" else j + 1], ks[j], ks[j + 1]]
            known = tuple(gaps[j] for j in seen_gaps)
            joint[ks + known] = joint.get(ks + known, 0.0) + p
            before[ks[:3] + known] = before.get(ks[:3] + known, 0.0) + p
    return float(markov.entropy(np.array(list(joint.values()))) - markov.entropy(np.array(list(before.values()))))


@pytest.mark.parametrize(("gate", "seen_gaps"), [("last", [1, 2]), ("next", [1, 2, 3])])
def test_entropies_of_the_chain_are_those_of_all_its_paths(gate: markov.Gate, seen_gaps: list[int]) -> None:
    chain = small_chain()
    knowing, blind = markov.entropies(chain)
    assert knowing == pytest.approx(enumerated_entropy(chain, gate, seen_gaps), abs=1e-12)
    assert blind == pytest.approx(enumerated_entropy(chain, gate, []), abs=1e-12)
    assert blind - knowing > 0.05


def test_the_stationary_distribution_stays() -> None:
    chain = small_chain()
    pi = markov.stationary(chain.mean_transition)
    np.testing.assert_allclose(pi @ chain.mean_transition, pi, atol=1e-15)
    assert pi.sum() == pytest.approx(1, abs=1e-14)
    assert pi.min() > 0


@pytest.mark.parametrize("gate", GATES)
def test_sampled_tokens_follow_the_gap_that_gates(gate: markov.Gate) -> None:
    chain = small_chain()
    sample = markov.simulate(chain, gate, 2000, 40, np.random.default_rng(7))
    ranges = ranges_of(chain, sample.times)
    gating, transitions = (ranges[:, :-1], slice(1, None)) if gate == "last" else (ranges, slice(0, None))
    before, after = sample.tokens[:, :-1][:, transitions], sample.tokens[:, 1:][:, transitions]
    for b, k in product(range(2), range(3)):
        here = (gating == b) & (before == k)
        expected, n = chain.transition[b, k], here.sum()
        found = np.bincount(after[here], minlength=3) / n
        assert (np.abs(found - expected) <= SURE * np.sqrt(expected * (1 - expected) / n) + SURE / n).all()
    pi = markov.stationary(chain.mean_transition)
    first = np.bincount(sample.tokens[:, 0], minlength=3) / 2000
    assert (np.abs(first - pi) <= SURE * np.sqrt(pi * (1 - pi) / 2000)).all()
    share = (ranges == 0).mean()
    assert abs(share - 0.6) <= SURE * np.sqrt(0.24 / ranges.size)


@pytest.mark.parametrize("gate", GATES)
def test_nats_of_the_sample_are_the_entropies(gate: markov.Gate) -> None:
    chain = small_chain()
    sample = markov.simulate(chain, gate, 2000, 40, np.random.default_rng(8))
    knowing, blind = markov.entropies(chain)
    first = 1 / 39 if gate == "last" else 0
    for nats, entropy in zip(markov.token_nats(chain, sample), ((1 - first) * knowing + first * blind, blind), strict=True):
        found = mean_and_error(nats)
        assert abs(found.nats - entropy) <= SURE * found.error
        assert found.error < 0.01


@pytest.mark.parametrize("gate", GATES)
def test_nats_of_tokens_are_those_of_the_gaps_that_can_be_seen(gate: markov.Gate) -> None:
    chain = small_chain()
    sample = markov.simulate(chain, gate, 3, 6, np.random.default_rng(9))
    seen, blind = markov.token_nats(chain, sample)
    ranges = ranges_of(chain, sample.times)
    for row, i in product(range(3), range(5)):
        k, following = sample.tokens[row, i], sample.tokens[row, i + 1]
        mean = 0.6 * chain.transition[0, k, following] + 0.4 * chain.transition[1, k, following]
        gap = i - 1 if gate == "last" else i
        p = chain.transition[ranges[row, gap], k, following] if gap >= 0 else mean
        assert seen[row, i] == pytest.approx(-np.log(p), abs=1e-12)
        assert blind[row, i] == pytest.approx(-np.log(mean), abs=1e-12)


def direct_rate(times: ndarray, at: ndarray) -> ndarray:
    """λ at each time, from every event before it."""
    process = hawkes.TWO_KERNELS
    age = at[:, None] - times
    return process.mu + sum(np.where(age > 0, a * b * np.exp(-b * np.maximum(age, 0)), 0).sum(axis=1) for a, b in zip(*process[1:], strict=True))


def test_nats_of_gaps_are_those_of_the_direct_sum_and_integral() -> None:
    times = hawkes.simulate(hawkes.TWO_KERNELS, 2, 30, np.random.default_rng(3))
    nats = hawkes.gap_nats(hawkes.TWO_KERNELS, times)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    for row, i in product(range(2), range(29)):
        # Gauss's rule in pieces of a tenth of a unit, where e^(−20 Δ) falls by e² at most: exact to rounding
        ends = np.linspace(times[row, i], times[row, i + 1], 2 + int(10 * (times[row, i + 1] - times[row, i])))
        half = np.diff(ends) / 2
        at = (ends[:-1] + half)[:, None] + half[:, None] * nodes
        rate = direct_rate(times[row, : i + 1], at.ravel()).reshape(at.shape)
        expected = (half * (rate @ weights)).sum() - np.log(direct_rate(times[row, : i + 1], times[row, i + 1 : i + 2])[0])
        assert nats[row, i] == pytest.approx(expected, rel=1e-11, abs=1e-11)


def test_simulated_gaps_bring_an_exponential_part_of_the_intensity() -> None:
    """∫λ over each gap is Exp(1) and independent of all before: the time-rescaling theorem. The first gap is that of μ alone."""
    process, rng = hawkes.TWO_KERNELS, np.random.default_rng(5)
    times = hawkes.simulate(process, 4000, 200, rng)
    gaps = np.diff(times)
    parts = np.stack(list(hawkes.after_each_event(process, gaps)), axis=1)
    brought = process.mu * gaps + (parts * -np.expm1(-process.beta * gaps[..., None]) / process.beta).sum(axis=-1)
    n = brought.size
    steps = np.sort(-np.expm1(-brought.ravel()))
    assert np.abs(steps - np.arange(n) / n).max() <= 2.9 / np.sqrt(n)  # Kolmogorov: exceeded once in ten million
    pairs = (brought[:, :-1] - 1) * (brought[:, 1:] - 1)
    assert abs(pairs.mean()) <= SURE / np.sqrt(pairs.size)
    alone = hawkes.simulate(process, 400_000, 1, rng)
    assert abs(alone.mean() - 1 / process.mu) <= SURE / process.mu / np.sqrt(alone.size)


def test_marginal_density_of_a_poisson_process_is_exponential() -> None:
    process = hawkes.Hawkes(0.5, np.zeros(2), np.array([1.0, 20.0]))
    times = hawkes.simulate(process, 50, 4, np.random.default_rng(2))
    gaps = np.diff(times)
    found = hawkes.marginal(process, times).nats(gaps)
    # ln p(ln g) = ln g + ln μ − μ g bends by μ g; a line over 0.05 misses at most 0.05²/8 of that
    assert (np.abs(found - (0.5 * gaps - np.log(0.5))) <= 0.051**2 / 8 * 0.5 * gaps * 1.06 + 1e-12).all()


def test_marginal_density_is_that_of_other_samples() -> None:
    process, rng = hawkes.TWO_KERNELS, np.random.default_rng(6)
    found = hawkes.marginal(process, hawkes.simulate(process, 400, 12, rng))
    np.testing.assert_allclose(np.trapezoid(found.density, found.grid, axis=1), 1, atol=1e-4)
    gaps = np.diff(hawkes.simulate(process, 4000, 12, rng))
    up_to = np.cumsum(found.density[-1]) * (found.grid[1] - found.grid[0])
    for x in (-6.0, -3.0, -1.0, 0.0, 2.0):
        p = np.interp(x, found.grid, up_to)
        share = (np.log(gaps[:, -1]) <= x).mean()
        assert abs(share - p) <= SURE * np.sqrt(p * (1 - p) * (1 / 4000 + 1 / 400)) + 0.01  # half a step of the sum is under 0.01
    apart = mean_and_error(found.nats(gaps) - hawkes.gap_nats(process, np.concatenate([np.zeros((4000, 1)), np.cumsum(gaps, axis=1)], axis=1)))
    assert apart.nats > 0.02  # knowing the history is worth something


@pytest.mark.parametrize(("arms_of", "count"), [(recipes.markov_arms, 3), (recipes.hawkes_arms, 2)])
def test_arms_fit_together(arms_of, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("MARKOV_HELD_OUT", 6), ("HAWKES_HELD_OUT", 5), ("HAWKES_LONG", 8), ("HISTORIES", 4)):
        monkeypatch.setattr(recipes, name, size)
    monkeypatch.setattr(recipes, "MARKOV_STEPS", (2, 2, 2))
    monkeypatch.setattr(recipes, "HAWKES_STEPS", (2, 2))
    for name in ("MARKOV_TRAIN", "HAWKES_TRAIN"):
        monkeypatch.setattr(recipes, name, TrainConfig(rows=3, length=9))
    found = list(arms_of(1))
    assert len(found) == count
    for arm in found:
        assert set(arm.training.lengths - 1) == {9}  # a row of a batch is one sequence
        assert arm.training.n_sequences == 6
        assert arm.optimum.shape == (arm.held_out.n_sequences, 9)
        assert not set(arm.training.times.tolist()) & set(arm.held_out.times.tolist())
    blind = found[0].model
    assert not blind.block.time2vec
    assert blind.block.time_bias == "none"


class Knowing:
    """A backend that pays `more` than the truth for every event."""

    def __init__(self, optimum: ndarray, more: ndarray) -> None:
        self.nats = (optimum + more).ravel()

    def predict(self, params, batch, config, with_medians) -> list[Prediction]:
        n = batch.is_target.sum()
        paid, self.nats = self.nats[:n], self.nats[n:]
        return [Prediction("token_then_time", np.zeros(n), paid, np.ones(n), None)]


@pytest.mark.parametrize(("more", "reached"), [(0.0, True), (0.019, True), (0.021, False), (-0.005, False)])
def test_what_is_reached(more: float, reached: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.random((40, 601)), axis=1)
    events = event_sequences(np.zeros(times.shape), times, 1)
    optimum = rng.random((40, 600))
    model = ModelOptions(embed_dim=8, hidden_dim=8, heads=1, order="token_then_time").config(1, TimeConfig())
    arm = Arm("p", "s", "time", model, TrainConfig(), events, events, optimum, Entropy(0.5, 0.0))
    monkeypatch.setattr(arms, "train", lambda *_: train_start(model, arm.train))
    row = arms.trained(arm, Knowing(optimum, more + 0.05 * rng.standard_normal(optimum.shape)), tmp_path)
    assert abs(row.excess - more) <= SURE * row.error
    assert row.error == pytest.approx(0.05 / np.sqrt(optimum.size), rel=0.6)  # the spread of 40 numbers is known to a ninth
    assert row.reached is reached


def test_table_tells_what_was_missed(capsys: pytest.CaptureFixture[str]) -> None:
    good = Row("Markov", "tokens", "token", 1.0, 0.99, 0.01, 0.001, 0.99, 0.0, 5.0)
    arms.print_table([good, good._replace(excess=LIMIT + 0.001)])
    lines = capsys.readouterr().out.splitlines()
    assert "exactly" in lines[1]
    assert [line.endswith("MISSED") for line in lines] == [False, False, True]
