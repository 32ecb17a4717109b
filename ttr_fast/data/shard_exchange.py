"""A corpus to a folder of Bincode shards and back, byte for byte.

The folder has description.json (what is true of all shards: see Description), the vocabulary's or tokenizer's file, and train-00000.bincode …
"""

import hashlib
from pathlib import Path

import msgspec

from ..durable import whole_folder, write_durably
from ..errors import UserError, quoted
from .bincode import shard_from_bincode, shard_to_bincode
from .corpus import (
    SPLITS,
    TOKENIZER,
    VOCABULARY,
    Description,
    Index,
    check_size,
    open_corpus,
    read_description,
    read_file,
    read_tokenizer,
    read_vocabulary,
    split_entry,
    write_index,
)
from .shards import ShardEntry, verify_shard, write_shard

DESCRIPTION, SUFFIX = "description.json", ".bincode"


def export_corpus(corpus_folder: Path, out: Path) -> int:
    """Make the folder `out` of Bincode shards, checked before they are copied; returns how many.

    Raises UserError if the corpus is damaged.
    """
    corpus = open_corpus(corpus_folder)
    index = corpus.index
    description = Description(**{name: getattr(index, name) for name in Description.__struct_fields__})
    written = 0
    with whole_folder(out) as temporary:
        write_durably(temporary / DESCRIPTION, msgspec.json.format(msgspec.json.encode(description), indent=2) + b"\n")
        write_durably(temporary / index.vocabulary.file, read_file(corpus_folder / index.vocabulary.file))
        for name in SPLITS:
            for entry in index.splits[name].shards:
                verify_shard(corpus_folder / entry.file, entry, index.time_dtype)
            for entry, shard in zip(index.splits[name].shards, corpus.split(name).shards, strict=True):
                write_durably(temporary / Path(entry.file).with_suffix(SUFFIX), shard_to_bincode(shard))
                written += 1
    return written


def import_corpus(folder: Path, out: Path) -> Index:
    """Make the corpus `out` from a folder of Bincode shards.

    Raises UserError if the folder holds anything else.
    """
    if not (folder / DESCRIPTION).is_file():
        raise UserError(f"{folder}: no shards to import, expected a folder with {DESCRIPTION} as ttr shards export makes it")
    description = read_description(folder / DESCRIPTION)
    tokens_file, expected = description.vocabulary.file, VOCABULARY if description.kind == "events" else TOKENIZER
    if tokens_file != expected:  # it may come from anyone, and is not to name a file anywhere else
        raise UserError(f"{folder / DESCRIPTION}: the file of its tokens is {quoted(tokens_file)}, expected {quoted(expected)}")
    content = read_file(folder / tokens_file)
    if len(content) != description.vocabulary.bytes or hashlib.sha256(content).hexdigest() != description.vocabulary.sha256:
        raise UserError(f"{folder / tokens_file}: its size or SHA-256 is not the one in {DESCRIPTION}")
    of_events, path = description.kind == "events", folder / tokens_file
    size = len(read_vocabulary(path, content)) if of_events else read_tokenizer(path, content).size
    check_size(path, size, description.vocabulary.size, DESCRIPTION)
    files = {name: sorted(folder.glob(f"{name}-*{SUFFIX}"), key=_number) for name in SPLITS}
    if not any(files.values()):
        raise UserError(f"{folder}: there are no shards, expected files such as train-00000{SUFFIX}")
    with whole_folder(out) as temporary:
        write_durably(temporary / tokens_file, content)
        splits = {name: split_entry([_imported(path, temporary, description) for path in files[name]]) for name in SPLITS}
        index = Index(**{name: getattr(description, name) for name in Description.__struct_fields__}, splits=splits)
        write_index(temporary, index)
    return index


def _number(path: Path) -> tuple[int, str]:
    """Of a shard, by which they are in order whether or not there are zeros before it. Raises UserError if it has none."""
    number = path.stem.partition("-")[2]
    if not (number.isascii() and number.isdigit()):
        raise UserError(f"{path}: no number follows the name of the split, expected one as in train-00000{SUFFIX}")
    return int(number), path.name


def _imported(path: Path, out: Path, description: Description) -> ShardEntry:
    shard = shard_from_bincode(path, read_file(path), description.time_dtype)
    entry = write_shard(out / path.with_suffix(".safetensors").name, shard.tokens, shard.times, shard.offsets)
    if entry.largest_token >= description.vocabulary.size:
        raise UserError(f"{path}: token {entry.largest_token} is beyond the vocabulary of {description.vocabulary.size}")
    return entry
