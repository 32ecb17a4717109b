"""Memory that is asked for once: every array of a training step has a name, and the next step gets the same memory under it."""

import numpy as np
from numpy import ndarray

ALIGNED_TO = 64


class Workspace:
    """Arrays by name. What a name holds is whatever was left there."""

    def __init__(self) -> None:
        self.memory: dict[str, ndarray] = {}
        self.views: dict[str, ndarray] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype | type) -> ndarray:
        """A C-contiguous array; the memory under a name grows when it has to and never shrinks."""
        kind = np.dtype(dtype)
        view = self.views.get(name)
        if view is not None and view.shape == shape and view.dtype == kind:
            return view
        needed = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        raw = self.memory.get(name)
        if raw is None or raw.nbytes < needed + ALIGNED_TO:
            raw = self.memory[name] = np.empty(needed + ALIGNED_TO, np.uint8)
        start = -raw.ctypes.data % ALIGNED_TO
        view = self.views[name] = raw[start : start + needed].view(kind).reshape(shape)
        return view

    def zeros(self, name: str, shape: tuple[int, ...], dtype: np.dtype | type) -> ndarray:
        """The same, filled with zeros."""
        a = self.array(name, shape, dtype)
        a.fill(0)
        return a

    @property
    def nbytes(self) -> int:
        """All memory held."""
        return sum(raw.nbytes for raw in self.memory.values())
