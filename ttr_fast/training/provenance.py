"""What computed a run: versions of the packages, and the commit where it ran from a clone."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = "temporal-transformer", "numpy", "numba", "llvmlite", "ml_dtypes", "safetensors", "msgspec", "tokenizers"


def versions() -> dict[str, str]:
    """Of Python and of the packages that are installed."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_describe() -> str | None:
    """The commit of this code, with "-dirty" where files differ from it; None where it is no clone, or git is not installed."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", root, "describe", "--always", "--dirty", "--tags"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
