"""The folder of a run of `ttr train`: what it says of how the run was started, and where it goes on.

    config.toml     every option; `ttr train RUN/config.toml` trains the same again
    run.json        what resuming needs beside them: the data's SHA-256, and what computed
"""

import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ttr_fast.commands.dataset import Dataset
from ttr_fast.durable import make_folder, replace_file, sweep, told
from ttr_fast.errors import UserError
from ttr_fast.training.checkpoint import CheckpointConfig
from ttr_fast.training.metrics import MetricsFile
from ttr_fast.training.provenance import git_describe, versions
from ttr_fast.training.saves import Saves
from ttr_fast.training.step import TrainState

RUN, CONFIGURATION = "run.json", "config.toml"


class Run(msgspec.Struct, frozen=True):
    """run.json."""

    data_sha256: str
    versions: dict[str, str]
    git: str | None
    """The commit where the code ran from a clone."""


def start_run(folder: Path, configuration: str, data: Dataset) -> None:
    """Make the folder; run.json comes last, so that a folder that has it has both."""
    run = Run(data.sha256, versions(), git_describe())  # which takes a while, in which the folder is not there yet
    with told(folder):
        make_folder(folder)
    replace_file(folder / CONFIGURATION, configuration.encode())
    replace_file(folder / RUN, msgspec.json.format(msgspec.json.encode(run), indent=2))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within `with`, no other process trains in this folder: each would sweep away what the other is writing. Raises UserError if one does."""
    with (folder / RUN).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another process is training there") from None
        except OSError:  # a file system without locks
            pass
        yield


def stored_run(folder: Path) -> Run:
    """run.json. Raises UserError if the folder is not one of `ttr train`."""
    if not (folder / RUN).is_file():
        what = "there is no such folder" if not folder.exists() else "it is empty" if not any(folder.iterdir()) else f"there is no {RUN} in it"
        raise UserError(f"{folder}: {what}, expected the folder of a run of ttr train")
    try:
        return msgspec.json.decode((folder / RUN).read_bytes(), type=Run)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / RUN}: not what ttr train says of a run: {error}") from error


def check_data(folder: Path, run: Run, path: Path, data: Dataset) -> None:
    """Raises UserError if the data changed; versions that did, and could change bits, are named on stderr."""
    if run.data_sha256 != data.sha256:
        raise UserError(f"{path}: not the {'corpus' if path.is_dir() else 'file'} that {folder} was started on (its SHA-256 differs)")
    now = versions()
    changed = [f"{name} {run.versions.get(name)} → {now.get(name)}" for name in run.versions.keys() | now if run.versions.get(name) != now.get(name)]
    if changed:
        print(f"what computes is not what it was, so the last bits may differ: {', '.join(sorted(changed))}", file=sys.stderr)


def last_state(saves: Saves, expected: CheckpointConfig, metrics: MetricsFile, label: str) -> TrainState | None:
    """Where a run goes on; None: from the beginning, since nothing was saved yet. label: of the run in its metrics.

    Raises UserError if no save is whole, or if it is of another model.
    """
    sweep(saves.folder.parent)
    sweep(saves.folder)
    if not saves.steps():
        metrics.rewind(0)
        return None
    state, config = saves.newest()
    if (config.model, config.train, config.vocabulary) != (expected.model, expected.train, expected.vocabulary):
        raise UserError(f"{saves.path(state.step)}: not a save of this run: its model, training or vocabulary differs")
    metrics.rewind(state.step)
    nats = metrics.measured(label).get(state.step)
    if nats is not None:  # the process may have been killed between saving and noting that it is the best
        saves.best_with(state.step, nats)
    return state
