"""In a worker: the clock, the memory, the machine's own peaks, and which libraries run."""

import ctypes
import functools
import gc
import importlib
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

PEAK_SAMPLES = 5
PEAK_SECONDS = 0.02
CHUNK = 1000
LEAST_BUFFER = 2**28
TIMES_CACHE = 8
"""How many times larger than the last cache the buffer is whose reading is timed."""


def seconds_of(call: Callable[[], Any], calls: int) -> float:
    """Mean of consecutive calls."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def calls_lasting(call: Callable[[], Any], least_seconds: float, clock: Callable[[Callable[[], Any], int], float] = seconds_of) -> int:
    """How many calls take about that long; runs the call once at least."""
    calls = 1
    while (each := clock(call, calls)) * calls < least_seconds / 4:
        calls *= 2
    return max(1, math.ceil(least_seconds / each))


class Peak(Protocol):
    """The fastest products that there are."""

    text: str
    """What is multiplied, in words."""

    def gflops(self) -> float:
        """One sample."""


class MatrixPeak:
    """Products of tiles in the first cache, on all threads: the shape that is best here is found once, then sampled at any time."""

    def __init__(self, dtype: str) -> None:
        from ttr_fast.cpu.peak import SHAPES, TileProducts

        found = []
        for shape in SHAPES:
            products = TileProducts(*shape, np.float64 if dtype == "f64" else np.float32)
            products.run(1)
            repeats = CHUNK * calls_lasting(functools.partial(products.run, CHUNK), PEAK_SECONDS)
            call = functools.partial(products.run, repeats)
            found.append((min(seconds_of(call, 1) for _ in range(PEAK_SAMPLES)) / repeats / products.flops_per_repeat, call, products, repeats))
        _, self.call, products, repeats = min(found, key=lambda row: row[0])
        self.flops, self.text = repeats * products.flops_per_repeat, f"{dtype} products in the first cache"

    def gflops(self) -> float:
        """One sample."""
        return self.flops / seconds_of(self.call, 1) / 1e9


def matrix_peak(side: str, dtype: str) -> MatrixPeak:
    """On all threads, whichever side asks."""
    return MatrixPeak(dtype)


def bandwidth(side: str) -> float:
    """GB/s of all threads reading, whichever side asks."""
    from ttr_fast.cpu.peak import read_through

    x = np.ones(max(LEAST_BUFFER, TIMES_CACHE * last_cache_bytes()) // 4 // 2**16 * 2**16, np.float32)
    threads = read_through(np.ones(2**20, np.float32)).size
    x = x[: x.size // (64 * threads) * 64 * threads]
    return max(x.nbytes / seconds_of(lambda: read_through(x), 1) / 1e9 for _ in range(PEAK_SAMPLES))


def last_cache_bytes() -> int:
    """Of the first processor; 0 where the system does not tell."""
    sizes = [0]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        if found := re.fullmatch(r"(\d+)([KM]?)", file.read_text().strip()):
            sizes.append(int(found[1]) * {"": 1, "K": 2**10, "M": 2**20}[found[2]])
    return max(sizes)


def status_mib(field: str) -> float | None:
    """VmRSS or VmHWM of this process, in MiB; None where the system does not tell."""
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) / 1024 if found else None


def memory_baseline() -> float | None:
    """Resident MiB after everything unused has been given back, from where the peak counts anew; None where that cannot be had."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now
    except (OSError, AttributeError):
        return None
    return status_mib("VmRSS")


def description(side: str, threads: int) -> str:
    """Which libraries a side runs on."""
    if side.startswith("torch"):
        torch = importlib.import_module("torch")
        torch.set_num_threads(threads)
        return f"PyTorch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    if side == "numpy":
        return f"NumPy {np.__version__}, {blas_kernel()}, {threads} threads"
    import numba
    from llvmlite import binding

    return f"Numba {numba.__version__} for {binding.get_host_cpu_name()}, {numba.get_num_threads()} threads"


def blas_kernel() -> str:
    """OpenBLAS says which processor its kernels are for; nothing is known of others."""
    core: Any = importlib.import_module("numpy._core._multiarray_umath")
    try:
        library = ctypes.CDLL(core.__file__)
    except OSError:
        return "BLAS unknown"
    for name in ("scipy_openblas_get_corename64_", "scipy_openblas_get_corename", "openblas_get_corename64_", "openblas_get_corename"):
        if function := getattr(library, name, None):
            function.restype = ctypes.c_char_p
            return f"OpenBLAS for {function().decode()}"
    return "BLAS unknown"
