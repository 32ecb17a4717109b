"""One flipped bit anywhere in what was written: it is seen, told with the file's path, and for a save, the one before is used.

Flipped are all bytes of headers and of files that have nothing else, and of the numbers as many as are asked for.
"""

import contextlib
import io
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ttr_fast.data.corpus import verify_corpus
from ttr_fast.errors import UserError
from ttr_fast.training.checkpoint import verified
from ttr_fast.training.saves import Saves

from .states import CONFIG, same, state_at
from .tables import Findings
from .writing import write_corpus

Reader = Callable[[Path], object]
FALLBACKS = 20
"""Flips of each file after which the save before is really used: what is seen is the same each time."""


def places(path: Path, payload: int, rng: np.random.Generator) -> tuple[int, list[int]]:
    """(bytes of the header, bytes to be flipped); a file that is no safetensors is all header."""
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little") if path.suffix == ".safetensors" else len(content)
    return header, [*range(header), *(header + rng.integers(0, len(content) - header, payload) if header < len(content) else ())]


def flipped(path: Path, payload: int, seed: int) -> Iterator[str]:
    """The file with one bit changed, once for each place; afterwards it is as it was. Yields what was done."""
    rng, content = np.random.default_rng(seed), path.read_bytes()
    for place in places(path, payload, rng)[1]:
        bit = int(rng.integers(8))
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        path.write_bytes(changed)
        yield f"bit {bit} of byte {place} of {path.name}"
    path.write_bytes(content)


def seen_in(folder: Path, read: Reader) -> str | None:
    """What reading says; None if it finds nothing wrong."""
    try:
        read(folder)
    except UserError as error:
        return str(error)
    return None


def check_file(path: Path, read: Reader, payload: int, seed: int, findings: Findings, also: Callable[[], None] | None = None) -> None:
    """Every flip of one file of a folder is seen; after some of them, `also` is called."""
    detected, flips = 0, 0
    header, all_places = places(path, payload, np.random.default_rng(seed))
    for what in flipped(path, payload, seed):
        with findings.expecting(f"{path.parent.name}: {what}"):
            told = seen_in(path.parent, read)
            assert told is not None, "not seen"
            assert told.startswith(str(path.parent)), f"told without the path: {told}"
            detected += 1
            if also is not None and flips % (len(all_places) // FALLBACKS + 1) == 0:
                also()
        flips += 1
    row = {"file": f"{path.parent.name}/{path.name}", "bytes": path.stat().st_size, "header": header, "flips": flips, "seen": detected}
    findings.rows.append(row)
    print(f"{path.parent.name}/{path.name}: {detected} of {flips} seen", file=sys.stderr)


def check_saves(folder: Path, payload: int, seed: int, findings: Findings) -> None:
    """Two saves, of which the newer is changed."""
    saves = Saves(folder / "saves")
    saves.save(state_at(1), CONFIG)
    newest = saves.save(state_at(2), CONFIG)

    def fall_back() -> None:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            state, _ = saves.newest()
        assert same(state, state_at(1)), "the save before is not the one that is used"
        assert "going on from the save before it" in said.getvalue(), f"told: {said.getvalue()}"
        aside = newest.with_name(f"damaged-{newest.name}")
        assert aside.is_dir(), "the damaged save is not put aside"
        aside.rename(newest)

    for path in sorted(newest.iterdir()):
        check_file(path, verified, payload, seed, findings, fall_back)
    assert same(saves.newest()[0], state_at(2))


def check_corpus(folder: Path, payload: int, seed: int, findings: Findings) -> None:
    """All files of a corpus, read as `ttr shards verify` does."""
    corpus = write_corpus(folder)

    def read(corpus: Path) -> None:
        for _ in verify_corpus(corpus):
            pass

    read(corpus)
    for path in sorted(corpus.iterdir()):
        check_file(path, read, payload, seed, findings)
    read(corpus)
    shutil.rmtree(corpus)


def report(seed: int, payload: int, folder: Path, json_path: Path | None) -> int:
    """The command."""
    start, findings = time.perf_counter(), Findings()
    check_saves(folder, payload, seed, findings)
    check_corpus(folder, payload, seed, findings)
    flips, seen = (sum(row[name] for row in findings.rows) for name in ("flips", "seen"))
    return findings.finish(f"{seen} of {flips} flipped bits seen in {time.perf_counter() - start:.0f} s", json_path)
