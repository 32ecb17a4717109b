"""Pieces of work that write: what lies there before, what is done, and what has to be true afterwards, however it ended."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ttr_fast.durable import replace_file, sweep
from ttr_fast.errors import UserError
from ttr_fast.training.checkpoint import load_checkpoint, load_state, save_checkpoint
from ttr_fast.training.metrics import MetricsFile
from ttr_fast.training.saves import DAMAGED, Best, Saves
from ttr_fast.training.step import TrainState

from .recorder import Call, is_temporary
from .states import CONFIG, same, state_at


@dataclass(frozen=True)
class Work:
    """One piece, in a folder of its own."""

    name: str
    prepare: Callable[[Path], None]
    act: Callable[[Path], None]
    check: Callable[[Path, bool], bool]
    """Given whether it was acknowledged, asserts that all is whole, and that nothing acknowledged is lost; gives whether what it made is there."""
    ordered: Callable[[Path, list[Call]], None] = lambda folder, calls: None
    """Asserts what more the order of its calls has to be."""


def saves_of(folder: Path, keep: int = 1) -> Saves:
    return Saves(folder / "saves", keep)


def metrics_of(folder: Path) -> MetricsFile:
    return MetricsFile(folder / "metrics.jsonl")


def save(folder: Path, step: int, nats: float | None = None, keep: int = 1) -> None:
    """As the loop does."""
    metrics_of(folder).write(step=step)
    metrics_of(folder).flush()
    saves_of(folder, keep).save(state_at(step), CONFIG, nats)


def two_saves(folder: Path) -> None:
    """The older one is the best; both have to go when a better one comes."""
    save(folder, 1, 2.0)
    save(folder, 2)


def whole_saves(folder: Path) -> list[int]:
    """The steps there, each read and compared."""
    saves = saves_of(folder)
    for step in saves.steps():
        assert same(load(saves, step), state_at(step)), f"{saves.path(step)} is not the state of its step"
    best = saves.best()
    assert best is None or best.step in saves.steps(), f"the best, {best}, is not among {saves.steps()}"
    assert not list(folder.rglob(f"{DAMAGED}*")), "a damaged save was seen"
    return saves.steps()


def load(saves: Saves, step: int) -> TrainState:
    """The state of a save, which has to be whole."""
    try:
        return load_state(saves.path(step))[0]
    except UserError as error:
        raise AssertionError(str(error)) from error


def resume(folder: Path, step: int) -> None:
    """As a run goes on: it comes to the step again unless it has it."""
    sweep(folder)
    saves = saves_of(folder)
    sweep(saves.folder)
    newest = saves.newest()[0].step if saves.steps() else 0
    metrics_of(folder).rewind(newest)
    for next_step in range(newest + 1, step + 2):
        save(folder, next_step, 0.5 / next_step)
    assert whole_saves(folder) == [step + 1], f"going on ended with {saves.steps()}"
    assert saves.best() == Best(step + 1, 0.5 / (step + 1))
    assert [line["step"] for line in metrics_of(folder).read()] == list(range(1, step + 2))
    assert not [path for path in folder.rglob("*") if is_temporary(str(path))], "what was temporary is still there"


def check_save(step: int, before: set[int], best: Best | None, best_after: Best) -> Callable[[Path, bool], bool]:
    """A save of the step, with others before it; which is the best before and after."""

    def check(folder: Path, acknowledged: bool) -> bool:
        steps = whole_saves(folder)
        done = step in steps
        assert done or not acknowledged, f"the save of step {step} was acknowledged and is not there"
        assert done or before <= set(steps), f"of the saves {sorted(before)} there are {steps}, and no newer one"
        found = saves_of(folder).best()
        assert found == best_after or (found == best and not acknowledged), f"the best is {found}, expected {best_after} after {best}"
        assert done or found == best, f"the best is {found} before its save is there"
        resume(folder, step)
        return done

    return check


def ordered_save(folder: Path, calls: list[Call]) -> None:
    """The manifest is written last, and what the metrics say of a step is on the disk before its save has its name."""
    opened = [os.path.basename(call.path) for call in calls if call.writes and call.path.startswith(str(folder / "saves"))]
    assert opened.index("manifest.json") == 3, f"the manifest is not the last of {opened[:4]}"
    named = next(i for i, call in enumerate(calls) if call.to.startswith(str(folder / "saves" / "step-")))
    about_metrics = [call for call in calls[:named] if call.path == str(folder / "metrics.jsonl")]
    last_written = max(i for i, call in enumerate(about_metrics) if call.writes)
    flushed = any(call.name == "fsync" for call in about_metrics[last_written:])
    assert flushed, "the metrics were not flushed before the save that they lead to had its name"


def check_model(folder: Path, acknowledged: bool) -> bool:
    """A model alone, which is made if it is not there."""
    path = folder / "checkpoint"
    done = path.exists()
    assert done or not acknowledged, "the model was acknowledged and is not there"
    sweep(folder)
    if not done:
        save_model(folder)
    assert load_checkpoint(path)[1] == CONFIG
    assert os.listdir(folder) == ["checkpoint"]
    return done


def save_model(folder: Path) -> None:
    save_checkpoint(folder / "checkpoint", state_at(1).params, CONFIG)


def check_file(folder: Path, acknowledged: bool) -> bool:
    """A file in the place of another."""
    content = (folder / "results.json").read_bytes()
    assert content in (b"old", b"newer"), f"the file holds {content!r}"
    done = content == b"newer"
    assert done or not acknowledged, "the file was acknowledged and is the old one"
    sweep(folder)
    replace_file(folder / "results.json", b"newer")
    assert os.listdir(folder) == ["results.json"]
    return done


def damaged_saves(folder: Path) -> None:
    """A run that was killed: the newer of two saves is damaged, its metrics tell of more, and a save was not finished."""
    two_saves(folder)
    path = saves_of(folder).path(2) / "params.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with metrics_of(folder).path.open("ab") as file:
        file.write(b'{"step":3}\n{"st')
    (saves_of(folder).folder / ".tmp-step-00000003-1").mkdir()
    (saves_of(folder).folder / ".tmp-step-00000003-1" / "params.safetensors").write_bytes(b"half")
    (folder / ".tmp-run.json-1").write_bytes(b"{")


def go_on(folder: Path) -> None:
    """What a run does first."""
    sweep(folder)
    sweep(saves_of(folder).folder)
    metrics_of(folder).rewind(saves_of(folder).newest()[0].step)


def check_go_on(folder: Path, acknowledged: bool) -> bool:
    """It can be done again; then it has been done."""
    done = metrics_of(folder).path.read_bytes() == b'{"step":1}\n'
    assert done or not acknowledged, "the metrics still tell of later steps"
    go_on(folder)
    assert metrics_of(folder).read() == [{"step": 1}]
    assert sorted(os.listdir(folder)) == ["metrics.jsonl", "saves"]
    assert sorted(os.listdir(folder / "saves")) == ["best.json", f"{DAMAGED}step-00000002", "step-00000001"]
    assert same(saves_of(folder).newest()[0], state_at(1))
    assert saves_of(folder).best() == WORSE
    return done


def nothing(folder: Path) -> None:
    """The folder is there."""


def old_file(folder: Path) -> None:
    (folder / "results.json").write_bytes(b"old")


WORSE = Best(1, 2.0)
WORKS = (
    Work("the first save", nothing, lambda folder: save(folder, 1, 2.0), check_save(1, set(), None, WORSE), ordered_save),
    Work("a better save", two_saves, lambda folder: save(folder, 3, 1.0), check_save(3, {1, 2}, WORSE, Best(3, 1.0)), ordered_save),
    Work("a save that is not measured", two_saves, lambda folder: save(folder, 3), check_save(3, {1, 2}, WORSE, WORSE), ordered_save),
    Work("a model alone", nothing, save_model, check_model),
    Work("a file", old_file, lambda folder: replace_file(folder / "results.json", b"newer"), check_file),
    Work("going on", damaged_saves, go_on, check_go_on),
)
