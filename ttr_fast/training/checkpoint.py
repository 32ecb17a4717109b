"""A model, or a whole state of training, on disk: one folder, which appears whole or not at all.

    params.safetensors       every parameter under its name
    optimizer.safetensors    AdamW's moments, `m.` and `v.` before the parameters' names; only where training is to go on
    tokenizer.json           how texts become tokens; only in models of texts
    config.json              everything else that is needed to use it again, or to go on
    manifest.json            the size and the SHA-256 of each of the others, written last

The folder is made under a temporary name beside its place, its files and itself are flushed to the disk, and it is renamed. Formats that are older
stay readable: version 1 had no manifest, up to version 2 every model was one of events with a single token column.
"""

import hashlib
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from ttr_fast.data.sources.times import TimeUnit
from ttr_fast.data.text_tokenizer import TextTokenizer
from ttr_fast.durable import told, whole_folder, write_durably
from ttr_fast.errors import UserError
from ttr_fast.training.step import TrainState
from ttr_ref.adamw import AdamWState
from ttr_ref.config import ModelConfig, TrainConfig
from ttr_ref.loss_scaling import LossScale
from ttr_ref.model import ModelParams, model_init
from ttr_ref.tree import from_named_leaves, named_leaves

CONFIG, PARAMS, OPTIMIZER, MANIFEST = "config.json", "params.safetensors", "optimizer.safetensors", "manifest.json"
TOKENIZER = "tokenizer.json"
FILES = CONFIG, PARAMS, OPTIMIZER, TOKENIZER, MANIFEST
FORMAT_VERSION = 3


class EventSource(msgspec.Struct, frozen=True, tag_field="kind", tag="events"):
    """The columns or fields of the events a model was trained on; several token columns make one token."""

    entity: str
    time: str
    tokens: tuple[str, ...]
    time_unit: TimeUnit


class TextSource(msgspec.Struct, frozen=True, tag_field="kind", tag="texts"):
    """A model of texts; time_unit is None where they carry no time."""

    time_unit: TimeUnit | None


class CheckpointConfig(msgspec.Struct, frozen=True):
    """config.json."""

    model: ModelConfig
    train: TrainConfig
    source: EventSource | TextSource
    vocabulary: tuple[str, ...]
    """Of events; empty for texts, whose tokenizer lies beside."""
    step: int
    loss_scale: LossScale | None = None
    """Where training is to go on."""
    optimizer_steps: int = 0
    """Steps that were not skipped; as the loss scale."""
    format_version: Literal[3] = 3


class Versioned(msgspec.Struct, frozen=True):
    """What every version of config.json says."""

    format_version: int = FORMAT_VERSION


class Columns(msgspec.Struct, frozen=True):
    """The source in versions 1 and 2."""

    entity: str
    time: str
    token: str
    time_unit: TimeUnit


class ConfigOfEvents(msgspec.Struct, frozen=True):
    """config.json in versions 1 and 2."""

    model: ModelConfig
    train: TrainConfig
    source: Columns
    vocabulary: tuple[str, ...]
    step: int
    loss_scale: LossScale | None = None
    optimizer_steps: int = 0


class Written(msgspec.Struct, frozen=True):
    """What the manifest says of a file."""

    bytes: int
    sha256: str


def save_checkpoint(
    folder: Path, params: ModelParams, config: CheckpointConfig, optimizer: AdamWState | None = None, tokenizer: TextTokenizer | None = None
) -> None:
    """Make the folder, which must not exist yet; with `optimizer`, and the config's loss scale, training can go on from it.

    Raises UserError if the disk refuses; nothing is left then.
    """
    contents = {PARAMS: tensors(named_leaves(params))}
    if tokenizer is not None:
        contents[TOKENIZER] = tokenizer.json()
    if optimizer is not None:
        moments = {"m": named_leaves(optimizer.m), "v": named_leaves(optimizer.v)}
        contents[OPTIMIZER] = tensors({f"{kind}.{name}": leaf for kind, leaves in moments.items() for name, leaf in leaves.items()})
    contents[CONFIG] = msgspec.json.format(msgspec.json.encode(config), indent=2)
    manifest = {name: Written(len(content), hashlib.sha256(content).hexdigest()) for name, content in contents.items()}
    contents[MANIFEST] = msgspec.json.encode(manifest)  # without blanks, in which a flipped bit would go unnoticed
    with whole_folder(folder) as temporary:
        for name, content in contents.items():
            write_durably(temporary / name, content)


def tensors(leaves: dict[str, np.ndarray]) -> bytes:
    """The bytes of a safetensors file."""
    from safetensors.numpy import save

    # safetensors writes an array's memory as it lies, so a transposed one would come back scrambled
    return save({name: np.ascontiguousarray(leaf) for name, leaf in leaves.items()})


