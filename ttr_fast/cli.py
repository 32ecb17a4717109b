"""`ttr …`: finds the command, reads its options, turns a user's mistake into one sentence on stderr and exit code 2.

A command is imported when it is called, so that `ttr --help` answers at once.
"""

import difflib
import importlib
import inspect
import os
import sys
from typing import Any

from ttr_fast.errors import UserError

COMMANDS = {
    "demo": "train on 55,521 real flights with and without time, show what time buys, decode the future",
    "train": "train a temporal transformer on timed events or texts",
    "generate": "continue an entity's events, or a text, with a trained model",
    "eval": "measure a trained model: nats, accuracy, errors of time, calibration",
    "preprocess": "make a corpus of CSV, JSON or JSONL files: events or texts, segmented, tokenized, split, in shards",
    "shards": "look into a corpus, check that it is whole, write it as Bincode for Rust and read it back",
    "bench": "time attention, matrix products, training steps and decoding against PyTorch and NumPy",
    "doctor": "show what this machine has for each backend, and what mends what is missing",
}
INTERRUPTED = 130

OVERVIEW = """\
usage: ttr COMMAND [OPTIONS]

The Temporal Transformer: a transformer for sequences whose tokens carry real times.

{commands}

Each command tells its options and shows examples:  ttr train --help
To see it work, nothing else needed:                ttr demo"""


def main() -> None:
    """The console script."""
    # Matrices of the oracle's size gain nothing from a second BLAS thread, and on a busy machine threads that wait by spinning cost most of the time.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when NumPy is imported, which no line has done yet
    try:
        run(sys.argv[1:])
        if sys.stdout is not None:  # closed, as in `ttr … >&-`
            sys.stdout.flush()
    except UserError as error:
        fail(str(error))
    except BrokenPipeError:  # the reader of our output has gone, as in `ttr … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("\nttr: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except OSError as error:
        fail(f"{error.filename or 'output'}: {error.strerror or error}")


def run(arguments: list[str]) -> None:
    """One command line. Raises UserError."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(OVERVIEW.format(commands="\n".join(f"  {name:10} {what}" for name, what in COMMANDS.items())))
        return
    name, *options = arguments
    if name == "--version":
        from importlib.metadata import version

        print(version("temporal-transformer"))
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        meant = f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join(COMMANDS)}"
        raise UserError(f"there is no command '{name}': {meant}")
    command = importlib.import_module(f"ttr_fast.commands.{name}").Command
    read_options(command, name, options).run()


def read_options(command: Any, name: str, options: list[str]) -> Any:
    """The command with its options, checked. tyro itself reports unknown ones and exits with 2."""
    import tyro

    try:
        start = {}
        if hasattr(command, "starting_point"):  # options may come from a file that the first of them names
            start["default"], options = command.starting_point(options)
        return tyro.cli(command, prog=f"ttr {name}", args=options, description=inspect.cleandoc(command.__doc__), **start)
    except ValueError as error:  # a configuration refused a value
        raise UserError(str(error)) from error


def fail(sentence: str) -> None:
    """One sentence on stderr, exit code 2."""
    print(f"ttr: {sentence}", file=sys.stderr)
    sys.exit(2)
