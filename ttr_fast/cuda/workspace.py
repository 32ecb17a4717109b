"""Memory of the device that is asked for once: every array of a training step has a name, and the next step gets the same memory under it.

A workspace may also count: it gives arrays without memory and adds up what they would have taken, so that a step that is gone through under
jit.unlaunched says what it needs before anything happens.
"""

from typing import Any

import numpy as np
from numpy import ndarray

from ttr_fast.cuda.jit import SIMULATED, cuda
from ttr_ref.tree import leaves_of, tree_map

ALIGNED_TO = 256
"""Bytes, as the device's own allocations are."""


def new_array(shape: tuple[int, ...], dtype: np.dtype | type) -> Any:
    """An array of the device that nobody has written to; in the simulator one of the host, full of NaN."""
    return simulated_array(shape, np.dtype(dtype)) if SIMULATED else cuda.device_array(shape, dtype)


def simulated_array(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """All bits set: NaN in every storage, −1 in int64."""
    return np.full(int(np.prod(shape)) * dtype.itemsize, 0xFF, np.uint8).view(dtype).reshape(shape)


def on_device(tree: Any) -> Any:
    """A tree whose arrays, come from the host, lie on the device, those that lie there as they are; the tree itself in the simulator."""
    return tree if SIMULATED else tree_map(lambda leaf: cuda.to_device(leaf) if isinstance(leaf, ndarray) else leaf, tree)


def on_host(tree: Any) -> Any:
    """The way back, which waits for the device."""
    return tree if SIMULATED else tree_map(lambda leaf: leaf.copy_to_host() if hasattr(leaf, "copy_to_host") else leaf, tree)


def free_memory() -> int | None:
    """Bytes of the device that nobody has taken; None in the simulator, which has the host's."""
    if SIMULATED:
        return None
    context = cuda.current_context()
    context.memory_manager.deallocations.clear()
    return int(context.get_memory_info().free)


def copy_in(host: ndarray, device: Any) -> None:
    """What lies on the host into an array of the device, both C-contiguous and of one shape and type."""
    if SIMULATED:
        device[...] = host
    else:
        device.copy_to_device(host)


class Workspace:
    """Arrays by name. What a name holds is whatever was left there."""

    def __init__(self, counting: bool = False) -> None:
        """counting: its arrays have no memory."""
        self.counting = counting
        self.memory: dict[str, Any] = {}
        self.views: dict[str, Any] = {}
        self.uploads: dict[str, list[Any]] = {}

    def raw(self, name: str, nbytes: int) -> Any:
        """The bytes under a name, which grow when they have to and never shrink."""
        raw = self.memory.get(name)
        if raw is None or raw.nbytes < nbytes:
            for kept in (self.memory, self.views, self.uploads):  # what was there goes before more is asked for
                kept.pop(name, None)
            raw = self.memory[name] = np.broadcast_to(np.uint8(0), (nbytes,)) if self.counting else new_array((nbytes,), np.uint8)
        return raw

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype | type) -> Any:
        """A C-contiguous array."""
        kind, view = np.dtype(dtype), self.views.get(name)
        if view is not None and view.shape == shape and view.dtype == kind:
            return view
        raw = self.raw(name, int(np.prod(shape, dtype=np.int64)) * kind.itemsize)
        view = self.views[name] = np.broadcast_to(kind.type(0), shape) if self.counting else part_of(raw, 0, shape, kind)
        return view

    def upload(self, name: str, tree: Any, at_most: int = 0) -> Any:
        """A tree whose arrays, come from the host, lie on the device, copied there in one piece. The next upload of the name writes over it.

        at_most: bytes to ask for at once, because later trees may be larger.
        """
        leaves = [np.ascontiguousarray(leaf) for leaf in leaves_of(tree) if isinstance(leaf, ndarray)]
        sizes = [-(-leaf.nbytes // ALIGNED_TO) * ALIGNED_TO for leaf in leaves]
        starts, raw = np.cumsum([0, *sizes]).tolist(), self.raw(name, max(sum(sizes), at_most))
        if self.counting:
            return tree
        views = self.uploads.get(name, [])
        if [(a.shape, a.dtype) for a in views] != [(a.shape, a.dtype) for a in leaves]:
            views = self.uploads[name] = [part_of(raw, start, a.shape, a.dtype) for start, a in zip(starts, leaves, strict=False)]
        staged = np.empty(sum(sizes), np.uint8)
        for start, leaf in zip(starts, leaves, strict=False):
            staged[start : start + leaf.nbytes] = leaf.reshape(-1).view(np.uint8)
        if staged.size:
            copy_in(staged, raw[: staged.size])
        lying = iter(views)
        return tree_map(lambda leaf: next(lying) if isinstance(leaf, ndarray) else leaf, tree)

    def growth(self, counted: "Workspace") -> int:
        """Bytes that will be asked for when what has been counted happens in this one."""
        held = {name: raw.nbytes for name, raw in self.memory.items()}
        return sum(max(0, raw.nbytes - held.get(name, 0)) for name, raw in counted.memory.items())

    @property
    def nbytes(self) -> int:
        """All memory held, or counted."""
        return sum(raw.nbytes for raw in self.memory.values())


def part_of(raw: Any, start: int, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    """An array whose memory is that of some bytes from `start` on."""
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return raw[start : start + nbytes].view(dtype).reshape(shape) if nbytes else new_array(shape, dtype)
