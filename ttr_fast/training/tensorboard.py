"""metrics.jsonl, and the same numbers as event files for TensorBoard, by the library tensorboardX."""

from pathlib import Path
from typing import Any

from ttr_fast.errors import UserError
from ttr_fast.training.metrics import MetricsFile

NOT_CURVES = ("run", "kind", "step", "order")


class TensorBoardMetrics(MetricsFile):
    """The event files lie in `folder`; a run that goes on adds one, which takes back what came after the step it goes on from.

    Raises UserError if the library is not installed.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        super().__init__(path)
        self.folder, self.make = folder, the_writer()
        self.writer: Any = None

    def opened(self, purge_step: int | None = None) -> Any:
        """The event file, made when it is first needed."""
        if self.writer is None:
            self.writer = self.make(str(self.folder), purge_step=purge_step)
        return self.writer

    def write(self, **record: Any) -> None:
        """One line, and a point on each of its curves."""
        super().write(**record)
        name = "/".join(record[key] for key in ("run", "kind", "order") if key in record)
        for key, value in record.items():
            if key not in NOT_CURVES and value is not None:
                self.opened().add_scalar(f"{name}/{key}", float(value), record["step"])

    def flush(self) -> None:
        """Both kinds of file."""
        super().flush()
        self.opened().flush()

    def rewind(self, step: int) -> None:
        """Both: a new event file hides what was written after the step."""
        super().rewind(step)
        self.opened(step + 1)


def the_writer() -> Any:
    """The library's class."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard needs the library tensorboardX:  pip install 'temporal-transformer[tb]'") from None
    return SummaryWriter
