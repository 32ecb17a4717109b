"""What attention multiplies weights and the gradients of scores by: values, output gradients, queries and keys.

Two of each: numbers in the type of arithmetic, read where they lie, and pairs of bf16 numbers, zipped first (attention_pairs.py).
"""

from typing import Any

from ttr_fast.cpu import simd
from ttr_fast.cpu.attention_operands import Spec, keys_reader, number_checker, taker
from ttr_fast.cpu.attention_pairs import in_words, round_rows, words_have_no_number, zip_rows, zip_weights
from ttr_fast.cpu.attention_tiles import BLOCK
from ttr_fast.cpu.jit import inner
from ttr_fast.cpu.tiles import multiply


def values_adder(spec: Spec) -> Any:
    """How a kernel adds a tile's values."""
    if spec.pairs:
        return paired_values_adder(spec)
    lanes, take, keys_read, has_no_number = spec.lanes, taker(spec), keys_reader(spec), number_checker(spec)

    @inner(spec)
    def add_values(v, at_v, n, skipped, lo, hi, masked, width, weights, values, panel, paired):
        """values += weightsᵀ V. With a mask, numbers that are none may stand where a query does not read: then each row takes its own keys."""
        v, v_at = take(v, at_v, n, width, panel)
        if masked:
            if has_no_number(v, v_at, v_at + n * width):
                for i in range(BLOCK):
                    first, last = max(lo[i], 0), min(hi[i], n - 1)
                    at = v_at + first * width
                    for d in range(0, width, lanes):
                        if first <= last:
                            multiply(last - first + 1, weights, first * BLOCK + i, 1, BLOCK, v, at + d, width, values, i * width + d, width, 1, 1)
                return
            for i in range(0, BLOCK, lanes):
                first, end = keys_read(lo, hi, i, n)
                for d in range(0, width if first < end else 0, lanes):
                    at = v_at + first * width + d
                    multiply(end - first, weights, first * BLOCK + i, 1, BLOCK, v, at, width, values, i * width + d, width, lanes, 1)
            return
        for d in range(0, width, lanes):
            for i in range(0, BLOCK, 16):
                multiply(n, weights, i, 1, BLOCK, v, v_at + d, width, values, i * width + d, width, 16, 1)

    return add_values


