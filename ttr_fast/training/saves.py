"""The states of a run that are kept on disk: RUN/saves/step-00000100, …, each a checkpoint from which training can go on.

The last few are kept, and the best on held-out data. A damaged one is named and put aside. What a killed process left half-made is swept away.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ttr_fast.data.text_tokenizer import TextTokenizer
from ttr_fast.durable import flush, found, replace_file, retire, sweep, told
from ttr_fast.errors import UserError
from ttr_fast.training.checkpoint import CheckpointConfig, load_state, save_checkpoint
from ttr_fast.training.step import TrainState

PREFIX, DAMAGED, BEST = "step-", "damaged-", "best.json"


class Best(msgspec.Struct, frozen=True):
    """best.json: the step whose held-out nats are lowest."""

    step: int
    nats: float


@dataclass(frozen=True)
class Saves:
    """The folder of a run's saves."""

    folder: Path
    keep: int = 2
    """How many of the last are kept, beside the best."""
    tokenizer: TextTokenizer | None = None
    """Of a model of texts; it lies in every save."""

    def path(self, step: int) -> Path:
        """Where a step is saved."""
        return self.folder / f"{PREFIX}{step:08d}"

    def steps(self) -> list[int]:
        """Those that are saved, in order. Raises UserError if the disk refuses."""
        names = [path.name.removeprefix(PREFIX) for path in found(self.folder, f"{PREFIX}*")]
        return sorted(int(name) for name in names if name.isdigit())

    def best(self) -> Best | None:
        """The best so far. Raises UserError if the disk refuses: the best would go for a worse one."""
        with told(self.folder / BEST, "read"):
            try:
                return msgspec.json.decode((self.folder / BEST).read_bytes(), type=Best)
            except (FileNotFoundError, msgspec.DecodeError):
                return None

    def save(self, state: TrainState, config: CheckpointConfig, nats: float | None = None) -> Path:
        """Save the state; nats: held-out, where they were just measured. Older saves go once this one is on the disk."""
        path = self.path(state.step)
        full = msgspec.structs.replace(config, step=state.step, loss_scale=state.loss_scale, optimizer_steps=state.optimizer.steps)
        save_checkpoint(path, state.params, full, state.optimizer, self.tokenizer)
        best = self.best() if nats is None else self.best_with(state.step, nats)
        for step in self.steps()[: -self.keep]:
            if best is None or step != best.step:
                retire(self.path(step))
        sweep(self.folder)
        return path

    def best_with(self, step: int, nats: float) -> Best:
        """The best, now that a saved step is known to have these held-out nats. Raises UserError if the disk refuses."""
        best = self.best()
        if best is None or nats < best.nats:
            best = Best(step, nats)
            replace_file(self.folder / BEST, msgspec.json.encode(best))
        return best

    def newest(self) -> tuple[TrainState, CheckpointConfig]:
        """The last state that is whole. Damaged ones after it are named on stderr and put aside: the run will come to their steps again.

        Raises UserError if there is none.
        """
        steps, damaged = self.steps(), list[Path]()
        for step in reversed(steps):
            try:
                state, config = load_state(self.path(step))
            except UserError as error:
                print(f"{error}; going on from the save before it", file=sys.stderr)
                damaged.append(self.path(step))
                continue
            for path in damaged:
                aside = path.with_name(f"{DAMAGED}{path.name}")
                with told(aside):
                    if aside.exists():  # it was damaged before
                        retire(aside)
                    os.rename(path, aside)
                    flush(self.folder)
            return state, config
        none = f"none of its {len(steps)} saves is whole" if steps else "there are no saves in it"
        raise UserError(f"{self.folder}: {none}, nothing to resume from")
