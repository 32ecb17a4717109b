"""How long the command line and the oracle take to start, beyond what NumPy itself takes.

    python scripts/check_startup.py

Each command runs in fresh processes, all in turn, so that a slow moment of the machine falls on all alike.
The medians are compared: `import ttr_ref` and `ttr --help` may each take LIMIT seconds more than `import numpy`. `import ttr_ref.model`, which
reads every module of the oracle, is shown beside them.
Something heavy imported at module level shows here; `python -X importtime -c "import ttr_ref"` then tells what it is.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT = 0.3
RUNS = 7
LIMITED = ("import ttr_ref", "ttr --help")
BASE = "import numpy"
COMMANDS = {
    BASE: [sys.executable, "-c", "import numpy"],
    "import ttr_ref": [sys.executable, "-c", "import ttr_ref"],
    "import ttr_ref.model": [sys.executable, "-c", "import ttr_ref.model"],
    "ttr --help": [str(Path(sys.executable).with_name("ttr")), "--help"],
}


def seconds(name: str, folder: str) -> float:
    """Wall time of one run of the command in a folder that holds no code. Exits if the command is missing or fails."""
    start = time.perf_counter()
    try:
        done = subprocess.run(
            COMMANDS[name], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        sys.exit(f"check_startup: {COMMANDS[name][0]} is not there; install the project for this interpreter first")
    elapsed = time.perf_counter() - start
    if done.returncode != 0:
        sys.exit(f"check_startup: `{name}` ended with exit code {done.returncode}\n{done.stderr}")
    return elapsed


def main() -> None:
    """Measure, print a table, exit with 1 if a command is over the limit."""
    with tempfile.TemporaryDirectory() as folder:
        for name in COMMANDS:  # once unmeasured: bytecode is written and files come into the page cache
            seconds(name, folder)
        rounds = [{name: seconds(name, folder) for name in COMMANDS} for _ in range(RUNS)]
    medians = {name: statistics.median(times[name] for times in rounds) for name in COMMANDS}
    slow = []
    for name, median in medians.items():
        beyond = median - medians[BASE]
        print(f"{name:20} {median:6.3f} s" + (f"   {beyond:+.3f} s beyond {BASE}" if name != BASE else ""))
        if name in LIMITED and beyond > LIMIT:
            slow.append(f"`{name}` takes {beyond:.3f} s more than `{BASE}`; the limit is {LIMIT} s")
    if slow:
        sys.exit("check_startup: " + ", ".join(slow))


if __name__ == "__main__":
    main()
