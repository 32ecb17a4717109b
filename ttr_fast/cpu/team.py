"""Kernels that all threads work on.

A team kernel is written for one worker: its first two arguments are the worker's number and how many workers there are; the caller leaves both out.
Work is shared out so that no two workers write to one place and no sum depends on their number.

    @team()
    def double(worker, workers, x):
        for i in range(worker, x.size, workers):
            x[i] *= 2

    double(x)

Numba's own parallel loops would compile such a body four times, once for each wrapper it puts around it. Here `drive`, which knows no types, is the
only parallel loop there is: it calls the compiled worker by its address. In between stands a stub for the types of the arguments, which puts them
where all threads can read them.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import get_num_threads, prange, typeof, types
from numba._dispatcher import compute_fingerprint
from numba.core import cgutils
from numba.extending import intrinsic

from ttr_fast.cpu.jit import WITHOUT_WRAPPERS, inner, kernel

ADDRESS = ir.IntType(64)
WORTH_A_WORKER = 1 << 15
"""Bytes of the largest argument for each worker after the first: with fewer, one pass through them is over sooner than two halves are dealt out."""
ENTRY = ir.FunctionType(ir.VoidType(), [ADDRESS] * 3)


@inner("share")
def share(worker, workers, n):
    """(first, end) of this worker's part of n things that lie side by side."""
    return n * worker // workers, n * (worker + 1) // workers


@intrinsic
def enter(typing, entry, worker, workers, arguments):
    """Call the function at the address `entry` with the other three numbers."""

    def generate(context, b, signature, given):
        b.call(b.inttoptr(given[0], ENTRY.as_pointer()), given[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


@kernel("drive", parallel=True)
def drive(entry, workers, arguments):
    """All workers, at once where there are as many threads."""
    for worker in prange(workers):
        enter(entry, np.int64(worker), workers, arguments)


@intrinsic
def in_parallel(typing, driver, body, workers, arguments):
    """Let every worker call the body with the same arguments; True if some worker raised. driver, body: addresses of compiled `drive` and body."""

    def generate(context, b, signature, given):
        convention, kinds, kept = context.call_conv, list(arguments.types), given[3].type
        block_type = ir.LiteralStructType([ADDRESS, ir.IntType(32), kept])
        entry = ir.Function(b.module, ENTRY, name=f"{b.function.name}.entry")
        entry.linkage = "internal"
        e = ir.IRBuilder(entry.append_basic_block())
        block = e.inttoptr(entry.args[2], block_type.as_pointer())
        values = [context.cast(e, n, types.int64, types.int64) for n in entry.args[:2]]
        values += cgutils.unpack_tuple(e, e.load(cgutils.gep_inbounds(e, block, 0, 2)), len(kinds))
        all_kinds = [types.int64, types.int64, *kinds]
        body_type = convention.get_function_type(types.none, all_kinds)
        callee = e.inttoptr(e.load(cgutils.gep_inbounds(e, block, 0, 0)), body_type.as_pointer())
        status, _ = convention.call_function(e, callee, types.none, all_kinds, values)
        with e.if_then(status.is_error):
            e.store(ir.Constant(ir.IntType(32), 1), cgutils.gep_inbounds(e, block, 0, 1))
        e.ret_void()

        here = cgutils.alloca_once(b, block_type)
        b.store(given[1], cgutils.gep_inbounds(b, here, 0, 0))
        b.store(ir.Constant(ir.IntType(32), 0), cgutils.gep_inbounds(b, here, 0, 1))
        b.store(given[3], cgutils.gep_inbounds(b, here, 0, 2))
        driver_type = convention.get_function_type(types.none, [types.int64] * 3)
        addresses = [b.ptrtoint(entry, ADDRESS), given[2], b.ptrtoint(here, ADDRESS)]
        with b.if_else(b.icmp_signed("==", given[2], ir.Constant(ADDRESS, 1))) as (alone, together):
            with alone:
                b.call(entry, [ir.Constant(ADDRESS, 0), given[2], addresses[2]])
            with together:
                convention.call_function(b, b.inttoptr(given[0], driver_type.as_pointer()), types.none, [types.int64] * 3, addresses)
        return b.icmp_unsigned("!=", b.load(cgutils.gep_inbounds(b, here, 0, 1)), ir.Constant(ir.IntType(32), 0))

    return types.boolean(types.int64, types.int64, types.int64, arguments), generate


def address_of(dispatcher: Any, kinds: tuple[Any, ...]) -> int:
    """Where the code compiled for these types starts; compiles it, or takes it from the cache."""
    dispatcher.compile(kinds)
    result = dispatcher.overloads[kinds]
    return int(result.library.get_pointer_to_function(result.fndesc.llvm_func_name))


@functools.cache
def driver_address() -> int:
    """That of `drive`."""
    return address_of(drive, (types.int64,) * 3)


class TeamKernel:
    """What `team` makes of a worker's body: called without the worker's two numbers.

    Arguments that are indexed by worker must have room for numba.get_num_threads() of them.
    """

    def __init__(self, body: Callable[..., Any], variant: object, worth: int | None) -> None:
        def stub(driver, address, workers, *arguments):
            if in_parallel(driver, address, workers, arguments):
                raise RuntimeError("a kernel failed in one of its workers")

        stub.__module__, stub.__qualname__ = body.__module__, f"{body.__qualname__}.stub"
        functools.update_wrapper(self, body)
        name = body.__qualname__
        self.stub = kernel(("stub", name, variant))(stub)
        self.body = kernel(("body", name, variant), **WITHOUT_WRAPPERS)(body)
        self.addresses: dict[bytes, int] = {}
        self.worth = worth

    def __call__(self, *arguments: Any) -> None:
        """All workers, as many as Numba may use threads, fewer where little is to be done; returns when the last is done."""
        types_in_short = compute_fingerprint(arguments)
        address = self.addresses.get(types_in_short)
        if address is None:
            address = address_of(self.body, (types.int64, types.int64, *map(typeof, arguments)))
            self.addresses[types_in_short] = address
        size = max((a.nbytes for a in arguments if isinstance(a, np.ndarray)), default=0)
        self.stub(driver_address(), address, min(get_num_threads(), 1 + size // (self.worth or WORTH_A_WORKER)), *arguments)


def team(variant: object = "", worth: int | None = None) -> Callable[[Callable[..., Any]], TeamKernel]:
    """The decorator; variant: as for `kernel`; worth: bytes of the largest argument for each further worker, WORTH_A_WORKER unless given."""
    return lambda body: TeamKernel(body, variant, worth)
