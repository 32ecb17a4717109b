"""`ttr shards`: what is in a corpus, whether it is whole, and to Bincode and back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import tyro

from ttr_fast.commands.options import check_unused
from ttr_fast.data.corpus import SPLITS, Index, SplitEntry, open_corpus, verify_corpus
from ttr_fast.data.dates import dates
from ttr_fast.data.shard_exchange import export_corpus, import_corpus


@dataclass(frozen=True)
class InfoOptions:
    """Tell what is in a corpus."""

    corpus: tyro.conf.Positional[Path]
    """Folder that ttr preprocess made."""
    json: bool = False
    """Print the whole index as JSON."""

    def run(self) -> None:
        """Read the index, open every shard, print."""
        corpus = open_corpus(self.corpus)
        for name in SPLITS:
            corpus.split(name)
        print(msgspec.json.encode(corpus.index).decode() if self.json else corpus_text(corpus.index))


@dataclass(frozen=True)
class VerifyOptions:
    """Read every byte of a corpus and compare it with the index: SHA-256, counts, offsets, times that are finite and in order."""

    corpus: tyro.conf.Positional[Path]
    """Folder that ttr preprocess made."""

    def run(self) -> None:
        """Read all of it."""
        from tqdm import tqdm

        shards = sum(len(split.shards) for split in open_corpus(self.corpus).index.splits.values())
        size = sum(entry.bytes for entry in tqdm(verify_corpus(self.corpus), "verify", shards, leave=False, unit="shard", disable=None))
        print(f"{self.corpus}: whole, {shards} shards of {size:,} bytes")


@dataclass(frozen=True)
class ExportOptions:
    """Write a corpus as Bincode 1.x shards for programs in Rust; docs/SHARDS.md has their layout."""

    corpus: tyro.conf.Positional[Path]
    """Folder that ttr preprocess made."""
    out: Path
    """Folder for the Bincode shards, new or empty."""

    def run(self) -> None:
        """Check and convert."""
        written = export_corpus(self.corpus, check_unused(self.out))
        print(f"{written} Bincode shards are in {self.out}")


@dataclass(frozen=True)
class ImportOptions:
    """Make a corpus from Bincode 1.x shards, with description.json and the vocabulary beside them as export writes them."""

    folder: tyro.conf.Positional[Path]
    """Folder of Bincode shards."""
    out: Path
    """Folder for the corpus, new or empty."""

    def run(self) -> None:
        """Check and convert."""
        index = import_corpus(self.folder, check_unused(self.out))
        print(corpus_text(index))


Action = (
    Annotated[InfoOptions, tyro.conf.subcommand("info")]
    | Annotated[VerifyOptions, tyro.conf.subcommand("verify")]
    | Annotated[ExportOptions, tyro.conf.subcommand("export")]
    | Annotated[ImportOptions, tyro.conf.subcommand("import")]
)


@tyro.conf.configure(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class Command:
    """Look into a corpus that ttr preprocess made, check that it is whole, write it as Bincode for Rust or read such shards.

    Examples:

        ttr shards info corpus

        ttr shards verify corpus

        ttr shards export corpus --out corpus-bincode

        ttr shards import corpus-bincode --out corpus-again
    """

    action: Action

    def run(self) -> None:
        """Do it."""
        self.action.run()


def corpus_text(index: Index) -> str:
    """A few lines about a corpus."""
    unit = "no times" if index.time_unit is None else f"times in {index.time_unit} as {index.time_dtype}"
    tokens = "tokens" if index.kind == "events" else "tokens by byte-level BPE"
    lines = [f"{index.kind}: {index.vocabulary.size:,} {tokens}, {unit}",
             f"{'split':8}{'sequences':>12}{'tokens':>14}{'shards':>8}   from … to"]  # fmt: skip
    lines += [_split_line(name, index.splits[name], index.tick_seconds) for name in SPLITS]
    return "\n".join(lines)


def _split_line(name: str, split: SplitEntry, tick_seconds: float | None) -> str:
    span = ""
    if tick_seconds is not None and split.shards:
        ends = np.array([min(s.first_time for s in split.shards), max(s.last_time for s in split.shards)])
        span = "   " + " … ".join(dates(ends, tick_seconds))
    return f"{name:8}{split.sequences:>12,}{split.tokens:>14,}{len(split.shards):>8}{span}"
