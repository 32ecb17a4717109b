"""Memory of the device that is asked for once: every array of a training step has a name, and the next step gets the same memory under it."""

from typing import Any

import numpy as np

from ttr_fast.cuda.jit import SIMULATED, cuda


def new_array(shape: tuple[int, ...], dtype: np.dtype | type) -> Any:
    """An array of the device that nobody has written to; in the simulator one of the host, full of NaN."""
    return simulated_array(shape, np.dtype(dtype)) if SIMULATED else cuda.device_array(shape, dtype)


def simulated_array(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """All bits set: NaN in every storage, −1 in int64."""
    return np.full(int(np.prod(shape)) * dtype.itemsize, 0xFF, np.uint8).view(dtype).reshape(shape)


def on_device(tree: Any) -> Any:
    """A tree whose arrays, come from the host, lie on the device; the tree itself in the simulator."""
    if SIMULATED:
        return tree
    if isinstance(tree, tuple):
        parts = [on_device(part) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return cuda.to_device(tree) if isinstance(tree, np.ndarray) else tree


def on_host(tree: Any) -> Any:
    """The way back, which waits for the device."""
    if SIMULATED:
        return tree
    if isinstance(tree, tuple):
        parts = [on_host(part) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return tree.copy_to_host() if hasattr(tree, "copy_to_host") else tree


class Workspace:
    """Arrays by name. What a name holds is whatever was left there."""

    def __init__(self) -> None:
        self.arrays: dict[str, Any] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype | type) -> Any:
        """A C-contiguous array, made anew when its shape or type changes."""
        found = self.arrays.get(name)
        if found is None or found.shape != shape or found.dtype != np.dtype(dtype):
            found = self.arrays[name] = new_array(shape, dtype)
        return found

    @property
    def nbytes(self) -> int:
        """All memory held."""
        return sum(a.nbytes for a in self.arrays.values())
