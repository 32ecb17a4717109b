"""The one place where kernels meet numba.cuda, or the simulator in its place where NUMBA_ENABLE_CUDASIM=1 is set when this is imported.

A kernel says of which types its arguments are, in Numba's notation, and what it may cost:

    @kernel("S[:, ::1], C[::1], int64", registers=40, shared=512, threads=128)

S stands for a storage (float64, float32, int16 for the bits of f16, uint16 for those of bf16), C for the type in which it is computed (float64 for
float64, else float32), M for the type of moments (int64, float64), H for the two storages of 16 bits. tests/cuda/compiled.py compiles each kernel for
all of them, and checks that it stays within its registers and its bytes of shared memory, without a stack, and that the instructions it names are
there. The simulator checks that it is launched with these types and no more threads.

No fast-math flag. A device may fuse a product and a sum; where the oracle's roundings matter, `numbers.times` rounds the product first.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ttr_fast.cuda import found as machine

SIMULATED = machine.SIMULATED

cuda: Any
if SIMULATED:
    from ttr_fast.cuda import simulator

    cuda = simulator.cuda
else:
    if not hasattr(np, "row_stack"):  # numba-cuda 0.30 asks NumPy for it when it first compiles, NumPy 2.5 has it no more
        setattr(np, "row_stack", np.vstack)  # noqa: B010
    import numba.cuda

    cuda = numba.cuda
    # small batches have small grids: no news that each launch would have to warn of
    numba.cuda.dispatcher.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # type: ignore[attr-defined]

COMPUTE = {"float64": "float64", "float32": "float32", "int16": "float32", "uint16": "float32"}
"""Each storage's type of arithmetic."""
HALVES = ("int16", "uint16")
MOMENTS = ("int64", "float64")
USUAL_SHARED = 48 * 1024
"""Bytes of shared memory that a block has without being allowed more."""


def expanded(signature: str) -> dict[str, bool]:
    """Every signature that one with the letters S, C, H and M stands for, and whether its arithmetic is float64 where it might be float32."""
    letters = set(re.findall(r"\b[SCH]\b", signature))
    storages = list(COMPUTE) if "S" in letters else HALVES if "H" in letters else ["float64", "float32"] if "C" in letters else [""]
    found = {}
    for storage in storages:
        typed = re.sub(r"\b[SH]\b", storage, re.sub(r"\bC\b", COMPUTE.get(storage, ""), signature))
        found |= {re.sub(r"\bM\b", moment, typed): storage == "float64" for moment in (MOMENTS if re.search(r"\bM\b", typed) else [""])}
    return found


@dataclass(frozen=True)
class Kernel:
    """A kernel: `kernel[grid, block](…)` runs it."""

    function: Callable[..., None]
    signatures: dict[str, bool]
    """Whether arithmetic on each is float64 for want of float32: then twice the registers may be used."""
    registers: int
    shared: int
    threads: int
    dynamic: int
    instructions: tuple[str, ...]
    dispatcher: Any
    allowed: set[Any] = field(default_factory=set)
    """What was compiled so far that may use more than USUAL_SHARED."""

    def __getitem__(self, sizes: tuple[Any, Any]) -> Callable[..., None]:
        if _state["unlaunched"]:
            return lambda *arguments: None
        grid, block = (s if isinstance(s, tuple) else (s,) for s in sizes)
        if not SIMULATED and not self.dynamic:
            return self.dispatcher[grid, block]

        def run(*arguments: Any) -> None:
            if SIMULATED:
                self.check(block, arguments)
                simulator.launch(self.function, grid, block, arguments, self.dynamic)
            else:
                if self.shared + self.dynamic > USUAL_SHARED:
                    self.allow(arguments)
                self.dispatcher[grid, block, 0, self.dynamic](*arguments)

        return run

    def allow(self, arguments: tuple[Any, ...]) -> None:
        """Let the kernel have more than USUAL_SHARED; numba-cuda has no call for it.

        Not yet run on a device.
        """
        compiled = self.dispatcher._compile_for_args(*arguments)
        if compiled not in self.allowed:
            from cuda.bindings.driver import CUfunction_attribute
            from numba.cuda.cudadrv.driver import driver

            function, most = compiled._codelibrary.get_cufunc(), CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            driver.cuKernelSetAttribute(most, self.dynamic, function.handle, function.device.id)
            self.allowed.add(compiled)

    def check(self, block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
        """Raises SimulationError for a launch that no compiled version serves."""
        given = ", ".join(map(type_of, arguments))
        if given not in self.signatures:
            raise simulator.SimulationError(f"{self.function.__name__} is not compiled for ({given})")
        if np.prod(block) > self.threads:
            raise simulator.SimulationError(f"{self.function.__name__} is compiled for {self.threads} threads, not {block}")


_state = {"unlaunched": False}


@contextmanager
def unlaunched() -> Iterator[None]:
    """Within `with`, kernels do nothing: what a step asks for is seen before anything happens."""
    before, _state["unlaunched"] = _state["unlaunched"], True
    try:
        yield
    finally:
        _state["unlaunched"] = before


KERNELS: dict[str, Kernel] = {}
"""Every kernel that has been defined, `module.name`."""


def type_of(argument: Any) -> str:
    """The type that Numba gives an argument of a kernel."""
    if isinstance(argument, np.ndarray):
        axes = "::1" if argument.flags.c_contiguous else ":"
        return f"{argument.dtype.name}[{', '.join([':'] * (argument.ndim - 1) + [axes])}]"
    if isinstance(argument, bool | np.bool_):
        return "boolean"
    return {int: "int64", float: "float64"}.get(type(argument)) or np.asarray(argument).dtype.name


def kernel(
    signature: str | tuple[str, ...],
    registers: int,
    threads: int,
    shared: int = 0,
    dynamic: int = 0,
    variant: str = "",
    instructions: tuple[str, ...] = (),
) -> Callable[[Callable[..., None]], Kernel]:
    """Declare a kernel.

    signature: its types, see above. registers: of one thread, at most. threads: of one block, at most. shared: bytes of one block, at most, in arrays
    whose sizes are constants. dynamic: bytes of one block besides, the one array that every `cuda.shared.array(0, dtype)` is, in whatever type.
    variant: what a kernel made inside a function is specialised for. instructions: of the machine, which its code has to contain on every target.
    """
    several = (signature,) if isinstance(signature, str) else signature
    signatures = {s: wide for one in several for s, wide in expanded(one).items()}

    def declared(function: Callable[..., None]) -> Kernel:
        name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}{variant and f'[{variant}]'}"
        dispatcher = None if SIMULATED else cuda.jit(launch_bounds=threads)(function)
        KERNELS[name] = Kernel(function, signatures, registers, shared, threads, dynamic, instructions, dispatcher)
        return KERNELS[name]

    return declared


def inner(function: Callable[..., Any]) -> Any:
    """A function that kernels call."""
    return function if SIMULATED else cuda.jit(device=True)(function)


def blocks_for(items: int, threads: int) -> int:
    """How many blocks have a thread for each item; one at least, since a grid cannot be empty."""
    return max(1, -(-items // threads))
