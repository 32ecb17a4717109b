"""`ttr generate`: a trained model and an entity's past in, its future out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import tyro

from ttr_fast.commands.options import loaded_backend
from ttr_fast.data.event_csv import read_events
from ttr_fast.errors import UserError
from ttr_fast.generation.decode import continue_sequence
from ttr_fast.generation.itinerary import itinerary_line, time_text
from ttr_fast.generation.sample import Event
from ttr_fast.model import BackendName, check_usable
from ttr_fast.training.checkpoint import load_checkpoint

SHOWN_PAST = 3


@dataclass(frozen=True)
class Command:
    """Continue an entity's events with a trained model, one event after the other.

    The file is read with the columns that the model was trained with.

    Examples:

        ttr generate runs/demo/with_time/checkpoint --data flights.csv --entity N14228 --events 10

        ttr generate runs/train/checkpoint --data visits.csv --entity alice --events 5 --temperature 0.7 --seed 3 --json
    """

    checkpoint: tyro.conf.Positional[Path]
    """Folder of the checkpoint."""
    data: Path
    """CSV file with the entity's past (.csv or .csv.gz)."""
    entity: str
    """Whose events to continue."""
    events: int = 10
    """How many events to decode."""
    temperature: float = 1.0
    """Of the tokens: below 1 likelier ones win more often, 0 takes the likeliest."""
    seed: int = 0
    sort: bool = False
    """Sort each entity's events by time; without it, times that go backwards are an error."""
    backend: BackendName = "cpu"
    """What computes: cpu, the fast core, cuda, an NVIDIA GPU, or reference, the NumPy oracle."""
    json: Annotated[bool, tyro.conf.arg(help="One JSON object a line: time, token.")] = False

    def run(self) -> None:
        """Read, decode, print each event as it is found."""
        if self.events < 1:
            raise UserError(f"--events must be at least 1, got {self.events}")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"--temperature must be 0 or positive, got {self.temperature}")
        if self.seed < 0:
            raise UserError(f"--seed must not be negative, got {self.seed}")
        check_usable(self.backend)
        params, saved = load_checkpoint(self.checkpoint)
        s = saved.source
        events = read_events(
            self.data, entity=s.entity, time=s.time, token=s.token, time_unit=s.time_unit, sort=self.sort, vocabulary=saved.vocabulary
        )
        if self.entity not in events.entities:
            raise UserError(f"{self.data}: column '{s.entity}' has no '{self.entity}'")
        tokens, times = events.sequence(events.entities.index(self.entity))
        decoded = continue_sequence(
            loaded_backend(self.backend), params, saved.model, tokens, times, self.events, self.temperature, self.seed
        )
        tick = saved.model.block.time.tick_seconds
        past = [Event(k, t) for k, t in zip(tokens[-SHOWN_PAST:].tolist(), times[-SHOWN_PAST:].tolist(), strict=True)]
        if not self.json:
            print(f"{self.entity}: {tokens.size} events known, the last {len(past)} are")
            print_events(past, None, saved.vocabulary, tick)
            print(f"the next {self.events}, decoded:")
        previous = past[-1].time
        for event in decoded:
            if self.json:
                date = {} if tick is None else {"date": time_text(event.time, tick)}
                print(msgspec.json.encode({"time": event.time, "token": saved.vocabulary[event.token]} | date).decode(), flush=True)
            else:
                print_events([event], previous, saved.vocabulary, tick)
            previous = event.time


def print_events(events: list[Event], previous: int | float | None, vocabulary: tuple[str, ...], tick_seconds: float | None) -> None:
    """One line each, with the gap to the one before."""
    for event in events:
        print("  " + itinerary_line(event, previous, vocabulary, tick_seconds), flush=True)
        previous = event.time
