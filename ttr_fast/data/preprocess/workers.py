"""Jobs in several processes: results in order, progress while they run, no process left behind."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any, TypeVar

from ...errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")
Advance = Callable[[int, int], None]
"""Called with bytes and rows that are done."""
POLL_SECONDS = 0.1


def run_all(task: Callable[[Job, Advance], Result], jobs: Sequence[Job], workers: int, advance: Advance) -> Iterator[Result]:
    """The result of each job, in order, once all are done. The first error ends all of them."""
    if workers == 1 or len(jobs) < 2:
        yield from [task(job, advance) for job in jobs]
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit the threads of whatever library the caller uses
    counters = context.Array("q", 2)
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _start, (counters,))
    try:
        futures = [pool.submit(_call, task, job) for job in jobs]
        _watch(futures, counters, advance)
        yield from [future.result() for future in futures]
        pool.shutdown()
    except BrokenProcessPool as error:
        raise UserError("a worker was killed, perhaps for want of memory; fewer --workers take less") from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()


def _watch(futures: Sequence[Future[Any]], counters: Any, advance: Advance) -> None:
    """Until all are done, or one has failed, whose error is raised."""
    pending, told = set(futures), (0, 0)
    while pending:
        done, pending = wait(pending, POLL_SECONDS, FIRST_EXCEPTION)
        now = tuple(counters)
        advance(now[0] - told[0], now[1] - told[1])
        told = now
        for future in done:
            future.result()


_counters: Any = None


def _start(counters: Any) -> None:
    """In a new worker. Ctrl-C is for the parent, which ends its workers; if the parent is killed, nobody waits for them."""
    global _counters  # noqa: PLW0603
    _counters = counters
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each worker has a core of its own


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _call(task: Callable[[Job, Advance], Result], job: Job) -> Result:
    return task(job, _advance)


def _advance(size: int, rows: int) -> None:
    with _counters.get_lock():
        _counters[0] += size
        _counters[1] += rows
