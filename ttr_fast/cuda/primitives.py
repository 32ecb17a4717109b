"""What tensor cores and copies in the background are asked in PTX, the assembly language of NVIDIA's GPUs; no other file knows it.

On a device each function is one instruction. In the simulator it is a model of that instruction, lane by lane: the 32 lanes of a warp have to come to
the same line of the kernel, or a SimulationError says which did. Storages are the 16-bit ones, int16 for f16 and uint16 for bf16, and `like` is any
array of the storage that is meant. A pair is two neighbours in one uint32, the first in the lower half.

    mma               D = A B + C on tensor cores, m16n8k16: 16-bit factors, float32 sums
    ldmatrix          four 8 × 8 matrices of 16-bit items from shared memory into such factors; ldmatrix_trans turns each
    copy_async        16 bytes from global to shared memory in the background, or zeros
    commit_copies     makes a group of the thread's copies since the last
    wait_copies       until at most so many of the thread's groups are under way
    pair              two float32, rounded to nearest, even
    load_pair         two items beside each other of an array of any storage but float64, as float32
    store_pair        the way back, rounded as `pair` does
    exp2              2ˣ, relative error 2⁻²² at most; results below 2⁻¹²⁶ are 0
    shuffle_xor       the value of the lane whose number differs by these bits
    sync_warp         until all lanes of the warp are here, and see what each has written to shared memory; `warp` is its number, below MOST_WARPS
    unknown           the same integer, of which the compiler knows nothing: what depends on it is neither unrolled nor kept from one step to the next

Fragments of `mma`, with row = lane // 4 and at = 2 · (lane % 4); a pair is two columns of A, two rows of B, as are the neighbours c0 and c1:

    A (16, 16)   a0 [row, at]   a1 [row + 8, at]   a2 [row, at + 8]   a3 [row + 8, at + 8]
    B (16, 8)    b0 [at, row]   b1 [at + 8, row]
    C, D         c0 [row, at]   c1 [row, at + 1]   c2 [row + 8, at]   c3 [row + 8, at + 1]

Matrix m of `ldmatrix` is the rows that lanes 8 m … 8 m + 7 point to, and of its pairs each lane has [lane // 4, 2 · (lane % 4)], which is how A lies,
and Bᵀ.

How the model may differ. It multiplies exactly and adds 16 products one after the other, rounding to nearest, then C. A device aligns the products of
a step to the largest and cuts what is below, in an order of its own: allow each of K + 1 terms an error of a whole eps of float32 and not half of it.
Its copies may arrive at any time between `copy_async` and `wait_copies`; the model's leave NaN behind and arrive at the end.

A tile that `ldmatrix` reads and `copy_async` writes is made with `alignment=16`.

Source: NVIDIA, Parallel Thread Execution ISA: mma.sync.m16n8k16, ldmatrix, cp.async, ex2.approx, cvt, bar.sync; all of them from sm_80 on.
"""

from functools import partial

import numpy as np

from ttr_fast.cuda.found import LANES
from ttr_fast.cuda.jit import SIMULATED, cuda

MOST_WARPS = 15
"""Warps that have a barrier of their own: a block has 16, of which `cuda.syncthreads` takes one."""

