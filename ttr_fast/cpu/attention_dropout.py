"""Dropout's mask of a tile of attention weights, drawn where it is used; what is drawn is said in ttr_ref/dropout.py.

One call of the generator serves four neighbouring keys of one query. The forward's lanes are queries: four words are four rows. The backward's lanes
are keys: sixteen lanes are 4 groups of keys × 4 queries, and a 4 × 4 transposition in each quarter puts the words in their rows.

`draw` holds, as uint32, what does not change within a head: threshold round(p · 2³²), document · H + head, site, seed, step.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ttr_fast.cpu.philox import I32, I64, emit_philox, everywhere
from ttr_fast.cpu.simd import item_pointer

LANES = 16
THRESHOLD, THIRD, SITE, SEED, STEP = range(5)


def emit_words(context, b, draw_type, draw, groups, rows):
    """Four vectors of words; groups, rows: vectors of the counters that differ from lane to lane."""

    def told(index):
        return b.load(item_pointer(context, b, draw_type, draw, ir.Constant(I64, index)))

    counters = [groups, rows, everywhere(b, told(THIRD), LANES), everywhere(b, told(SITE), LANES)]
    return emit_philox(b, counters, (told(SEED), told(STEP)), LANES), everywhere(b, told(THRESHOLD), LANES)


def emit_kept(context, b, words, threshold, factor, mask_type, mask, at, stride):
    """Store factor where a word is not below the threshold, else 0: one row of LANES numbers for each vector of words."""
    vector = ir.VectorType(factor.type, LANES)
    kept, dropped = everywhere(b, factor, LANES), ir.Constant(vector, [0.0] * LANES)
    for row, word in enumerate(words):
        pointer = item_pointer(context, b, mask_type, mask, b.add(at, ir.Constant(I64, row * stride)))
        value = b.select(b.icmp_unsigned(">=", word, threshold), kept, dropped)
        b.store(value, b.bitcast(pointer, vector.as_pointer()), align=8 if isinstance(factor.type, ir.DoubleType) else 4)


def counting(b, start, steps):
    """start + steps[lane] for an i64 start, as i32."""
    return b.add(everywhere(b, b.trunc(start, I32), LANES), ir.Constant(ir.VectorType(I32, LANES), steps))


@intrinsic(prefer_literal=True)
def draw_by_key(typing, mask, at, stride, group, query, draw, factor):
    """Four rows (keys 4·group … 4·group + 3) of LANES queries from position `query` on."""

    def generate(context, b, signature, arguments):
        m, to, _, g, q, d, f = arguments
        groups, rows = counting(b, g, [0] * LANES), counting(b, q, list(range(LANES)))
        words, threshold = emit_words(context, b, draw, d, groups, rows)
        emit_kept(context, b, words, threshold, f, mask, m, to, stride.literal_value)
        return context.get_dummy_value()

    return types.void(mask, at, stride, group, query, draw, factor), generate


@intrinsic(prefer_literal=True)
def draw_by_query(typing, mask, at, stride, group, query, draw, factor):
    """Four rows (queries from position `query` on) of LANES keys from 4·group on."""

    def generate(context, b, signature, arguments):
        m, to, _, g, q, d, f = arguments
        groups, rows = counting(b, g, [lane // 4 for lane in range(LANES)]), counting(b, q, [lane % 4 for lane in range(LANES)])
        (w0, w1, w2, w3), threshold = emit_words(context, b, draw, d, groups, rows)

        def chosen(x, y, quarter):
            lanes = [4 * (lane // 4) + place for lane in range(0, LANES, 4) for place in quarter]
            return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, LANES), lanes))

        # places 0-3 of a quarter are x's, 16-19 are y's
        pairs = [(chosen(x, y, (0, 16, 1, 17)), chosen(x, y, (2, 18, 3, 19))) for x, y in ((w0, w1), (w2, w3))]
        words = [chosen(pairs[0][half], pairs[1][half], quarter) for half in (0, 1) for quarter in ((0, 1, 16, 17), (2, 3, 18, 19))]
        emit_kept(context, b, words, threshold, f, mask, m, to, stride.literal_value)
        return context.get_dummy_value()

    return types.void(mask, at, stride, group, query, draw, factor), generate
