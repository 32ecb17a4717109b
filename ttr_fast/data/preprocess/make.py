"""All stages, in a work folder beside the corpus in which finished pieces of work are found again after a kill."""

import fcntl
import hashlib
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ttr_fast.durable import TEMPORARY, flush, replace_file, write_durably

from ...errors import UserError
from ..corpus import INDEX, SPLITS, VOCABULARY, Counted, Fields, FileEntry, Index, SplitName, read_file, shard_name, split_entry, write_index
from ..measures import TICK_SECONDS
from ..shards import ShardEntry
from ..sources.records import EventFields
from ..text_tokenizer import TextTokenizer
from .borders import Borders, time_borders
from .partition import DONE_FILE, Done, Layout, PartitionJob, read_part, write_partition
from .plan import FORMAT, Plan, key, state_of
from .reading import PartJob, spill_part
from .spill import Part, each_time
from .tokens import tokenizer, tokens_file, vocabulary
from .workers import Advance, run_all


class Summary(msgspec.Struct, frozen=True):
    """What came of it. bytes: of the files. unknown: events whose token is <unk>. quarantine: where the bad records are, if they were kept."""

    records: int
    bad: int
    bytes: int
    seconds: float
    unknown: int
    quarantine: Path | None
    index: Index


def make_corpus(plan: Plan, out: Path, loaded: Path | None, workers: int) -> Summary:
    """Make the folder `out`, which appears whole or not at all. loaded: the vocabulary or tokenizer, if it is not to be made.

    Raises UserError for what is wrong with the files, and if the disk refuses. Finished parts stay for the next run then.
    """
    started = time.perf_counter()
    with _work_folder(out) as work:
        folders = _read(plan, work, out, workers)
        parts = [read_part(folder) for folder in folders]
        rows, bad = sum(part.rows for part in parts), sum(part.bad for part in parts)
        if bad > plan.reading.max_bad:
            raise UserError(f"{bad} records of {len(parts)} files are bad, expected at most {plan.reading.max_bad} (--max-bad)")
        if not rows:
            raise UserError(f"{plan.paths[0]}: no records, expected {plan.reading.kind}")
        for path, part in zip(plan.paths, parts, strict=True):
            if plan.segments.by == "entity" and not part.with_entities:
                raise UserError(f"{path}: the texts have no {plan.reading.fields.entity!r}, but --segment entity wants to know whose they are")
        tokens = _tokens(plan, work, folders, parts, loaded)
        layout = _layout(plan, folders, parts, tokens)
        done = _written(plan, work, layout, workers)
        index = _assemble(plan, work, out, layout, done)
    counts = msgspec.json.decode(read_file(out / VOCABULARY), type=list[Counted]) if plan.reading.kind == "events" else []
    quarantine = _quarantine_of(out) if bad and plan.reading.on_error == "quarantine" else None
    size, seconds = sum(part.bytes for part in parts), time.perf_counter() - started
    return Summary(rows, bad, size, seconds, counts[0].count if counts else 0, quarantine, index)


def sweep_work_of(out: Path) -> None:
    """Away with the unfinished work of a corpus that is there: who made it was killed between the two."""
    if (out / INDEX).exists():
        shutil.rmtree(_work_of(out), ignore_errors=True)


def _work_of(out: Path) -> Path:
    return out.with_name(f"{TEMPORARY}{out.name}")


@contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    """The folder for unfinished work, for this process alone; gone after the body of the with, unless that fails with some of it finished."""
    work = _work_of(out)
    try:
        work.mkdir(parents=True, exist_ok=True)
        with (work / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{out}: another process is making it") from None
            try:
                yield work
            except BaseException as error:
                if any(work.glob("part-*")):
                    told = "the command, once that is mended," if isinstance(error, UserError) else "the same command"
                    print(f"what is finished stays in {work}: {told} goes on from there", file=sys.stderr)
                else:
                    shutil.rmtree(work, ignore_errors=True)
                raise
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from error


def _sweep(work: Path, prefix: str, wanted: set[str]) -> None:
    """Away with what an earlier run with other files or options left."""
    for path in work.iterdir():
        if path.name.lstrip(".").startswith(prefix) and path.name not in wanted:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _read(plan: Plan, work: Path, out: Path, workers: int) -> list[Path]:
    """The folder of each file."""
    keys = [plan.part_key(path) for path in plan.paths]
    folders = [work / f"part-{k}" for k in keys]
    bad = [work / f"bad-{k}.jsonl" for k in keys]
    _sweep(work, "part-", {folder.name for folder in folders})
    _sweep(work, "bad-", {path.name for path in bad})
    jobs = [PartJob(path, folder, lines, plan.reading.by_reader, plan.partitions)
            for path, folder, lines in zip(plan.paths, folders, bad, strict=True) if not folder.exists()]  # fmt: skip
    try:
        with _progress("read", sum(state_of(job.path).st_size for job in jobs), "B") as advance:
            for _ in run_all(spill_part, jobs, workers, advance):
                pass
    finally:
        found = [read_file(path) for path in bad if path.exists()]
        if found:
            replace_file(_quarantine_of(out), b"".join(found))
    return folders


def _tokens(plan: Plan, work: Path, folders: Sequence[Path], parts: Sequence[Part], loaded: Path | None) -> Path:
    """The vocabulary's or tokenizer's file."""
    dated = _tick_seconds(plan) if plan.segments.prefix else None
    path = work / f"tokens-{key([f.name for f in folders], plan.tokenizing, dated)}.json"
    _sweep(work, "tokens-", {path.name})
    if not path.exists():
        if plan.reading.kind == "events":
            content = vocabulary(parts, plan.tokenizing, loaded)
        else:
            print("the tokens of the texts …", file=sys.stderr)
            content = tokenizer(folders, parts, plan.tokenizing, loaded, dated)
        replace_file(path, content)
    return path


def _layout(plan: Plan, folders: Sequence[Path], parts: Sequence[Part], tokens: Path) -> Layout:
    float_times = any(block.float_times for part in parts for block in part.blocks)
    borders: Borders = (None, None)
    if plan.splitting.by == "time":
        if plan.reading.time_unit is None:
            raise UserError("--split-by time wants times, but there are none")
        borders = time_borders(
            lambda: (times for folder, part in zip(folders, parts, strict=True) for times in each_time(folder, part)),
            sum(part.rows for part in parts), plan.splitting.shares, float_times,
        )  # fmt: skip
    return Layout(plan.paths, tuple(folders), plan.reading, tokens, plan.segments, plan.splitting, borders, _tick_seconds(plan), float_times,
                  plan.shard_tokens)  # fmt: skip


def _written(plan: Plan, work: Path, layout: Layout, workers: int) -> list[tuple[Path, Done]]:
    """The folder of each partition, with what is in it."""
    common = key(FORMAT, [folder.name for folder in layout.parts], layout.tokens.name, layout.reading, *layout[4:])
    folders = [work / f"shards-{common}-{n:05d}" for n in range(plan.partitions)]
    _sweep(work, "shards-", {folder.name for folder in folders})
    jobs = [PartitionJob(n, folder, layout) for n, folder in enumerate(folders) if not folder.exists()]
    with _progress("write", len(jobs), "partition") as advance:
        for _ in run_all(write_partition, jobs, workers, advance):
            pass
    return [(folder, msgspec.json.decode(read_file(folder / DONE_FILE), type=Done)) for folder in folders]


def _assemble(plan: Plan, work: Path, out: Path, layout: Layout, done: Sequence[tuple[Path, Done]]) -> Index:
    """Move the shards together, tell what they are, and rename."""
    folder = work / f"corpus-{done[0][0].name}"
    _sweep(work, "corpus-", {folder.name})
    folder.mkdir(exist_ok=True)
    shards: dict[SplitName, list[ShardEntry]] = {name: [] for name in SPLITS}
    for source, made in done:
        for name in SPLITS:
            for entry in made.shards[name]:
                file = shard_name(name, len(shards[name]))
                if (source / entry.file).exists():  # a run that was killed here has moved some already
                    (source / entry.file).rename(folder / file)
                shards[name].append(msgspec.structs.replace(entry, file=file))
    if not shards["train"]:
        raise UserError(f"--split leaves nothing for training of {plan.paths[0]}, expected a larger share or more entities")
    content = read_file(layout.tokens)
    file, fields = tokens_file(plan.reading.kind == "texts"), plan.reading.fields
    write_durably(folder / file, content)
    size = len(msgspec.json.decode(content, type=list[Counted])) if plan.reading.kind == "events" else TextTokenizer.from_json(content).size
    index = Index(
        format_version=1,
        kind=plan.reading.kind,
        time_unit=plan.reading.time_unit,
        tick_seconds=layout.tick_seconds,
        time_dtype="float64" if layout.float_times else "int64",
        vocabulary=FileEntry(file, size, len(content), hashlib.sha256(content).hexdigest()),
        source=Fields(fields.entity, fields.time, tokens=fields.tokens) if isinstance(fields, EventFields) else
        Fields(fields.entity, fields.time, text=fields.text),
        splits={name: split_entry(entries) for name, entries in shards.items()},
    )  # fmt: skip
    write_index(folder, index)
    flush(folder)
    folder.rename(out)
    flush(out.parent)
    return index


def _tick_seconds(plan: Plan) -> float | None:
    return None if plan.reading.time_unit is None else TICK_SECONDS[plan.reading.time_unit]


def _quarantine_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.quarantine.jsonl")


@contextmanager
def _progress(what: str, total: int, unit: str) -> Iterator[Advance]:
    """A bar on stderr with what is done in a second."""
    from tqdm import tqdm

    started, rows = time.perf_counter(), 0
    with tqdm(total=total, desc=what, unit=unit, unit_scale=True, disable=None if total else True) as bar:

        def advance(size: int, more: int) -> None:
            """So many units and rows further."""
            nonlocal rows
            rows += more
            if rows:
                bar.set_postfix_str(f"{rows / (time.perf_counter() - started):,.0f} rows/s", refresh=False)
            bar.update(size)

        yield advance