def paired_values_adder(spec: Spec) -> Any:
    """The same in pairs of keys by position: the first key stands at place `skipped`, 0 or 1, of its pair."""
    lanes, keys_read = spec.lanes, keys_reader(spec)

    @inner(spec)
    def add_range(first, end, skipped, column, rows, width, paired, zipped, values):
        """Keys first … end − 1 for a vector of queries, or for one."""
        start = (first + skipped) // 2
        count = (end + skipped + 1) // 2 - start
        left, wide = start * BLOCK + column, width // (2 * lanes) * (2 * lanes) if rows == lanes else 0
        for d in range(0, wide, 2 * lanes):
            for i in range(0, lanes, 8):
                at, to = start * width + d, (column + i) * width + d
                multiply(count, paired, left + i, 1, BLOCK, zipped, at, width, values, to, width, 8, 2)
        for d in range(wide, width, lanes):
            at, to = start * width + d, column * width + d
            if rows == lanes:
                multiply(count, paired, left, 1, BLOCK, zipped, at, width, values, to, width, lanes, 1)
            else:
                multiply(count, paired, left, 1, BLOCK, zipped, at, width, values, to, width, 1, 1)

    @inner(spec)
    def add_values(v, v_at, n, skipped, lo, hi, masked, width, weights, values, panel, paired):
        zipped, paired = in_words(panel), in_words(paired)
        if masked and words_have_no_number(in_words(v), v_at // 2, (v_at + n * width) // 2):
            for i in range(BLOCK):
                first, end = max(lo[i], 0), min(hi[i] + 1, n)
                if first < end:
                    zip_rows(v, v_at, first, end, skipped, width, zipped)
                    zip_weights(weights, first, end, skipped, i // lanes * lanes, paired)
                    add_range(first, end, skipped, i, 1, width, paired, zipped, values)
            return
        zip_rows(v, v_at, 0, n, skipped, width, zipped)
        for i in range(0, BLOCK, lanes):
            first, end = keys_read(lo, hi, i, n) if masked else (0, n)
            if first < end:
                zip_weights(weights, first, end, skipped, i, paired)
                add_range(first, end, skipped, i, lanes, width, paired, zipped, values)

    return add_values


def product_adder(spec: Spec) -> Any:
    """How a kernel adds a product over the rows of a tile."""
    lanes, held = spec.lanes, spec.held

    @inner(spec)
    def add_some(rows, row, first, end, left, left_row, left_step, right, right_at, out, out_at, width):
        """Eight rows, or one, over s = first … end − 1; with pairs over those that hold them, in which zeros stand for others."""
        start = first // held
        count = (end + held - 1) // held - start
        at, to, values = row * left_row + start * left_step, out_at + row * width, right_at + start * width
        if first >= end:
            return
        wide = width // (2 * lanes) * (2 * lanes) if rows == 8 else 0
        for d in range(0, wide, 2 * lanes):
            multiply(count, left, at, left_row, left_step, right, values + d, width, out, to + d, width, 8, 2)
        for d in range(wide, width, lanes):
            if rows == 8:
                multiply(count, left, at, left_row, left_step, right, values + d, width, out, to + d, width, 8, 1)
            else:
                multiply(count, left, at, left_row, left_step, right, values + d, width, out, to + d, width, 1, 1)

    @inner(spec)
    def add_product(n, rows, left, left_row, left_step, right, right_at, out, out_at, lo, hi, masked, width):
        """out[r] += Σ_s left[r, s] right[s] for `rows` rows and s < n.

        masked: row r takes s in lo[r] … hi[r], whose bounds grow with r; what lies between these bounds for one of 8 rows holds zeros for the others.
        """
        whole = rows // 8 * 8
        for r in range(0, whole, 8):
            first, end = (max(lo[r], 0), min(hi[r + 7] + 1, n)) if masked else (0, n)
            add_some(8, r, first, end, left, left_row, left_step, right, right_at, out, out_at, width)
        for r in range(whole, rows):
            first, end = (max(lo[r], 0), min(hi[r] + 1, n)) if masked else (0, n)
            add_some(1, r, first, end, left, left_row, left_step, right, right_at, out, out_at, width)

    @inner(spec)
    def add_row(n, r, left, left_row, left_step, right, right_at, out, out_at, lo, hi, width):
        """One row alone."""
        add_some(1, r, max(lo[r], 0), min(hi[r] + 1, n), left, left_row, left_step, right, right_at, out, out_at, width)

    return add_product, add_row


def products_adder(spec: Spec) -> Any:
    """How the backward pass adds the products of one block of queries and one tile of keys to dV, dK and dQ.

    from_queries, from_keys: numbers that are none stand in queries, output gradients or values, or in keys, and reach only what reads them: rows one
    by one. q_panel, do_panel, pairs: scratch, the last three squares.
    """
    if spec.pairs:
        return paired_products_adder(spec)
    lanes, (add_product, add_row) = spec.lanes, product_adder(spec)

    @inner(spec)
    def prepare_keys(k, k_at, n, width, scale, ks):
        """Keys as the product for dQ takes them."""
        for x in range(0, n * width, lanes):
            simd.store(simd.mul(simd.load(k, k_at + x), simd.splat(scale)), ks, x)

    @inner(spec)
    def add_products(rows, n, p, ds, q, do, at, q_block, do_block, at_block, k, k_at, ks, scale, lo, hi, first, last, masked, from_queries, from_keys,
                     dq, dk, dv, width, q_panel, do_panel, pairs):  # fmt: skip
        if from_queries:
            for r in range(n):
                add_row(rows, r, p, 1, BLOCK, do_block, at_block, dv, 0, first, last, width)
                add_row(rows, r, ds, 1, BLOCK, q_block, at_block, dk, 0, first, last, width)
        else:
            add_product(rows, n, p, 1, BLOCK, do_block, at_block, dv, 0, first, last, masked, width)
            add_product(rows, n, ds, 1, BLOCK, q_block, at_block, dk, 0, first, last, masked, width)
        if from_keys:
            for r in range(rows):
                add_row(n, r, ds, BLOCK, 1, ks, 0, dq, at, lo, hi, width)
        else:
            add_product(n, rows, ds, BLOCK, 1, ks, 0, dq, at, lo, hi, masked, width)

    return prepare_keys, add_products


def paired_products_adder(spec: Spec) -> Any:
    """The same in pairs: of queries for dV and dK, of keys for dQ, for which the gradients of scores are scaled before they are rounded."""
    lanes, (add_product, add_row) = spec.lanes, product_adder(spec)

    @inner(spec)
    def prepare_keys(k, k_at, n, width, scale, ks):
        zip_rows(k, k_at, 0, n, 0, width, in_words(ks))

    @inner(spec)
    def add_products(rows, n, p, ds, q, do, at, q_block, do_block, at_block, k, k_at, ks, scale, lo, hi, first, last, masked, from_queries, from_keys,
                     dq, dk, dv, width, q_panel, do_panel, pairs):  # fmt: skip
        left, left_ds, ds_rows = in_words(pairs[0]), in_words(pairs[1]), in_words(pairs[2])
        right, right_q, right_k = in_words(do_panel), in_words(q_panel), in_words(ks)
        for j in range(0, n, lanes):
            begin = min(first[j], rows) // 8 * 8 if masked else 0
            zip_weights(p, begin, rows, 0, j, left)
            zip_weights(ds, begin, rows, 0, j, left_ds)
        round_rows(ds, rows, scale, ds_rows)
        if from_queries:
            for r in range(n):
                begin, end = max(first[r], 0), min(last[r] + 1, rows)
                zip_rows(do, at, begin, end, 0, width, right)
                zip_rows(q, at, begin, end, 0, width, right_q)
                add_row(rows, r, left, 1, BLOCK, right, 0, dv, 0, first, last, width)
                add_row(rows, r, left_ds, 1, BLOCK, right_q, 0, dk, 0, first, last, width)
        else:
            zip_rows(do, at, 0, rows, 0, width, right)
            zip_rows(q, at, 0, rows, 0, width, right_q)
            add_product(rows, n, left, 1, BLOCK, right, 0, dv, 0, first, last, masked, width)
            add_product(rows, n, left_ds, 1, BLOCK, right_q, 0, dk, 0, first, last, masked, width)
        if from_keys:
            for r in range(rows):
                zip_rows(k, k_at, max(lo[r], 0), min(hi[r] + 1, n), 0, width, right)
                add_row(n, r, ds_rows, BLOCK // 2, 1, right, 0, dq, at, lo, hi, width)
        else:
            add_product(n, rows, ds_rows, BLOCK // 2, 1, right_k, 0, dq, at, lo, hi, masked, width)

    return prepare_keys, add_products
