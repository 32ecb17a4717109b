"""Set up before anything of ours is imported: the shapes in signatures are checked, and Hypothesis does the same everywhere.

With the import hook every call of `ttr_ref` in every test checks each argument and result against its annotation; the letters of one signature
(B, T, H, …) must agree with each other.
"""

import os
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir
from jaxtyping import install_import_hook

# threads that wait sleep: tests share their cores with compilers, with each other and with whoever else is there
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# what two threads do is tested on one core too
os.environ.setdefault("NUMBA_NUM_THREADS", "2")
install_import_hook("ttr_ref", "beartype.beartype")

# what Hypothesis remembers between runs, such as examples that failed, lies outside the checkout
set_hypothesis_home_dir(Path(tempfile.gettempdir()) / f"temporal-transformer-hypothesis-{os.getuid()}")
settings.register_profile("local", deadline=None, print_blob=True)
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")