def verified(folder: Path) -> dict[str, bytes]:
    """The contents of a checkpoint's files.

    Raises UserError if it is none, or if a file is missing or not what was written.
    """
    with told(folder, "read"):
        if not folder.is_dir() or not (folder / CONFIG).is_file():
            raise UserError(f"{folder}: not a checkpoint, expected a folder with {CONFIG} and {PARAMS}")
        contents = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name in FILES}
    if MANIFEST not in contents:
        if version_of(folder, contents) > 1:
            raise UserError(f"{folder / MANIFEST}: missing, expected what the other files have to be")
        return contents
    try:
        manifest = msgspec.json.decode(contents[MANIFEST], type=dict[str, Written])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / MANIFEST}: damaged: {error}") from error
    for name, written in manifest.items():
        if name not in contents:
            raise UserError(f"{folder / name}: missing, expected {written.bytes} bytes")
        if (size := len(contents[name])) != written.bytes:
            raise UserError(f"{folder / name}: damaged: {size} bytes, expected {written.bytes}")
        if hashlib.sha256(contents[name]).hexdigest() != written.sha256:
            raise UserError(f"{folder / name}: damaged: its SHA-256 is not the one in {MANIFEST}")
    return contents


def load_checkpoint(folder: Path) -> tuple[ModelParams, CheckpointConfig]:
    """(parameters, configuration).

    Raises UserError if the folder is no checkpoint, or one of its files is damaged or does not fit the other.
    """
    contents = verified(folder)
    config = decoded_config(folder, contents)
    return params_of(folder, contents, PARAMS, "", config), config


def load_state(folder: Path) -> tuple[TrainState, CheckpointConfig]:
    """(state of training, configuration).

    Raises UserError as load_checkpoint, and if the checkpoint is of a model alone.
    """
    contents = verified(folder)
    config = decoded_config(folder, contents)
    if OPTIMIZER not in contents or config.loss_scale is None:
        raise UserError(f"{folder}: holds a model alone, expected {OPTIMIZER} too to go on with its training")
    params = params_of(folder, contents, PARAMS, "", config)
    m, v = (params_of(folder, contents, OPTIMIZER, f"{kind}.", config) for kind in ("m", "v"))
    return TrainState(params, AdamWState(m, v, config.optimizer_steps), config.loss_scale, config.step), config


def load_tokenizer(folder: Path) -> TextTokenizer | None:
    """The tokenizer of a model of texts, None for one of events.

    Raises UserError as load_checkpoint, and if the library is not installed.
    """
    contents = verified(folder)
    if isinstance(decoded_config(folder, contents).source, EventSource):
        return None
    if TOKENIZER not in contents:
        raise UserError(f"{folder / TOKENIZER}: missing, expected the tokenizer of a model of texts")
    return TextTokenizer.from_json(contents[TOKENIZER])


def version_of(folder: Path, contents: dict[str, bytes]) -> int:
    """The format of config.json. Raises UserError if a newer ttr wrote it."""
    try:
        version = msgspec.json.decode(contents[CONFIG], type=Versioned).format_version
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / CONFIG}: not a checkpoint's configuration: {error}") from error
    if version > FORMAT_VERSION:
        raise UserError(f"{folder / CONFIG}: format version {version}, expected 1 to {FORMAT_VERSION}: a newer ttr wrote it")
    return version


def decoded_config(folder: Path, contents: dict[str, bytes]) -> CheckpointConfig:
    """config.json; one of an older version as the present one would have written it."""
    try:
        if version_of(folder, contents) == FORMAT_VERSION:
            return msgspec.json.decode(contents[CONFIG], type=CheckpointConfig)
        old = msgspec.json.decode(contents[CONFIG], type=ConfigOfEvents)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / CONFIG}: not a checkpoint's configuration: {error}") from error
    s = old.source
    source = EventSource(s.entity, s.time, (s.token,), s.time_unit)
    return CheckpointConfig(old.model, old.train, source, old.vocabulary, old.step, old.loss_scale, old.optimizer_steps)


def params_of(folder: Path, contents: dict[str, bytes], file: str, prefix: str, config: CheckpointConfig) -> Any:
    """A tree like the parameters, from what the file holds under names with the prefix."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    template = model_init(config.model, seed=0)
    try:
        found = load(contents[file])
        return from_named_leaves(template, {name.removeprefix(prefix): leaf for name, leaf in found.items() if name.startswith(prefix)})
    except (SafetensorError, KeyError, ValueError) as error:
        detail = error.args[0] if isinstance(error, KeyError) else error
        raise UserError(f"{folder / file}: not the parameters that {CONFIG} describes: {detail}") from error
