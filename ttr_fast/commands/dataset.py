"""What `ttr train` trains on: a file of events, or a corpus that `ttr preprocess` made of events or texts."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from ttr_fast.commands.options import Columns
from ttr_fast.data.batches import Marker, transitions
from ttr_fast.data.corpus import INDEX, Corpus, open_corpus
from ttr_fast.data.event_files import read_events
from ttr_fast.data.measures import measured_time
from ttr_fast.data.preprocess.reading import TOLD
from ttr_fast.data.sequences import Sequences
from ttr_fast.data.sources.opening import open_events
from ttr_fast.data.sources.records import EventFields, Problems
from ttr_fast.data.split import split_by_entity
from ttr_fast.data.text_tokenizer import TERMINATOR, TextTokenizer
from ttr_fast.errors import UserError, quoted
from ttr_fast.training.checkpoint import EventSource, TextSource
from ttr_ref.config import TimeConfig

HELD_OUT = 0.2


class Dataset(NamedTuple):
    """Two sides of the data, and what a checkpoint has to know of them."""

    training: Sequences
    held_out: Sequences
    source: EventSource | TextSource
    vocabulary: tuple[str, ...]
    """Of events; empty for texts."""
    tokenizer: TextTokenizer | None
    """Of texts."""
    size: int
    """V, how many different tokens there can be."""
    sha256: str
    """Of the file, or of the corpus's index, which holds the SHA-256 of all its files."""
    said: str
    """What was found out without being told, as a line."""

    @property
    def of_texts(self) -> bool:
        """Whether a sequence is a text; otherwise it is what happened to an entity."""
        return isinstance(self.source, TextSource)

    def time(self) -> TimeConfig:
        """How a model trained on it measures time. Raises UserError if there is nothing to learn from."""
        return TimeConfig() if self.source.time_unit is None else measured_time(self.training, self.source.time_unit, self.of_texts)

    def marker(self, text: str | None) -> Marker | None:
        """The token after which targets begin. Raises UserError if it is no token, or if one of the sides has no target."""
        found = None if text is None else self.token(text)
        if text is not None and found is None:
            raise UserError(f"--train.targets-after: {quoted(text)} is not one token of the data, expected a marker that is")
        marker = None if found is None else Marker(found, self.token(TERMINATOR))
        for name, side in (("training", self.training), ("held-out", self.held_out)):
            if next(transitions(side, marker, at_once=1), None) is None:
                what = "has two tokens" if text is None else f"has a token after {quoted(text)}"
                raise UserError(f"there is nothing to learn from: no sequence of the {name} data {what}")
        return marker

    def token(self, text: str) -> int | None:
        """The number of the token that is this text."""
        if self.tokenizer is not None:
            return self.tokenizer.token(text)
        return self.vocabulary.index(text) if text in self.vocabulary else None

    def describe(self) -> str:
        """One line about both sides."""
        units, wholes = ("tokens", "texts") if self.of_texts else ("events", "sequences")
        sides = [f"{side.n_tokens:,} {units} in {side.n_sequences:,} {wholes}" for side in (self.training, self.held_out)]
        return f"{self.said}training on {sides[0]}, {self.size:,} kinds of token; held out: {sides[1]}"


def read_dataset(path: Path, columns: Columns, sort: bool, held_out: float) -> Dataset:
    """Read a file of events, or map a corpus. Raises UserError for whatever is wrong with it."""
    if not path.is_dir():
        return of_file(path, columns, sort, held_out)
    if (columns, sort, held_out) != (Columns(), False, HELD_OUT):
        raise UserError(f"{path}: a corpus, which is read and split already; leave out --columns, --sort and --held-out")
    return of_corpus(path, open_corpus(path))


def of_file(path: Path, columns: Columns, sort: bool, held_out: float) -> Dataset:
    """Events, some of whose entities are held out."""
    c, unit, said = columns, columns.time_unit, ""
    if unit is None:
        unit = open_events(path, EventFields(c.entity, c.time, c.token), time_unit=None, sort=sort, problems=Problems()).time_unit
        said = f"{TOLD[unit]}, by the look of the first (--columns.time-unit names another)\n"
    assert unit is not None, "events have times"
    events = read_events(path, entity=c.entity, time=c.time, token=c.token, time_unit=unit, sort=sort)
    training, aside = split_by_entity(events, held_out)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Dataset(training, aside, EventSource(c.entity, c.time, c.token, unit), events.vocabulary, None, len(events.vocabulary), digest, said)


def of_corpus(path: Path, corpus: Corpus) -> Dataset:
    """Its train and valid; test stays unseen."""
    training, valid, fields = corpus.split("train", verify=True), corpus.split("valid", verify=True), corpus.index.source
    for name, side in (("train", training), ("valid", valid)):
        if side.n_sequences == 0:
            raise UserError(f"{path}: its split {name} is empty, expected sequences to {name if name == 'train' else 'measure on'}")
    source: EventSource | TextSource = TextSource(corpus.time_unit)
    if corpus.index.kind == "events":
        if fields.entity is None or fields.time is None or corpus.time_unit is None:
            raise UserError(f"{path / INDEX}: events without entity or time, expected both")
        source = EventSource(fields.entity, fields.time, fields.tokens, corpus.time_unit)
    digest = hashlib.sha256((path / INDEX).read_bytes()).hexdigest()
    return Dataset(training, valid, source, corpus.vocabulary, corpus.tokenizer(), corpus.vocabulary_size, digest, "")
