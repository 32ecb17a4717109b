"""The arms of both processes: samples, models and how they are trained.

Every training sequence is seen once, so nothing is overfitted and nothing need be dropped or decayed. A training row holds one sequence exactly.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ttr_fast.commands.options import ModelOptions
from ttr_fast.data.measures import gaps_of, measured_time
from ttr_ref.config import DropoutConfig, TrainConfig

from . import hawkes, markov
from .arms import Arm, Entropy, event_sequences, mean_and_error

TOKENS = 8
MARKOV_HELD_OUT, HAWKES_HELD_OUT = 500, 300
"""Sequences: a few times 10⁴ events, of whose nats the model's excess is known to about 0.001."""
HAWKES_LONG = 40_000
"""Sequences from which the entropies of the Hawkes process are found, to about 0.002 (bursts make sequences unequal)."""
HISTORIES = 1_000
"""Sequences of which the density of a gap at a known place is the mean; it costs 0.0001 nats more than the true one (the means
of two halves are 0.00035 apart, which is four times as much)."""

MARKOV_STEPS, HAWKES_STEPS = (300, 800, 2000), (300, 1600)
"""Of each arm, in order. What sees no times has learned soonest; the gap to the next event, which a model has to find from two absolute times,
takes longest."""

FRESH = ModelOptions(dropout=DropoutConfig())
FRESH_TRAIN = TrainConfig(learning_rate=6e-3, warmup=50, final_fraction=0.02, weight_decay=0.0)
MARKOV_TRAIN = replace(FRESH_TRAIN, rows=16, length=128, time_weight=0.02)
HAWKES_TRAIN = replace(FRESH_TRAIN, rows=8, length=256, time_weight=1.0)


def markov_arms(seed: int) -> Iterator[Arm]:
    """Without time; the last gap gates and the past is seen; the next gap gates and is seen too."""
    chain = markov.gated_chain(TOKENS, np.random.default_rng([seed, 0]))
    knowing, blind = markov.entropies(chain)
    options = replace(FRESH, window=8, components=4)
    arms: list[tuple[markov.Gate, str, ModelOptions, int]] = [
        ("last", "tokens", replace(options, with_time=False), MARKOV_STEPS[0]),
        ("last", "tokens, past times", replace(options, order="token_then_time"), MARKOV_STEPS[1]),
        ("next", "tokens, times, next time", replace(options, order="time_then_token"), MARKOV_STEPS[2]),
    ]
    for i, (gate, sees, options, steps) in enumerate(arms):
        train = replace(MARKOV_TRAIN, steps=steps, seed=seed)
        rng = np.random.default_rng([seed, 1, i])
        sample = markov.simulate(chain, gate, train.steps * train.rows, train.length + 1, rng)
        held_out = markov.simulate(chain, gate, MARKOV_HELD_OUT, train.length + 1, rng)
        training = event_sequences(sample.tokens, sample.times, TOKENS)
        seen_nats, blind_nats = markov.token_nats(chain, held_out)
        first = 1 / train.length if gate == "last" else 0.0  # the gate of the first target is not known to anyone
        yield Arm(
            f"Markov chain, {gate} gap", sees, "token", options.config(TOKENS, measured_time(training, "s")), train,
            training, event_sequences(held_out.tokens, held_out.times, TOKENS), seen_nats if options.with_time else blind_nats,
            Entropy(first * blind + (1 - first) * knowing if options.with_time else blind, 0.0),
        )  # fmt: skip


def hawkes_arms(seed: int) -> Iterator[Arm]:
    """Without time, but asked for it: the gap at a place, whatever was before. With time: the gap after this history."""
    process, rng = hawkes.TWO_KERNELS, np.random.default_rng([seed, 2])
    train = replace(HAWKES_TRAIN, seed=seed)
    times, held_out, histories, long = (
        hawkes.simulate(process, n, train.length + 1, rng) for n in (max(HAWKES_STEPS) * train.rows, HAWKES_HELD_OUT, HISTORIES, HAWKES_LONG)
    )
    marginal = hawkes.marginal(process, histories)
    training, held_out_events = (event_sequences(np.zeros(t.shape), t, 1) for t in (times, held_out))
    # the shortest of a million gaps is an accident, and periods down to it are noise: nearly twice as far from the optimum after 300 steps
    time = replace(measured_time(training, "s"), shortest=float(np.quantile(gaps_of(training), 0.01)), tick_seconds=None)
    options = replace(FRESH, components=16, order="token_then_time")
    blind = replace(options, time2vec=False, time_bias="none")
    arms = (
        ("number of events", blind, HAWKES_STEPS[0], marginal.nats(np.diff(held_out)), marginal.nats(np.diff(long))),
        ("past times", options, HAWKES_STEPS[1], hawkes.gap_nats(process, held_out), hawkes.gap_nats(process, long)),
    )
    for sees, seen, steps, nats, entropy in arms:
        yield Arm(
            "Hawkes process", sees, "time", seen.config(1, time), replace(train, steps=steps),
            training, held_out_events, nats, mean_and_error(entropy),
        )  # fmt: skip
