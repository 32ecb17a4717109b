"""`ttr demo`: the whole story on real flights. What does a transformer gain when its tokens carry times?"""

import sys
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from ttr_fast.commands.options import ModelOptions, check_unused, describe, free_folder, loaded_backend
from ttr_fast.commands.report import Row, save_plots, save_results, table
from ttr_fast.data.event_files import read_events
from ttr_fast.data.flights import flights_path
from ttr_fast.data.measures import measured_time
from ttr_fast.data.sequences import EventSequences
from ttr_fast.data.split import split_by_entity
from ttr_fast.errors import UserError
from ttr_fast.generation.decode import Past, continue_sequences
from ttr_fast.generation.distribution import Sampling
from ttr_fast.generation.itinerary import itinerary_lines, time_text
from ttr_fast.generation.sample import Event, EventSampler, row_generator
from ttr_fast.model import Backend, BackendName, check_usable
from ttr_fast.training.baselines import count_baselines, log_normal_baseline
from ttr_fast.training.checkpoint import CheckpointConfig, EventSource, save_checkpoint
from ttr_fast.training.evaluation import OrderResult, evaluate
from ttr_fast.training.loop import train
from ttr_fast.training.metrics import MetricsFile
from ttr_ref.config import ModelConfig, TimeConfig, TrainConfig
from ttr_ref.model import ModelParams

TOKEN = "destination"
SOURCE = EventSource("tail", "time", (TOKEN,), "s")
HELD_OUT = 0.2
MODEL = ModelOptions()
TRAIN = TrainConfig(steps=650, learning_rate=6e-3)
DECODED = 10


@dataclass(frozen=True)
class Command:
    """Train on 400 aircraft that flew from New York in 2013: once with time, once without, same size, seed and steps.

    Shows held-out nats per event beside count models, and decodes the next flights of an aircraft that was never seen.
    Takes a minute and a quarter on two cores, half of that once kernels are compiled.
    The run's folder gets a checkpoint of each model, metrics.jsonl and plots.

    Examples:

        ttr demo

        ttr demo --seed 1 --out runs/second

        ttr demo --json
    """

    seed: int = 0
    """Of the weights, the order of the data, dropout and sampling."""
    steps: int = TRAIN.steps
    """Training steps of each of the two models."""
    out: Path | None = None
    """Folder of the run, new or empty; runs/demo, runs/demo-2, … if not given."""
    backend: BackendName = "cpu"
    """What computes: cpu, the fast core, cuda, an NVIDIA GPU, or reference, the NumPy oracle."""
    json: bool = False
    """Print the results as JSON."""

    def run(self) -> None:
        """Train both, measure, decode."""
        started = time.perf_counter()
        check_usable(self.backend)
        try:
            config = replace(TRAIN, seed=self.seed, steps=self.steps)
        except ValueError as error:
            raise UserError(str(error)) from error
        folder = check_unused(self.out) if self.out else free_folder("demo")
        events = read_events(
            flights_path(), entity=SOURCE.entity, time=SOURCE.time, token=TOKEN, time_unit=SOURCE.time_unit
        )
        training, held_out = split_by_entity(events, HELD_OUT)
        measured = measured_time(training, SOURCE.time_unit)
        say(f"Flights from New York in 2013: an event is a departure, its token the destination.\n  training on {describe(training)}")
        say(f"  held out: {describe(held_out)}")
        folder.mkdir(parents=True, exist_ok=True)
        metrics, backend = MetricsFile(folder / "metrics.jsonl"), loaded_backend(self.backend)
        results: dict[str, list[OrderResult]] = {}
        for name, with_time in (("without time", False), ("with time", True)):
            model = replace(MODEL, with_time=with_time).config(len(events.vocabulary), measured)
            state = train(backend, training, held_out, model, config, metrics, name)
            saved = CheckpointConfig(model, config, SOURCE, events.vocabulary, state.step)
            save_checkpoint(folder / name.replace(" ", "_") / "checkpoint", state.params, saved)
            results[name] = evaluate(backend, state.params, held_out, model, with_errors=True)
        baselines = count_baselines(training, held_out, len(events.vocabulary))
        save_plots(folder, metrics, baselines, state.params, model)
        rows = table_rows(baselines, results, log_normal_baseline(training, held_out, measured.resolution))
        aircraft, decoded, really = decode_future(backend, state.params, model, held_out, self.seed)
        seconds = time.perf_counter() - started
        flights = [{"time": e.time, "destination": events.vocabulary[e.token]} for e in decoded]
        found = save_results(folder, rows, seed=self.seed, seconds=round(seconds, 1), aircraft=aircraft, decoded=flights)
        if self.json:
            print(found.decode())
            return
        print(f"\n{table(rows, measured.tick_seconds)}\n")
        print("Nats of the time are those of a density per second. The last row's token knows when the next departure is.\n")
        print_future(aircraft, decoded, really, events.vocabulary, measured)
        print(f"\nCheckpoints, metrics, results and plots are in {folder}; it took {seconds:.0f} s. More of the same aircraft:")
        print(f"  ttr generate {folder}/with_time/checkpoint --data {flights_path()} --entity {aircraft} --events 10")


def say(text: str) -> None:
    """Progress goes to stderr, results to stdout."""
    print(text, file=sys.stderr)


def table_rows(baselines: dict[str, float], results: dict[str, list[OrderResult]], log_normal: tuple[float, float]) -> list[Row]:
    """From knowing nothing to knowing the next time. Each next-time figure stands beside what was known when it was predicted."""
    (without,), (past, given) = results["without time"], results["with time"]
    return [
        *(Row(name, nats) for name, nats in baselines.items()),
        Row("log-normal of all gaps", None, *log_normal),
        Row("model without time", without.token_nats),
        Row("model with time: token first", past.token_nats, past.time_nats, past.median_time_error),
        Row("model with time: time first", given.token_nats, given.time_nats, given.median_time_error),
    ]


def decode_future(
    backend: Backend, params: ModelParams, model: ModelConfig, held_out: EventSequences, seed: int
) -> tuple[str, list[Event], list[Event]]:
    """(an aircraft that was never trained on, its last flights as decoded from all before, and as they were)."""
    index = int(np.argsort(held_out.lengths, kind="stable")[held_out.n_sequences // 2])
    tokens, times = held_out.sequence(index)
    really = [Event(k, t) for k, t in zip(tokens[-DECODED:].tolist(), times[-DECODED:].tolist(), strict=True)]
    past = Past(tokens[:-DECODED], times[:-DECODED], row_generator(seed, held_out.entities[index], 0))
    future = continue_sequences(backend, params, model, [past], EventSampler(params, model, Sampling()), lambda row, event: False)
    return held_out.entities[index], [event for _, event in islice(future, DECODED)], really


def print_future(aircraft: str, decoded: list[Event], really: list[Event], vocabulary: tuple[str, ...], measured: TimeConfig) -> None:
    """The decoded itinerary, then what happened."""
    print(f"Aircraft {aircraft}, never trained on: its next {len(decoded)} departures from New York, one sample of the model with time")
    print(itinerary_lines(decoded, None, vocabulary, measured.tick_seconds), end="")
    print(f"What really happened from {time_text(really[0].time, measured.tick_seconds)}")
    print(itinerary_lines(really, None, vocabulary, measured.tick_seconds), end="")
