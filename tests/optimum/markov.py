"""A Markov chain whose next token depends on a gap in time, and its entropies in closed form.

    p(k' | k, b) = P_b[k, k'],   b: in which of B ranges a gap lies, drawn with probabilities p_b whatever the tokens are

The gap is either the `last` one, between the two events before, which the past alone tells, or the `next` one, up to the event that is predicted,
which is known where the time is predicted first. Either way it is independent of the present token k and of all before, so that

    with time      H(K' | K, b) = Σ_k π_k Σ_b p_b H(P_b[k])
    without time   H(K' | K)    = Σ_k π_k H(P̄[k]),   P̄ = Σ_b p_b P_b,   π = π P̄

and no token before k helps a model that does not see times: to it the chain is the Markov chain P̄. Both kinds of gate give it the same tokens.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy import ndarray

Gate = Literal["last", "next"]


class GatedChain(NamedTuple):
    """p (B,); transitions P (B, K, K), rows that sum to 1; the ranges (B, 2) of the gaps in seconds, each uniform in its logarithm."""

    probability: ndarray
    transition: ndarray
    ranges: ndarray

    @property
    def mean_transition(self) -> ndarray:
        """P̄ (K, K), what is left of the chain where no times are seen."""
        return np.einsum("b,bij->ij", self.probability, self.transition)


def gated_chain(tokens: int, rng: np.random.Generator) -> GatedChain:
    """In each range of gaps another successor takes most of the probability; the rest is spread at random.

    The ranges (1 to 10 minutes, 2 to 6 hours, 2 to 5 days) are such that the calendar tells them apart: whoever knows the next time by its phases in
    half a day and in a week knows the range of the gap. Days near a whole week would look like minutes.
    """
    ranges = 60.0 * np.array([[1, 10], [120, 360], [2880, 7200]])
    likely = np.stack([np.roll(np.eye(tokens), 1 + b, axis=1) for b in range(len(ranges))])
    rest = rng.dirichlet(np.ones(tokens), size=(len(ranges), tokens))
    return GatedChain(np.array([0.5, 0.3, 0.2]), 0.8 * likely + 0.2 * rest, ranges)


def stationary(transition: ndarray) -> ndarray:
    """π (K,) with π = π P and Σ π = 1, which is one for a chain that gets from everywhere to everywhere."""
    k = transition.shape[0]
    equations = np.concatenate([transition.T - np.eye(k), np.ones((1, k))])
    return np.linalg.lstsq(equations, np.eye(k + 1)[k], rcond=None)[0]


def entropy(p: ndarray) -> ndarray:
    """−Σ p ln p over the last axis, nats; 0 ln 0 = 0."""
    return -np.sum(p * np.log(p, where=p > 0, out=np.zeros_like(p)), axis=-1)


def entropies(chain: GatedChain) -> tuple[float, float]:
    """(H(K' | K, b), H(K' | K)) in nats, of the stationary chain."""
    pi = stationary(chain.mean_transition)
    return float(pi @ (chain.probability @ entropy(chain.transition))), float(pi @ entropy(chain.mean_transition))


class Sample(NamedTuple):
    """Events of stationary chains: tokens int32, times int64 (both (sequences, events)); the range of the gap that gates each transition
    ((sequences, events − 1); UNKNOWN for the first one where its gap lies before the first event)."""

    tokens: ndarray
    times: ndarray
    gate: ndarray


UNKNOWN = -1
FIRST_TIME = 1_700_000_000
YEAR = 31_556_952


def simulate(chain: GatedChain, kind: Gate, sequences: int, events: int, rng: np.random.Generator) -> Sample:
    """Sequences that begin at any second of a year, with a token from π."""
    ranges = rng.choice(chain.probability.size, p=chain.probability, size=(sequences, events))  # of the gap before each event
    low, high = np.log(chain.ranges[ranges[:, 1:]]).transpose(2, 0, 1)
    gaps = np.rint(np.exp(rng.uniform(low, high))).astype(np.int64)
    first = FIRST_TIME + rng.integers(YEAR, size=(sequences, 1))
    times = np.concatenate([first, first + np.cumsum(gaps, axis=1)], axis=1)
    gate = ranges[:, :-1] if kind == "last" else ranges[:, 1:]
    up_to = np.cumsum(chain.transition, axis=-1)
    tokens = np.empty((sequences, events), np.int32)
    tokens[:, 0] = rng.choice(up_to.shape[-1], p=stationary(chain.mean_transition), size=sequences)
    for i in range(events - 1):
        reached = up_to[gate[:, i], tokens[:, i]] <= rng.random((sequences, 1))
        tokens[:, i + 1] = np.minimum(reached.sum(axis=-1), up_to.shape[-1] - 1)
    known = gate.copy()
    if kind == "last":
        known[:, 0] = UNKNOWN
    return Sample(tokens, times, known)


def token_nats(chain: GatedChain, sample: Sample) -> tuple[ndarray, ndarray]:
    """−ln p of each token but the first, (sequences, events − 1), for who knows the gate (where it can be known) and for who sees tokens alone."""
    before, after = sample.tokens[:, :-1], sample.tokens[:, 1:]
    blind = chain.mean_transition[before, after]
    seen = np.where(sample.gate == UNKNOWN, blind, chain.transition[sample.gate, before, after])
    return -np.log(seen), -np.log(blind)
