"""Two processes: with NUMBA_ENABLE_CUDASIM=1 kernels run in the simulator; without it they are compiled, and where there is a GPU they run on it."""

import os
from pathlib import Path

import numba

from ttr_fast.cuda.jit import SIMULATED, cuda

COMPILES = "test_compiled.py"
RUNS = [path.name for path in Path(__file__).parent.glob("test_*.py") if path.name != COMPILES]

if SIMULATED:
    collect_ignore = [COMPILES]
elif cuda.is_available():
    # tests hand over small arrays of the host
    os.environ["NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS"] = os.environ["NUMBA_CUDA_WARN_ON_IMPLICIT_COPY"] = "0"
    numba.config.reload_config()
    collect_ignore = ["test_simulator.py"]
else:
    collect_ignore = RUNS
