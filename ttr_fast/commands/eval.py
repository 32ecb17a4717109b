"""`ttr eval`: how well a trained model foresees data it has not seen, and whether its probabilities are what they say."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import tyro

from ttr_fast.commands.options import loaded_backend
from ttr_fast.commands.report import HOUR_SECONDS
from ttr_fast.data.batches import Marker, transitions
from ttr_fast.data.corpus import SPLITS, open_corpus
from ttr_fast.data.event_files import read_events
from ttr_fast.data.sequences import Sequences
from ttr_fast.data.text_tokenizer import TERMINATOR, TextTokenizer
from ttr_fast.errors import UserError, quoted
from ttr_fast.model import BackendName
from ttr_fast.training.baselines import bigram_nats, log_normal_baseline, majority_nats
from ttr_fast.training.checkpoint import CheckpointConfig, EventSource, TextSource, load_checkpoint, load_tokenizer
from ttr_fast.training.plots import plot_calibration
from ttr_fast.training.scores import Scores, scores

NAMES = {"token_then_time": "token first", "time_then_token": "time first"}


class Known(NamedTuple):
    """What is evaluated, and what a baseline may learn from."""

    events: Sequences
    training: Sequences | None
    name: str


@dataclass(frozen=True)
class Command:
    """Measure a model on data that it was not trained on: a file of events, or a split of a corpus.

    Nats per event of the next token, of the next time (of its density per hour, where times are calendar times) and of both, in each order that the
    model was trained in; how often the token was the likeliest, or among the five likeliest; the mean of 1/rank; the median error of the time; and
    calibration: how far the PIT of the times is from uniform (0 is right; whole times are taken as intervals of a tick, in which a place is drawn),
    and how far the token's confidence is from its accuracy. On a corpus, count models of its training split stand beside.

    Examples:

        ttr eval runs/flights/checkpoint --data flights

        ttr eval runs/flights/checkpoint --data flights --split valid --plot calibration.png --json

        ttr eval runs/visits/checkpoint --data new_visits.csv
    """

    checkpoint: tyro.conf.Positional[Path]
    """Folder of the checkpoint."""
    data: Path
    """File of events with the columns that the model was trained with, or folder of a corpus with its tokens."""
    split: str | None = None
    """Of a corpus: train, valid or test; test if not given."""
    plot: Path | None = None
    """PNG file for the PIT histogram and the token's reliability."""
    seed: int = 0
    """Of the places in ticks."""
    sort: bool = False
    """Sort each entity's events by time; without it, times that go backwards are an error."""
    backend: BackendName = "cpu"
    """What computes: cpu, the fast core, cuda, an NVIDIA GPU, or reference, the NumPy oracle."""
    json: Annotated[bool, tyro.conf.arg(help="Print the results as JSON, with the histograms.")] = False

    def run(self) -> None:
        """Read, measure, print."""
        if self.seed < 0:
            raise UserError(f"--seed must not be negative, got {self.seed}")
        if self.plot is not None and (self.plot.suffix != ".png" or not self.plot.parent.is_dir()):
            raise UserError(f"--plot {self.plot}: expected the name of a .png file in a folder that is there")
        params, saved = load_checkpoint(self.checkpoint)
        tokenizer = load_tokenizer(self.checkpoint)
        known = self.of_corpus(saved, tokenizer) if self.data.is_dir() else self.of_file(saved)
        after = marker_of(saved, tokenizer)
        if next(transitions(known.events, after, at_once=1), None) is None:
            raise UserError(f"{known.name}: there is nothing to predict in it, expected a sequence with two events or tokens")
        try:
            found = scores(loaded_backend(self.backend), params, known.events, saved.model, self.seed, after)
        except FloatingPointError as error:
            told = "its numbers are damaged or too large for its type, expected a model that was trained well"
            raise UserError(f"{self.checkpoint}: on {known.name} {error}: {told}") from error
        rows = baseline_rows(known, saved, after) + [model_row(result, saved) for result in found]
        if self.plot is not None:
            plot_calibration(self.plot, found)
        if self.json:
            about = {"checkpoint": str(self.checkpoint), "data": known.name, "targets": found[0].targets, "time_unit": unit_of(saved)[0]}
            print(msgspec.json.encode(about | {"results": rows}).decode())
            return
        print(f"{found[0].targets:,} {'tokens' if tokenizer else 'events'} of {known.name}\n\n{table(rows, saved)}")

    def of_file(self, saved: CheckpointConfig) -> Known:
        """All of a file of events."""
        if isinstance(saved.source, TextSource):
            raise UserError(f"{self.data}: {self.checkpoint} is a model of texts, expected the folder of a corpus that ttr preprocess made of texts")
        if self.split is not None:
            raise UserError(f"{self.data}: a file is evaluated as a whole; --split is for the folder of a corpus")
        s = saved.source
        events = read_events(
            self.data, entity=s.entity, time=s.time, token=s.tokens, time_unit=s.time_unit, sort=self.sort, vocabulary=saved.vocabulary
        )
        return Known(events, None, str(self.data))

    def of_corpus(self, saved: CheckpointConfig, tokenizer: TextTokenizer | None) -> Known:
        """A split. Raises UserError if the corpus is not of the model's tokens and times."""
        split = next((name for name in SPLITS if name == (self.split or "test")), None)
        if split is None:
            raise UserError(f"--split {quoted(self.split or '')} is unknown, expected train, valid or test")
        if self.sort:
            raise UserError(f"{self.data}: a corpus is in order of time already; --sort is for a file")
        corpus, of_events = open_corpus(self.data), isinstance(saved.source, EventSource)
        if (corpus.index.kind == "events") != of_events:
            mine = "events" if of_events else "texts"
            raise UserError(f"{self.data}: a corpus of {corpus.index.kind}, but {self.checkpoint} is a model of {mine}")
        theirs = corpus.tokenizer()
        if corpus.vocabulary != saved.vocabulary or (tokenizer is not None and theirs is not None and tokenizer.json() != theirs.json()):
            raise UserError(f"{self.data}: its tokens are not those of {self.checkpoint}, expected a corpus made with the same ones")
        if corpus.time_unit != saved.source.time_unit:
            raise UserError(f"{self.data}: its times are in {corpus.time_unit}, expected {saved.source.time_unit} as those of {self.checkpoint}")
        return Known(corpus.split(split, verify=True), corpus.split("train", verify=True), f"{self.data}, split {split}")


