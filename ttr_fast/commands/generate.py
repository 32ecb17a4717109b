"""`ttr generate`: a trained model and a past in, its future out: an entity's events, or the text after a prompt."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import tyro

from ttr_fast.commands.options import loaded_backend
from ttr_fast.commands.prompts import date_prefix, prompt_time, prompts_of
from ttr_fast.data.event_files import read_events
from ttr_fast.errors import UserError, quoted
from ttr_fast.generation.decode import Past, continue_sequences
from ttr_fast.generation.distribution import Sampling
from ttr_fast.generation.itinerary import itinerary_lines, time_text
from ttr_fast.generation.sample import Event, EventSampler, TokenSampler, row_generator
from ttr_fast.generation.text import TextStream
from ttr_fast.generation.turns import Turns
from ttr_fast.model import BackendName, check_usable
from ttr_fast.training.checkpoint import CheckpointConfig, EventSource, TextSource, load_checkpoint, load_tokenizer
from ttr_ref.model import ModelParams

SHOWN_PAST = 3
EVENTS, TOKENS = 10, 200
ROWS = 64
"""So many continuations are decoded side by side."""


@dataclass(frozen=True)
class Command:
    """Continue entities' events, or texts, with a trained model, one event or token after the other.

    What follows depends on the seed and on the past alone, not on what else is continued in the same call.

    Examples:

        ttr generate runs/demo/with_time/checkpoint --data flights.csv --entity N14228 --events 10

        ttr generate runs/train/checkpoint --data visits.csv --entity alice bob --samples 3 --temperature 0.7 --seed 3 --json

        ttr generate runs/chat/checkpoint --prompt "User: where to? Assistant:" --at 2024-05-01T12:00:00Z --top-p 0.9 --stop "User:"
    """

    checkpoint: tyro.conf.Positional[Path]
    """Folder of the checkpoint."""
    data: Path | None = None
    """File with the entities' past, with the columns that the model was trained with."""
    entity: tuple[str, ...] = ()
    """Whose events to continue."""
    events: int | None = None
    """How many events to decode; 10 if not given."""
    prompt: tuple[str, ...] = ()
    """Texts to continue."""
    prompt_file: Path | None = None
    """File of texts to continue, one a line."""
    at: str | None = None
    """When the texts are written: ISO 8601 with a zone, or a UNIX time; now if not given."""
    prefix: bool = True
    """Start texts that have times with their date, which is not shown, as ttr preprocess does unless told otherwise."""
    tokens: int | None = None
    """How many tokens to decode at most; 200 if not given."""
    stop: tuple[str, ...] = ()
    """Events end after one of these tokens, a text before one of these texts; a text also ends where the model ends it."""
    samples: int = 1
    """How many continuations of each."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = field(default_factory=Sampling)
    seed: int = 0
    sort: bool = False
    """Sort each entity's events by time; without it, times that go backwards are an error."""
    backend: BackendName = "cpu"
    """What computes: cpu, the fast core, cuda, an NVIDIA GPU, or reference, the NumPy oracle."""
    json: Annotated[bool, tyro.conf.arg(help="One JSON object a line, for each event or each text.")] = False

    def run(self) -> None:
        """Read, decode, print as it is found."""
        for name in ("events", "tokens", "samples"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"--{name} must be at least 1, got {value}")
        if self.seed < 0:
            raise UserError(f"--seed must not be negative, got {self.seed}")
        check_usable(self.backend)
        params, saved = load_checkpoint(self.checkpoint)
        if isinstance(saved.source, TextSource):
            self.refuse("texts", "events", "give it --prompt or --prompt-file", ("data", "entity", "events", "sort"))
            self.continue_texts(params, saved, saved.source)
        else:
            self.refuse("events", "texts", "give it --data and --entity", ("prompt", "prompt_file", "at", "tokens"))
            self.continue_events(params, saved, saved.source)

    def refuse(self, mine: str, theirs: str, instead: str, names: Sequence[str]) -> None:
        """Raises UserError if an option was given that is for the other kind of model."""
        for name in names:
            if getattr(self, name) not in (None, (), False):
                raise UserError(f"{self.checkpoint} is a model of {mine}: --{name.replace('_', '-')} is for models of {theirs}; {instead}")

    def continue_events(self, params: ModelParams, saved: CheckpointConfig, source: EventSource) -> None:
        """Each entity's."""
        if self.data is None or not self.entity:
            raise UserError("nothing to continue: name a file of events with --data and whose to continue with --entity")
        sampler = EventSampler(params, saved.model, self.sampling)
        tick, vocabulary, stops = saved.model.block.time.tick_seconds, saved.vocabulary, set[int]()
        for text in self.stop:
            if text not in vocabulary:
                raise UserError(f"--stop {quoted(text)} is unknown, expected one of the {len(vocabulary)} tokens in the model's vocabulary")
            stops.add(vocabulary.index(text))
        events = read_events(
            self.data, entity=source.entity, time=source.time, token=source.tokens, time_unit=source.time_unit, sort=self.sort,
            vocabulary=vocabulary,
        )
        for name in self.entity:
            if name not in events.entities:
                raise UserError(f"{self.data}: column '{source.entity}' has no '{name}'")
        backend, limit = loaded_backend(self.backend), self.events or EVENTS
        for rows in self.batches(self.entity):
            known = [events.sequence(events.entities.index(name)) for name, _ in rows]
            pasts = [Past(*past, row_generator(self.seed, *row)) for row, past in zip(rows, known, strict=True)]
            turns, left = Turns(len(rows)), [limit] * len(rows)
            last = [Event(tokens[-1].item(), times[-1].item()) for tokens, times in known]
            for row, ((name, sample), (tokens, times)) in enumerate(zip(rows, known, strict=True)):
                shown = [Event(k, t) for k, t in zip(tokens[-SHOWN_PAST:].tolist(), times[-SHOWN_PAST:].tolist(), strict=True)]
                which = name if self.samples == 1 else f"{name}, sample {sample}"
                heading = f"{which}: {tokens.size} events known, the last {len(shown)} are\n{itinerary_lines(shown, None, vocabulary, tick)}"
                turns.write(row, "" if self.json else f"{heading}the next {limit}, decoded:\n")

            def ended(row: int, event: Event, left: list[int] = left) -> bool:
                left[row] = 0 if event.token in stops else left[row] - 1
                return left[row] == 0

            for row, event in continue_sequences(backend, params, saved.model, pasts, sampler, ended):
                name, sample = rows[row]
                line = itinerary_lines([event], last[row].time, vocabulary, tick)
                if self.json:
                    date = {} if tick is None else {"date": time_text(event.time, tick)}
                    line = json_line(entity=name, sample=sample, time=event.time, token=vocabulary[event.token], **date)
                turns.write(row, line, left[row] == 0)
                last[row] = event

    def continue_texts(self, params: ModelParams, saved: CheckpointConfig, source: TextSource) -> None:
        """Each prompt's."""
        prompts = prompts_of(self.prompt, self.prompt_file)
        if not all(self.stop):
            raise UserError("--stop is an empty text, expected one that ends the continuation")
        time, tokenizer = prompt_time(self.at, source.time_unit), load_tokenizer(self.checkpoint)
        assert tokenizer is not None
        date = tokenizer.encode(date_prefix(time, source.time_unit) if self.prefix else "")
        sampler, backend = TokenSampler(params, saved.model, self.sampling), loaded_backend(self.backend)
        for rows in self.batches(prompts):
            pasts = []
            for prompt, sample in rows:
                tokens = np.concatenate([date, tokenizer.encode(prompt)])
                pasts.append(Past(tokens, np.full(tokens.size, time), row_generator(self.seed, prompt, sample)))
            turns, streams = Turns(len(rows)), [TextStream(tokenizer, self.stop, self.tokens or TOKENS) for _ in rows]
            texts = [""] * len(rows)
            if not self.json:
                for row, (prompt, _) in enumerate(rows):
                    turns.write(row, prompt if len(rows) == 1 else f"[{row + 1}/{len(rows)}] {prompt}")

            def ended(row: int, event: Event, streams: list[TextStream] = streams) -> bool:
                return streams[row].add(event.token)

            for row, _ in continue_sequences(backend, params, saved.model, pasts, sampler, ended):
                stream, (prompt, sample) = streams[row], rows[row]
                new, last = stream.take(), stream.ending is not None
                texts[row] += new
                if self.json:
                    new = json_line(prompt=prompt, sample=sample, text=texts[row], tokens=stream.tokens, ended_by=stream.ending) if last else ""
                elif last:
                    new += "\n"
                turns.write(row, new, last)

    def batches(self, names: Sequence[str]) -> Iterator[list[tuple[str, int]]]:
        """(name, number of the sample), some at a time; a name that comes again goes on with further samples."""
        count, rows = Counter[str](), list[tuple[str, int]]()
        for name in names:
            for _ in range(self.samples):
                rows.append((name, count[name]))
                count[name] += 1
        for start in range(0, len(rows), ROWS):
            yield rows[start : start + ROWS]


def json_line(**content: Any) -> str:
    """One object, one line."""
    return msgspec.json.encode(content).decode() + "\n"
