"""What a kernel's signature stands for, and what a launch is called."""

import numpy as np

from ttr_fast.cuda.jit import blocks_for, expanded, type_of


def test_letters_stand_for_types() -> None:
    assert expanded("int64, boolean") == {"int64, boolean": False}
    assert expanded("C[::1], float64") == {"float64[::1], float64": True, "float32[::1], float64": False}
    assert expanded("S[:, ::1], C") == {
        "float64[:, ::1], float64": True, "float32[:, ::1], float32": False, "int16[:, ::1], float32": False, "uint16[:, ::1], float32": False,
    }  # fmt: skip
    assert expanded("H[::1], C") == {"int16[::1], float32": False, "uint16[::1], float32": False}
    assert list(expanded("M[::1]")) == ["int64[::1]", "float64[::1]"]


def test_types_of_arguments() -> None:
    """As Numba calls them: Python's float is float64, NumPy's keep their own."""
    arguments = [np.zeros((2, 3), np.uint16), np.zeros((3, 4))[:, ::2], np.float32(1), 1.5, 2, True, np.bool_(True), np.int64(3)]
    assert [type_of(a) for a in arguments] == ["uint16[:, ::1]", "float64[:, :]", "float32", "float64", "int64", "boolean", "boolean", "int64"]


def test_a_grid_is_never_empty() -> None:
    assert [blocks_for(n, 64) for n in (0, 1, 64, 65)] == [1, 1, 1, 2]
