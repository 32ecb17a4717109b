"""A model on disk: `params.safetensors`, every parameter under its name, and `config.json`, all that is needed to use it again.

Both files are written under a temporary name and renamed; config.json comes last, so a folder that has one is whole.
"""

import os
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from ttr_fast.data.time_text import TimeUnit
from ttr_fast.errors import UserError
from ttr_ref.config import ModelConfig, TrainConfig
from ttr_ref.model import ModelParams, model_init
from ttr_ref.tree import from_named_leaves, named_leaves

CONFIG, PARAMS = "config.json", "params.safetensors"


class Source(msgspec.Struct, frozen=True):
    """The columns of the events a model was trained on."""

    entity: str
    time: str
    token: str
    time_unit: TimeUnit


class CheckpointConfig(msgspec.Struct, frozen=True):
    """config.json."""

    model: ModelConfig
    train: TrainConfig
    source: Source
    vocabulary: tuple[str, ...]
    step: int
    format_version: Literal[1] = 1


def save_checkpoint(folder: Path, params: ModelParams, config: CheckpointConfig) -> None:
    """Write both files into the folder, making it if need be."""
    from safetensors.numpy import save

    folder.mkdir(parents=True, exist_ok=True)
    # safetensors writes an array's memory as it lies, so a transposed one would come back scrambled
    leaves = {name: np.ascontiguousarray(leaf) for name, leaf in named_leaves(params).items()}
    replace_file(folder / PARAMS, save(leaves))
    replace_file(folder / CONFIG, msgspec.json.format(msgspec.json.encode(config), indent=2))


def replace_file(path: Path, content: bytes) -> None:
    """The file appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> tuple[ModelParams, CheckpointConfig]:
    """(parameters, configuration).

    Raises UserError if the folder is no checkpoint, or one of its files is damaged or does not fit the other.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if not folder.is_dir() or not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: not a checkpoint, expected a folder with {CONFIG} and {PARAMS}")
    try:
        config = msgspec.json.decode((folder / CONFIG).read_bytes(), type=CheckpointConfig)
    except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{folder / CONFIG}: not a checkpoint's configuration: {error}") from error
    template = model_init(config.model, seed=0)
    try:
        leaves = load((folder / PARAMS).read_bytes())
        return from_named_leaves(template, leaves), config
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        detail = error.args[0] if isinstance(error, KeyError) else error
        raise UserError(f"{folder / PARAMS}: not the parameters that {CONFIG} describes: {detail}") from error