if SIMULATED:
    from ttr_fast.cuda.numbers import STORED
    from ttr_fast.cuda.simulator import SimulationError, meet, running

    LANE = np.arange(LANES)
    NOT_A_NUMBER = {"int16": 0x7FFF, "uint16": 0xFFFF}
    ROW, AT = LANE[:, None] // 4, 2 * (LANE[:, None] % 4) + np.arange(2)

    def mma(like, c0, c1, c2, c3, a0, a1, a2, a3, b0, b1):
        """c0 … c3, and the product of A and B added to them."""
        return meet(((c0, c1, c2, c3), (a0, a1, a2, a3, b0, b1)), partial(products, like.dtype))

    def products(storage, lanes):
        """D's fragments of all lanes."""
        pairs = np.array([factors for _, factors in lanes], np.uint32).view(STORED[storage.name]).astype(np.float32).reshape(LANES, 6, 2)
        a, b, d = np.empty((16, 16), np.float32), np.empty((16, 8), np.float32), np.empty((16, 8), np.float32)
        for n in range(4):
            a[ROW + 8 * (n % 2), AT + 8 * (n // 2)] = pairs[:, n]
        for n in range(2):
            b[AT + 8 * n, ROW] = pairs[:, 4 + n]
            d[ROW + 8 * n, AT] = [sums[2 * n : 2 * n + 2] for sums, _ in lanes]
        d += np.add.reduce(a[:, :, None] * b, axis=1)
        return [tuple(four) for four in np.hstack((d[ROW, AT], d[ROW + 8, AT]))]

    def ldmatrix(tile, at):
        """This lane's pairs of four matrices; at: the item of tile, a shared array, where its row of 8 starts."""
        return meet(aligned(tile, at), partial(matrices, False))

    def ldmatrix_trans(tile, at):
        """The same, of each matrix turned."""
        return meet(aligned(tile, at), partial(matrices, True))

    def matrices(turned, rows):
        """The pairs of all lanes."""
        four = np.array(rows).view(np.uint16).reshape(4, 8, 8)
        laid = np.ascontiguousarray(four.swapaxes(1, 2) if turned else four)
        return [tuple(pairs) for pairs in laid.reshape(4, LANES, 2).view(np.uint32)[..., 0].T]

    def eight(array, at):
        """16 bytes of a contiguous array of 16-bit items."""
        items = array.reshape(-1)[at : at + 8]
        if at % 8 or len(items) < 8 or items.dtype.itemsize != 2 or not np.shares_memory(items, array):
            raise SimulationError(f"no 16 bytes to be read at once at item {at} of {array.size} of {array.dtype}")
        return items

    def aligned(tile, at):
        """The same of shared memory, at an address that is a multiple of 16."""
        items = eight(tile, at)
        if items.ctypes.data % 16:
            raise SimulationError("a shared array of which 16 bytes are moved at once has to be made with alignment=16")
        return items

    def copy_async(tile, at, array, item, inside):
        """array's 8 items from `item` on, counted in its own order, to tile's from `at` on; zeros if not inside."""
        into = aligned(tile, at)
        source = eight(array, item) if inside else 0
        into[:] = NOT_A_NUMBER[into.dtype.name]

        def arrive():
            into[:] = source

        running().current.copies[-1].append(arrive)

    def commit_copies():
        """A group of the thread's copies since the last."""
        running().current.copies.append([])

    def wait_copies(under_way):
        """Until at most that many groups of the thread are under way; a constant."""
        groups = running().current.copies
        while len(groups) - 1 > under_way:
            for arrive in groups.pop(0):
                arrive()

    def pair(like, first, second):
        """Two float32 as a pair of the storage."""
        return np.array([first, second], np.float32).astype(STORED[like.dtype.name]).view(np.uint32)[0]

    def two(array, item):
        """Two items of a contiguous array as what they are."""
        if item % 2:
            raise SimulationError(f"no pair starts at item {item}")
        items = array.reshape(-1)[item : item + 2]
        return items.view(STORED[array.dtype.name]) if array.dtype.itemsize == 2 else items

    def load_pair(array, item):
        """array's items `item`, which is even, and the next; array: contiguous, of float32 or 16 bits."""
        first, second = two(array, item).astype(np.float32)
        return first, second

    def store_pair(first, second, array, item):
        """Two float32 to where `load_pair` has them from."""
        two(array, item)[:] = first, second

    def exp2(x):
        """2ˣ."""
        y = np.exp2(np.float32(x))
        return np.float32(0) if y < np.float32(2.0**-126) else y

    def shuffle_xor(value, bits):
        """The value of lane ^ bits."""
        return meet(value, lambda values: [values[lane ^ bits] for lane in range(LANES)])

    def sync_warp(warp):
        """Wait for the other lanes."""
        if warp != running().current.index.x // LANES or warp >= MOST_WARPS:
            raise SimulationError(f"warp {warp} has no barrier, or it is not this thread's")
        meet(None, lambda values: values)

    def unknown(value):
        """The same integer."""
        return value

else:
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.cuda.extending import intrinsic

    I16, I32, I64, F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
    NAMES = {types.int16: "f16", types.uint16: "bf16"}
    FOUR = types.UniTuple(types.uint32, 4)

    def assembly(b, result, arguments, text, constraints, effect=True, warp=False):
        """A call of one instruction. warp: all lanes have to be there, so that the compiler may not move it into a branch."""
        kind = ir.FunctionType(result, [a.type for a in arguments])
        return b.call(ir.InlineAsm(kind, text, constraints, side_effect=effect), arguments, attrs=("convergent",) if warp else ())

    def tuple_of(context, b, struct, kind):
        """The tuple that Numba knows of what an instruction returns."""
        return context.make_tuple(b, kind, [b.extract_value(struct, i) for i in range(4)])

    def address_of(context, b, kind, array, index, index_kind):
        """The address of an item, counted in the array's own order."""
        data = cgutils.create_struct_proxy(kind)(context, b, array).data
        return b.gep(data, [context.cast(b, index, index_kind, types.int64)])

    def shared_address_of(context, b, kind, array, index, index_kind):
        """The address within shared memory, in 32 bits."""
        data = cgutils.create_struct_proxy(kind)(context, b, array).data
        start = b.ptrtoint(b.addrspacecast(data, data.type.pointee.as_pointer(3)), I32)
        return b.add(start, b.shl(context.cast(b, index, index_kind, types.int32), ir.Constant(I32, 1)))

    @intrinsic
    def mma(typing, like, c0, c1, c2, c3, a0, a1, a2, a3, b0, b1):
        """c0 … c3, and the product of A and B added to them."""
        name, sums = NAMES[like.dtype], types.UniTuple(types.float32, 4)

        def generate(context, b, signature, arguments):
            text = f"mma.sync.aligned.m16n8k16.row.col.f32.{name}.{name}.f32 {{$0,$1,$2,$3}}, {{$4,$5,$6,$7}}, {{$8,$9}}, {{$10,$11,$12,$13}};"
            result = ir.LiteralStructType([F32] * 4)
            d = assembly(b, result, [*arguments[5:], *arguments[1:5]], text, "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f", effect=False, warp=True)
            return tuple_of(context, b, d, sums)

        return sums(like, *[types.float32] * 4, *[types.uint32] * 6), generate

    def loaded(suffix):
        """What makes ldmatrix."""

        def generate(context, b, signature, arguments):
            address = shared_address_of(context, b, signature.args[0], *arguments, signature.args[1])
            text = f"ldmatrix.sync.aligned.m8n8.x4{suffix}.shared.b16 {{$0,$1,$2,$3}}, [$4];"
            pairs = assembly(b, ir.LiteralStructType([I32] * 4), [address], text, "=r,=r,=r,=r,r,~{memory}", warp=True)
            return tuple_of(context, b, pairs, FOUR)

        return generate

    @intrinsic
    def ldmatrix(typing, tile, at):
        """This lane's pairs of four matrices; at: the item of tile, a shared array, where its row of 8 starts."""
        return FOUR(tile, at), loaded("")

    @intrinsic
    def ldmatrix_trans(typing, tile, at):
        """The same, of each matrix turned."""
        return FOUR(tile, at), loaded(".trans")

    @intrinsic
    def copy_async(typing, tile, at, array, item, inside):
        """array's 8 items from `item` on, counted in its own order, to tile's from `at` on; zeros if not inside."""

        def generate(context, b, signature, arguments):
            into, at, array, item, inside = arguments
            tile_kind, at_kind, kind, item_kind, _ = signature.args
            somewhere = b.select(inside, item, ir.Constant(item.type, 0))  # an address that exists, though nothing is read there
            source = b.ptrtoint(address_of(context, b, kind, array, somewhere, item_kind), I64)
            size = b.select(inside, ir.Constant(I32, 16), ir.Constant(I32, 0))
            address = shared_address_of(context, b, tile_kind, into, at, at_kind)
            assembly(b, ir.VoidType(), [address, source, size], "cp.async.cg.shared.global [$0], [$1], 16, $2;", "r,l,r,~{memory}")
            return context.get_dummy_value()

        return types.void(tile, at, array, item, types.boolean), generate

    @intrinsic
    def commit_copies(typing):
        """A group of the thread's copies since the last."""

        def generate(context, b, signature, arguments):
            assembly(b, ir.VoidType(), [], "cp.async.commit_group;", "~{memory}")
            return context.get_dummy_value()

        return types.void(), generate

    @intrinsic
    def wait_copies(typing, under_way):
        """Until at most that many groups of the thread are under way; a constant."""
        if not hasattr(under_way, "literal_value"):
            return None  # and Numba asks again, with the constant's type

        def generate(context, b, signature, arguments):
            assembly(b, ir.VoidType(), [], f"cp.async.wait_group {under_way.literal_value};", "~{memory}")
            return context.get_dummy_value()

        return types.void(under_way), generate

    def packed(b, name, first, second):
        """Two float32 as a pair."""
        return assembly(b, I32, [second, first], f"cvt.rn.{name}x2.f32 $0, $1, $2;", "=r,f,f", effect=False)

    @intrinsic
    def pair(typing, like, first, second):
        """Two float32 as a pair of the storage."""
        name = NAMES[like.dtype]

        def generate(context, b, signature, arguments):
            return packed(b, name, *arguments[1:])

        return types.uint32(like, types.float32, types.float32), generate

    def float_of(b, name, bits):
        """An item of 16 bits as a float32."""
        if name == "f16":
            return b.fpext(b.bitcast(bits, ir.HalfType()), F32)
        return b.bitcast(b.shl(b.zext(bits, I32), ir.Constant(I32, 16)), F32)

    @intrinsic
    def load_pair(typing, array, item):
        """array's items `item`, which is even, and the next; array: contiguous, of float32 or 16 bits."""
        name, two = NAMES.get(array.dtype), types.UniTuple(types.float32, 2)

        def generate(context, b, signature, arguments):
            kind = ir.VectorType(I16 if name else F32, 2)
            address = address_of(context, b, signature.args[0], *arguments, signature.args[1])
            pair = b.load(b.bitcast(address, kind.as_pointer()), align=4 if name else 8)
            items = [b.extract_element(pair, ir.Constant(I32, place)) for place in range(2)]
            return context.make_tuple(b, two, [float_of(b, name, x) for x in items] if name else items)

        return two(array, item), generate

    @intrinsic
    def store_pair(typing, first, second, array, item):
        """Two float32 to where `load_pair` has them from."""
        name = NAMES.get(array.dtype)

        def generate(context, b, signature, arguments):
            first, second, into, item = arguments
            address = address_of(context, b, signature.args[2], into, item, signature.args[3])
            if name:
                value = packed(b, name, first, second)
            else:
                value = ir.Constant(ir.VectorType(F32, 2), ir.Undefined)
                for place, x in enumerate((first, second)):
                    value = b.insert_element(value, x, ir.Constant(I32, place))
            b.store(value, b.bitcast(address, value.type.as_pointer()), align=4 if name else 8)
            return context.get_dummy_value()

        return types.void(types.float32, types.float32, array, item), generate

    @intrinsic
    def exp2(typing, x):
        """2ˣ."""

        def generate(context, b, signature, arguments):
            return assembly(b, F32, arguments, "ex2.approx.ftz.f32 $0, $1;", "=f,f", effect=False)

        return types.float32(types.float32), generate

    @intrinsic
    def unknown(typing, value):
        """The same integer."""

        def generate(context, b, signature, arguments):
            return assembly(b, I64, arguments, "mov.u64 $0, $1;", "=l,l")

        return types.int64(types.int64), generate

    @intrinsic
    def sync_warp(typing, warp):
        """Wait for the other lanes. A barrier of the warp's own: `bar.warp.sync` may become a call, for which registers have to be kept free."""

        def generate(context, b, signature, arguments):
            barrier = b.add(context.cast(b, arguments[0], signature.args[0], types.int32), ir.Constant(I32, 1))
            assembly(b, ir.VoidType(), [barrier], f"bar.sync $0, {LANES};", "r,~{memory}", warp=True)
            return context.get_dummy_value()

        return types.void(warp), generate

    @cuda.jit(device=True)
    def shuffle_xor(value, bits):
        """The value of lane ^ bits."""
        return cuda.shfl_xor_sync(0xFFFFFFFF, value, bits)
