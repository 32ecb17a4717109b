"""Every kernel made into machine code of devices that are not here: nothing but the compiler's libraries is needed, no driver."""

import importlib
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import SimpleNamespace
from typing import NamedTuple
from unittest.mock import patch

import ttr_fast.cuda
from ttr_fast.cuda.jit import KERNELS, Kernel, cuda

TARGETS = ((8, 0), (9, 0), (10, 0))
"""A100, H100 and H200, B200. No kernel asks for what only the later ones have, so the assembly language is made once, for the first."""

SHARED = {(8, 0): 163 * 1024, (9, 0): 227 * 1024, (10, 0): 227 * 1024}
"""Bytes of shared memory that a block may have at most. NVIDIA, CUDA C++ Programming Guide: technical specifications per compute capability."""

RESERVED = {(9, 0): 1024}
"""Bytes of each block's shared memory that a device keeps for itself and the assembler counts, where the kernel uses any."""


class Cost(NamedTuple):
    """Of one thread: registers, bytes of stack, bytes spilled to memory; of one block: bytes of shared memory."""

    registers: int
    stack: int
    spilled: int
    shared: int


class Machine(NamedTuple):
    """What the assembler made: the code itself and what it costs."""

    code: bytes
    cost: Cost


@cache
def all_kernels() -> dict[str, Kernel]:
    """Every kernel of ttr_fast.cuda."""
    for path in sorted(Path(ttr_fast.cuda.__file__).parent.glob("*.py")):
        if path.stem not in ("__init__", "simulator"):
            importlib.import_module(f"ttr_fast.cuda.{path.stem}")
    return dict(KERNELS)


@contextmanager
def pretended_device() -> Iterator[None]:
    """Functions that kernels call are compiled for the device at hand: let it be the first target."""
    with patch("numba.cuda.dispatcher.get_current_device", lambda: SimpleNamespace(compute_capability=TARGETS[0])):
        yield


def ptx_of(kernel: Kernel, signature: str) -> str:
    """The kernel in the portable assembly language."""
    from numba.core.sigutils import normalize_signature

    arguments, _ = normalize_signature(f"void({signature})")
    with pretended_device():
        return cuda.compile_ptx(kernel.function, arguments, cc=TARGETS[0], launch_bounds=kernel.threads)[0]


def assembled(ptx: str, target: tuple[int, int]) -> Machine:
    """Machine code made from it, and its cost as the assembler says."""
    from cuda.bindings import nvjitlink

    options = [f"-arch=sm_{target[0]}{target[1]}", "-verbose", "-Xptxas=-v"]
    handle = nvjitlink.create(len(options), options)
    code = ptx.encode()
    nvjitlink.add_data(handle, nvjitlink.InputType.PTX, code, len(code), "kernel")
    nvjitlink.complete(handle)
    said = bytearray(nvjitlink.get_info_log_size(handle))
    nvjitlink.get_info_log(handle, said)
    made = bytearray(nvjitlink.get_linked_cubin_size(handle))
    nvjitlink.get_linked_cubin(handle, made)
    nvjitlink.destroy(handle)
    return Machine(bytes(made), cost_of(said.decode(), target))


def instructions_of(code: bytes) -> set[str]:
    """The names of its instructions without what follows their first dot.

    Raises CalledProcessError where the disassembler cannot read it.
    """
    (program,) = [path for entry in distribution("nvidia-cuda-nvdisasm").files or () if (path := Path(str(entry.locate()))).stem == "nvdisasm"]
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        listing = subprocess.run([program, "-c", file.name], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z0-9]+)", listing, re.MULTILINE))


def cost_of(log: str, target: tuple[int, int]) -> Cost:
    """The numbers in the assembler's log.

    Raises ValueError for a log without them.
    """
    used = re.search(r"used (\d+) registers", log)
    stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    if used is None or stack is None:
        raise ValueError(f"the assembler tells no registers or no stack: {log}")
    shared = re.search(r"used \d+ registers.*?(\d+) bytes smem", log)
    held = RESERVED.get(target, 0)
    return Cost(int(used[1]), int(stack[1]), int(stack[2]) + int(stack[3]), int(shared[1]) - held if shared else 0)
