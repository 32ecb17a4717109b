"""Machine code of every kernel for three devices, with no device: within the registers and shared memory that it declares, no stack, no spills."""

import re
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from cuda.bindings.driver import CUfunction_attribute

from tests.cuda.compiled import SHARED, TARGETS, Cost, all_kernels, assembled, cost_of, instructions_of, ptx_of
from ttr_fast.cuda.jit import Kernel


def is_float32(signature: str) -> bool:
    """Whether a kernel is given nothing that is float64."""
    return "float64" not in signature


@pytest.mark.parametrize("name", all_kernels())
def test_machine_code(name: str) -> None:
    """And arithmetic on float32 never becomes float64 unawares, which on most devices takes many times as long."""
    kernel = all_kernels()[name]
    for signature, wide in kernel.signatures.items():
        ptx = ptx_of(kernel, signature)
        assert not (is_float32(signature) and re.search(r"\.f64\b", ptx)), f"{signature}: float64"
        for target in TARGETS:
            code, cost = assembled(ptx, target)
            assert (cost.stack, cost.spilled) == (0, 0), f"{signature}, {target}: {cost}"
            assert cost.registers <= kernel.registers * (1 + wide), f"{signature}, {target}: {cost}"
            assert cost.shared <= kernel.shared, f"{signature}, {target}: {cost}"
            assert cost.shared + kernel.dynamic <= SHARED[target], f"{signature}, {target}: {cost}"
            if kernel.instructions:
                assert set(kernel.instructions) <= instructions_of(code), f"{signature}, {target}"


def test_the_assembler_is_understood() -> None:
    """Its log for a kernel with a stack and spills; one that it cannot read is an error."""
    log = "8 bytes stack frame, 16 bytes spill stores, 4 bytes spill loads\ninfo: used 40 registers, 8 stack, 2048 bytes smem"
    assert cost_of(log, (8, 0)) == Cost(40, 8, 20, 2048)
    assert cost_of(log, (9, 0)).shared == 1024
    with pytest.raises(ValueError, match="tells no registers"):
        cost_of("nothing", (8, 0))


def test_numpy_without_row_stack() -> None:
    """As it comes from 2.5 on: what numba-cuda imports when it first compiles fails by itself, and does not after jit.py has mended it."""
    without, imported = "import numpy; del numpy.row_stack; ", "import numba.cuda.np.arrayobj; print('imported')"
    done = [
        subprocess.run([sys.executable, "-c", without + mended + imported], capture_output=True, text=True, check=False)
        for mended in ("", "import ttr_fast.cuda.jit; ")
    ]
    assert "module 'numpy' has no attribute 'row_stack'" in done[0].stderr
    assert done[1].stdout == "imported\n", done[1].stderr


def test_dynamic_memory_is_allowed_before_the_first_launch() -> None:
    """Once for each compiled version, with the names that the libraries have; what a block has anyway needs none. What the driver makes of it only a
    device can tell.
    """
    calls: list[tuple[object, ...]] = []

    class Dispatcher:
        """Compiled for every type of argument on its own."""

        def __init__(self) -> None:
            self.made: dict[type, Compiled] = {}

        def _compile_for_args(self, x: object) -> object:
            function = SimpleNamespace(handle=f"of {type(x).__name__}", device=SimpleNamespace(id=0))
            library = SimpleNamespace(get_cufunc=lambda: function)
            return self.made.setdefault(type(x), Compiled(library))

        def __getitem__(self, sizes: tuple[object, ...]) -> Callable[[object], None]:
            return lambda x: calls.append((sizes, x))

    class Compiled:
        """As numba-cuda's: equal to itself alone."""

        def __init__(self, library: object) -> None:
            self._codelibrary = library

    some, less = (Kernel(lambda x: None, {}, 32, 9_000, 32, dynamic, (), Dispatcher()) for dynamic in (40_153, 40_152))
    fake = SimpleNamespace(cuKernelSetAttribute=lambda *arguments: calls.append(arguments))
    with patch("numba.cuda.cudadrv.driver.driver", fake):
        for x in (1, 2, 0.5):
            some[3, 32](x)
        less[3, 32](1)
    most = CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    sizes, fewer = ((3,), (32,), 0, 40_153), ((3,), (32,), 0, 40_152)
    assert calls == [(most, 40_153, "of int", 0), (sizes, 1), (sizes, 2), (most, 40_153, "of float", 0), (sizes, 0.5), (fewer, 1)]
