"""Attention's operands in pairs of bf16 numbers, for CPUs with AVX512-BF16: one instruction multiplies and adds two.

    packed for lanes     (width / 2, BLOCK)    the features 2x and 2x + 1 of each row
    rows as they lie     (n, width / 2)        the same, broadcast one after the other
    zipped               (n / 2, width)        rows 2t and 2t + 1, for sums over rows; if one is not there, the other twice, and its weight is 0

The forward pass zips keys by position, so that decoding, which has them one by one, forms the same sums. Weights and the gradients of scores are
rounded to bf16 before they are multiplied; sums, softmax and references stay in float32.
"""


import numpy as np
from numba import types
from numba.extending import intrinsic

from ttr_fast.cpu import simd
from ttr_fast.cpu.attention_tiles import BLOCK
from ttr_fast.cpu.jit import inner
from ttr_fast.cpu.panels import shuffled, turned
from ttr_fast.cpu.simd import I16, I32, Emitter, item_pointer, vector_at
from ttr_fast.cpu.tiles import offset

LANES = 16
ZIPPED = [start for i in range(LANES) for start in (i, LANES + i)]


@intrinsic
def turned_words(typing, a, at, stride, panel, to):
    """panel[to + x · BLOCK + i] = a[at + i · stride + x] for 16 rows i of 8 words x."""

    def generate(context, b, signature, arguments):
        e = Emitter(context, b, types.float32)
        source, target = item_pointer(context, b, a, *arguments[:2]), item_pointer(context, b, panel, *arguments[3:])
        rows = [vector_at(b, offset(e, source, (arguments[2], i)), I32, LANES // 2) for i in range(LANES)]
        for x, v in enumerate(turned(b, rows)):
            place = offset(e, target, (x // 2, BLOCK), (x % 2, LANES // 2))
            b.store(v, b.bitcast(place, v.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(a, types.intp, types.intp, panel, types.intp), generate


@intrinsic
def zip_numbers(typing, a, even, odd, panel, to):
    """16 words of the panel from the bf16 numbers a[even …] and a[odd …]."""

    def generate(context, b, signature, arguments):
        source, at_even, at_odd, target, place = arguments
        halves = [vector_at(b, item_pointer(context, b, a, source, at), I16, LANES) for at in (at_even, at_odd)]
        words = shuffled(b, *halves, ZIPPED)
        pointer = item_pointer(context, b, panel, target, place)
        b.store(words, b.bitcast(pointer, words.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(a, types.intp, types.intp, panel, types.intp), generate


@intrinsic
def zip_vectors(typing, even, odd, panel, at):
    """16 words of the panel from two vectors, rounded."""

    def generate(context, b, signature, arguments):
        low, high, target, place = arguments
        both = Emitter(context, b, types.float32).both_to_bf16(low, high)
        words = shuffled(b, both, both, ZIPPED)
        pointer = item_pointer(context, b, panel, target, place)
        b.store(words, b.bitcast(pointer, words.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(even, odd, panel, types.intp), generate


@intrinsic
def round_vectors(typing, low, high, panel, at):
    """16 words of the panel from 32 neighbouring numbers, rounded."""

    def generate(context, b, signature, arguments):
        first, second, target, place = arguments
        both = Emitter(context, b, types.float32).both_to_bf16(first, second)
        pointer = item_pointer(context, b, panel, target, place)
        b.store(both, b.bitcast(pointer, both.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(low, high, panel, types.intp), generate


@inner("in words")
def in_words(a):
    """The same memory, two bf16 numbers in each item."""
    return a.view(np.uint32)


@inner("turn pairs")
def turn_pairs(a, at, n, width, factor, spare, panel):
    """Panel (width / 2, BLOCK) of n rows, zeros behind them; as attention_forward.panel_turner, but nothing is multiplied by the factor."""
    half, source, start = width // 2, in_words(a), at // 2
    if n < BLOCK:
        source, start = in_words(spare)[: BLOCK * half], 0
        source[:] = 0
        source[: n * half] = in_words(a)[at // 2 : at // 2 + n * half]
    for i in range(0, BLOCK, LANES):
        for x in range(0, half, LANES // 2):
            turned_words(source, start + i * half + x, half, panel, x * BLOCK + i)


@inner("zip rows")
def zip_rows(a, at, first, end, skipped, width, panel):
    """Zip the rows first … end − 1 of bf16 numbers; row j stands at place j + skipped, and its pair in the panel is half of that.

    Others are not even multiplied by 0: they may be no numbers.
    """
    for t in range((first + skipped) // 2, (end + skipped + 1) // 2):
        even, odd = 2 * t - skipped, 2 * t + 1 - skipped
        from_even, from_odd = at + (even if even >= first else odd) * width, at + (odd if odd < end else even) * width
        for d in range(0, width, LANES):
            zip_numbers(a, from_even + d, from_odd + d, panel, t * width + d)


@inner("zip weights")
def zip_weights(weights, first, end, skipped, column, panel):
    """The same for a vector of columns of float32 rows of BLOCK numbers, with 0 for others."""
    for t in range((first + skipped) // 2, (end + skipped + 1) // 2):
        even, odd = 2 * t - skipped, 2 * t + 1 - skipped
        low = high = simd.splat(np.float32(0))
        if even >= first:
            low = simd.load(weights, even * BLOCK + column)
        if odd < end:
            high = simd.load(weights, odd * BLOCK + column)
        zip_vectors(low, high, panel, t * BLOCK + column)


@inner("round rows")
def round_rows(a, n, factor, panel):
    """Panel (n, BLOCK / 2) = factor · n rows of BLOCK float32 numbers."""
    scale = simd.splat(factor)
    for x in range(0, n * BLOCK, 2 * LANES):
        round_vectors(simd.mul(simd.load(a, x), scale), simd.mul(simd.load(a, x + LANES), scale), panel, x // 2)


@inner("words have no number")
def words_have_no_number(words, first, end):
    """Whether a bf16 number among words[first … end − 1] is infinite or none."""
    spoiled, low, high = False, np.uint32(0x7F80), np.uint32(0x7F800000)
    for i in range(first, end):
        spoiled |= (words[i] & low == low) | (words[i] & high == high)
    return spoiled
