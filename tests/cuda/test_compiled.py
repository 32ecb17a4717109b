"""Machine code of every kernel for three devices, with no device: within the registers and shared memory that it declares, no stack, no spills."""

import re
import subprocess
import sys

import pytest

from tests.cuda.compiled import TARGETS, Cost, all_kernels, assembled, cost_of, instructions_of, ptx_of


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
