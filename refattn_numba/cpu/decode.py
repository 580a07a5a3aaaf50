"""A few queries against long caches, on CPU cores: every cached number is read once, in the type in which it is stored.

A task is a span of positions of one sequence and one key head. Its positions pass in blocks that stay in the first-level cache:
codes are turned into numbers there, and all query heads of the group read them. What the spans of a sequence give is
merged by their maxima and sums.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from refattn._core import Array, Integers
from refattn_numba.cpu.jit import EXACT, compiled, kernel, reordered
from refattn_numba.cpu.plain.exponential import exp, tanh
from refattn_numba.cpu.prefetch import LINE, prefetch
from refattn_numba.cpu.sizes import larger, smaller

BLOCK = 64  # positions whose keys and values are held as numbers


class Stored(NamedTuple):
    """A pool of pages as it lies in memory, and what its codes are multiplied by.

    Attributes
    ----------
    codes : array, shape (n)
        All of it, in its own type; bit patterns of a type that the compiler does not know, as integers.
    kind : int
        What the bits mean: a type that the compiler knows, or one of the small floating formats.
    page_step, head_step, row_step : int
        Elements from one page, head or position to the next; features lie side by side.
    factors : array, shape (m)
        Numbers for the codes.
    factor_page, factor_head, factor_row, factor_step : int
        The same steps among them, and from one feature to the next; 0 along an axis that has one for all.
    """

    codes: Any
    kind: int
    page_step: int
    head_step: int
    row_step: int
    factors: Array
    factor_page: int
    factor_head: int
    factor_row: int
    factor_step: int


NUMBER, BFLOAT16, FLOAT16, E4M3FN, E5M2 = range(5)


class Spans(NamedTuple):
    """What each task reads: of which sequence and head, from which position to which."""

    sequence: Integers
    head: Integers
    first: Integers
    end: Integers


class Reach(NamedTuple):
    """Positions that each query of each sequence may attend to: from `first` to before `end`."""

    first: Integers
    end: Integers


class Parts(NamedTuple):
    """What each task gives: for all rows of the group the weighted sums, largest scores and sums of exponentials."""

    sums: Array
    largest: Array
    total: Array


@kernel
def decode(
    query: Array,
    keys: Stored,
    values: Stored,
    table: Integers,
    page_size: int,
    spans: Spans,
    reach: Reach,
    cap: Any,
    parts: Parts,
    share: int,
    shares: int,
) -> None:
    """Fill `parts`. A row of `query` (sequence, key head, row, feature) is one query of one head: all heads' first, then second."""
    heads_and_queries, head_dim = query.shape[2:]
    queries, value_dim = reach.first.shape[1], parts.sums.shape[2]
    group = heads_and_queries // queries
    key_block, value_block = np.empty((BLOCK, head_dim), query.dtype), np.empty((BLOCK, value_dim), query.dtype)
    weights = np.empty((heads_and_queries, BLOCK), query.dtype)
    for task in range(share, spans.head.size, shares):
        sequence, head, end = spans.sequence[task], spans.head[task], spans.end[task]
        rows, sums, largest, total = query[sequence, head], parts.sums[task], parts.largest[task], parts.total[task]
        sums[:], largest[:], total[:] = 0, -np.inf, 0
        at = spans.first[task]
        while at < end:
            page, offset = table[sequence, at // page_size], at % page_size
            count = smaller(smaller(BLOCK, page_size - offset), end - at)
            load_numbers(keys, page, head, offset, count, key_block)
            load_numbers(values, page, head, offset, count, value_block)
            multiply_rows(rows, key_block, weights, count, keys, values, place(keys, page, head, offset), place(values, page, head, offset))
            for r in range(heads_and_queries):
                row, i = weights[r], r // group
                first = smaller(larger(reach.first[sequence, i] - at, 0), count)
                last = smaller(larger(reach.end[sequence, i] - at, first), count)
                if cap > 0:
                    for t in range(first, last):
                        row[t] = cap * tanh(row[t] / cap)
                row[:first], row[last:count] = -np.inf, -np.inf
                total[r], largest[r], decay = weigh(row[:count], total[r], largest[r])
                add_rows(row, value_block, sums[r], decay, first, last)
            at += count


@compiled
def weigh(row: Array, total: Any, largest: Any) -> tuple[Any, Any, Any]:
    """Scores become weights relative to the largest so far; also what earlier sums are multiplied by to be so too."""
    peak = largest
    for t in range(row.size):
        peak = larger(row[t], peak)
    shift = peak if peak > -np.inf else row.dtype.type(0)
    added = row.dtype.type(0)
    for t in range(row.size):
        row[t] = exp(row[t] - shift)
    for t in range(row.size):
        added += row[t]
    decay = exp(largest - shift)
    return total * decay + added, peak, decay


@reordered
def multiply_rows(rows: Array, block: Array, products: Array, count: int, keys: Stored, values: Stored, key_at: Any, value_at: Any) -> None:
    """Inner products of each row with the first rows of `block`: four rows at a time, as long as there are four.

    Meanwhile the next block is fetched, of the keys and of the values.
    """
    whole = rows.shape[0] // 4 * 4
    zero = rows.dtype.type(0)
    for t in range(count):
        fetch(keys, key_at + (BLOCK + t) * keys.row_step, block.shape[1])
        fetch(values, value_at + (BLOCK + t) * values.row_step, block.shape[1])
        line = block[t]
        for r in range(0, whole, 4):
            row0, row1, row2, row3 = rows[r], rows[r + 1], rows[r + 2], rows[r + 3]
            sum0, sum1, sum2, sum3 = zero, zero, zero, zero
            for d in range(line.size):
                sum0 += row0[d] * line[d]
                sum1 += row1[d] * line[d]
                sum2 += row2[d] * line[d]
                sum3 += row3[d] * line[d]
            products[r, t], products[r + 1, t], products[r + 2, t], products[r + 3, t] = sum0, sum1, sum2, sum3
        for r in range(whole, rows.shape[0]):
            row, one = rows[r], zero
            for d in range(line.size):
                one += row[d] * line[d]
            products[r, t] = one


@reordered
def add_rows(weights: Array, block: Array, sums: Array, decay: Any, first: int, last: int) -> None:
    """``sums * decay + weights[first:last] @ block[first:last]``, four rows of `block` at a time."""
    if decay != 1:
        for d in range(sums.size):
            sums[d] *= decay
    whole = first + (last - first) // 4 * 4
    for t in range(first, whole, 4):
        line0, line1, line2, line3 = block[t], block[t + 1], block[t + 2], block[t + 3]
        w0, w1, w2, w3 = weights[t], weights[t + 1], weights[t + 2], weights[t + 3]
        for d in range(sums.size):
            sums[d] += w0 * line0[d] + w1 * line1[d] + w2 * line2[d] + w3 * line3[d]
    for t in range(whole, last):
        line, w = block[t], weights[t]
        for d in range(sums.size):
            sums[d] += w * line[d]


@compiled
def place(stored: Stored, page: Any, head: Any, row: Any) -> Any:
    """Where the codes of a position begin."""
    return page * stored.page_step + head * stored.head_step + row * stored.row_step


@compiled
def fetch(stored: Stored, at: Any, size: int) -> None:
    """Ask for the codes of one position."""
    for d in range(0, size, LINE // stored.codes.itemsize):
        prefetch(stored.codes, at + d)


@compiled
def load_numbers(stored: Stored, page: Any, head: Any, first: Any, count: int, block: Array) -> None:
    """Turn `count` positions of a page into rows of numbers."""
    at = place(stored, page, head, first)
    by = page * stored.factor_page + head * stored.factor_head + first * stored.factor_row
    decode_rows(stored.codes, stored.kind, at, stored.row_step, count, block)
    if stored.factors.size == 1 and stored.factors[0] == 1:
        return
    for t in range(count):
        line, start = block[t], np.uint64(by + t * stored.factor_row)
        if stored.factor_step:
            for d in range(np.uint64(line.size)):
                line[d] *= stored.factors[start + d]
        else:
            factor = stored.factors[start]
            for d in range(line.size):
                line[d] *= factor


def decode_rows(codes: Any, kind: int, at: int, step: int, count: int, block: Array) -> None:
    """Numbers for the bits of a type: rows of `block` for those that begin at `at`, `step` elements apart."""
    raise NotImplementedError("only compiled code calls this")


@overload(decode_rows, jit_options={"fastmath": EXACT, "error_model": "numpy"})
def _decode_rows(codes: Any, kind: int, at: int, step: int, count: int, block: Array) -> Any:
    # an index without a sign is not looked at for whether it counts from the end, so that loops become vector instructions

    def numbers(codes: Any, kind: int, at: int, step: int, count: int, block: Array) -> None:
        for t in range(count):
            start = np.uint64(at + t * step)
            for d in range(np.uint64(block.shape[1])):
                block[t, d] = codes[start + d]

    def sixteen_bits(codes: Any, kind: int, at: int, step: int, count: int, block: Array) -> None:
        for t in range(count):
            start = np.uint64(at + t * step)
            if kind == BFLOAT16:
                for d in range(np.uint64(block.shape[1])):
                    block[t, d] = np.uint32(np.uint32(codes[start + d]) << 16).view(np.float32)
            else:
                for d in range(np.uint64(block.shape[1])):
                    block[t, d] = _small_float(codes[start + d], 15, 13, 0x7C00, 0x7C00, 112)

    def eight_bits(codes: Any, kind: int, at: int, step: int, count: int, block: Array) -> None:
        for t in range(count):
            start = np.uint64(at + t * step)
            if kind == E4M3FN:
                for d in range(np.uint64(block.shape[1])):
                    block[t, d] = _small_float(codes[start + d], 7, 20, 0x7F, 0x7F, 120)
            else:
                for d in range(np.uint64(block.shape[1])):
                    block[t, d] = _small_float(codes[start + d], 7, 21, 0x7C, 0x7C, 112)

    return {types.uint16: sixteen_bits, types.uint8: eight_bits}.get(codes.dtype, numbers)


@compiled
def _small_float(code: int, sign: int, shift: int, mask: int, special: int, bias: int) -> Any:
    """A small floating format: its exponent and mantissa where float32 has them, times 2 to the difference of the biases.

    Bits that are `special` under `mask` are not numbers, or infinite where the mantissa is 0.
    """
    bits = np.uint32(code)
    placed = np.uint32((bits & np.uint32((1 << sign) - 1)) << np.uint32(shift))
    power = np.uint32((bias + 127) << 23).view(np.float32)
    number = placed.view(np.float32) * power
    odd = np.uint32(placed | np.uint32(0x7F800000)).view(np.float32)
    positive = odd if (bits & np.uint32(mask)) == np.uint32(special) else number
    return -positive if bits >> np.uint32(sign) else positive
