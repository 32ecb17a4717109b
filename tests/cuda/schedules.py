"""Kernels have to give the same bits in whatever order their threads run."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from hypothesis import strategies as st
from numpy import ndarray

from ttr_fast.cuda.jit import SIMULATED


def in_every_schedule(run: Callable[[], tuple[ndarray, ...]]) -> tuple[ndarray, ...]:
    """The results, which are the same bits in all schedules of the simulator; on a device, in three runs."""
    if SIMULATED:
        from ttr_fast.cuda.simulator import SCHEDULES, schedule

        results = []
        for name in SCHEDULES:
            with schedule(name):
                results.append(run())
    else:
        results = [run() for _ in range(3)]
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert a.tobytes() == b.tobytes()
    return results[0]


def in_any_schedule(data: st.DataObject) -> AbstractContextManager[None]:
    """Where one run has to do: one of them, drawn."""
    if not SIMULATED:
        return nullcontext()
    from ttr_fast.cuda.simulator import SCHEDULES, schedule

    return schedule(data.draw(st.sampled_from(SCHEDULES)))


def in_reverse() -> AbstractContextManager[None]:
    """The order that is farthest from the usual one."""
    if not SIMULATED:
        return nullcontext()
    from ttr_fast.cuda.simulator import schedule

    return schedule("reverse")
