"""PyTorch's sides on a GPU: those of the CPU with tensors of the device, timed by its events."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

from ttr_fast.bench import machine
from ttr_fast.bench.case import Prepared


@functools.cache
def torch_module() -> Any:
    """It need not be installed."""
    return importlib.import_module("torch")


def seconds_of(call: Callable[[], Any], calls: int) -> float:
    """Mean of consecutive calls between two events of the device."""
    events = torch_module().cuda.Event
    start, stop = events(enable_timing=True), events(enable_timing=True)
    start.record()
    for _ in range(calls):
        call()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3 / calls


def cache_bytes() -> int:
    """Of the last cache before memory."""
    return int(torch_module().cuda.get_device_properties(0).L2_cache_size)


def timed(make: Callable[[], Prepared], size: int | None = None) -> Prepared:
    """A side by the device's clock. size: the bytes of one copy's inputs, of which several take turns; None for one copy."""
    from ttr_fast.bench.device import rotated

    gpu = torch_module().cuda
    side = make() if size is None else rotated(make, size, cache_bytes())
    gpu.synchronize()
    gpu.reset_peak_memory_stats()
    before = gpu.memory_allocated()
    return side._replace(seconds_of=seconds_of, peak_bytes=lambda: int(gpu.max_memory_allocated()) - before)


def bandwidth(size: int, copies: int) -> float:
    """GB/s of copying so many bytes, what is read and what is written both counted."""
    torch = torch_module()
    source, target = (torch.zeros(size, dtype=torch.uint8, device="cuda") for _ in range(2))
    return max(2 * size / seconds_of(functools.partial(target.copy_, source), copies) / 1e9 for _ in range(machine.PEAK_SAMPLES))


def description() -> str:
    """Its version and the device."""
    torch = torch_module()
    return f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}, on {torch.cuda.get_device_name()}"