def marker_of(saved: CheckpointConfig, tokenizer: TextTokenizer | None) -> Marker | None:
    """Only what the model was trained to predict is evaluated."""
    text = saved.train.targets_after
    if text is None:
        return None
    token = tokenizer.token if tokenizer else {t: n for n, t in enumerate(saved.vocabulary)}.get
    marker = token(text)
    if marker is None:
        raise UserError(f"the model predicts what follows {quoted(text)}, which is none of its tokens")
    return Marker(marker, token(TERMINATOR))


def unit_of(saved: CheckpointConfig) -> tuple[str, float]:
    """(the unit that times are shown in, one unit of the data in it): hours where times are calendar times."""
    tick = saved.model.block.time.tick_seconds
    return ("ticks", 1.0) if tick is None else ("hours", tick / HOUR_SECONDS)


def baseline_rows(known: Known, saved: CheckpointConfig, after: Marker | None) -> list[dict[str, Any]]:
    """What count models and a log-normal of the training split reach."""
    if known.training is None or next(transitions(known.training, after, at_once=1), None) is None:
        return []
    both, size, (_, factor) = (known.training, known.events), saved.model.vocab_size, unit_of(saved)
    rows: list[dict[str, Any]] = [
        {"name": "majority", "token_nats": majority_nats(*both, size, after)},
        {"name": "bigram counts", "token_nats": bigram_nats(*both, size, after)},
    ]
    if saved.model.time_head is not None:
        nats, error = log_normal_baseline(*both, saved.model.block.time.resolution, after)
        rows.append({"name": "log-normal of all gaps", "time_nats": nats + math.log(factor), "median_time_error": error * factor})
    return rows


def model_row(result: Scores, saved: CheckpointConfig) -> dict[str, Any]:
    """A model's scores in one order, times in the unit that is shown; a density per hour is 1/factor times that per tick."""
    _, factor = unit_of(saved)
    row: dict[str, Any] = {
        "name": "model" if result.time is None else f"model, {NAMES[result.order]}",
        "token_nats": result.token_nats, "accuracy": result.accuracy, "top_5": result.top_5, "mean_reciprocal_rank": result.mean_reciprocal_rank,
        "token_calibration_error": result.reliability.error(),
        "reliability": {name: values.tolist() for name, values in result.reliability._asdict().items()},
    }  # fmt: skip
    if result.time is None:
        return row
    nats = result.time.nats + math.log(factor)
    return row | {
        "order": result.order, "time_nats": nats, "joint_nats": result.token_nats + nats, "median_time_error": result.time.median_error * factor,
        "pit": result.time.pit.tolist(), "pit_distance": result.time.pit_distance,
    }  # fmt: skip


COLUMNS = {
    "token_nats": "next token", "time_nats": "next time", "joint_nats": "both", "accuracy": "accuracy", "top_5": "top 5",
    "mean_reciprocal_rank": "MRR", "median_time_error": "error", "pit_distance": "PIT", "token_calibration_error": "ECE",
}  # fmt: skip


def table(rows: list[dict[str, Any]], saved: CheckpointConfig) -> str:
    """Rows under a heading, then what the columns are; columns that nobody fills are left out."""
    unit, _ = unit_of(saved)
    width, columns = max(24, *(len(row["name"]) for row in rows)), {key: name for key, name in COLUMNS.items() if any(key in row for row in rows)}
    of = "event" if isinstance(saved.source, EventSource) else "token"
    heading = f"{f'nats per {of}, and more':{width}}" + "".join(f"  {name:>10}" for name in columns.values())
    lines = [heading, "-" * len(heading)]
    for row in rows:
        cells = (f"  {row[key]:10.3f}" if key in row else " " * 12 for key in columns)
        lines.append(f"{row['name']:{width}}{''.join(cells)}".rstrip())
    lines.append("")
    if "time_nats" in columns:
        lines.append(f"next time: of a density per {unit.removesuffix('s')}; error: median of |gap - the density's median|, in {unit}")
        lines.append("PIT: Kolmogorov's distance from uniform")
    lines.append("ECE: mean |accuracy - confidence| of the likeliest token")
    return "\n".join(lines)
