"""A few queries against long caches, on CPU cores: every cached number is read once, in the type in which it is stored.

A task is a span of positions of one sequence and one key head, whose rows are the queries of all heads of the group. Its positions
pass in blocks: keys and values are read where they lie, or turned into numbers in memory that stays near, and meanwhile the next
block is fetched. What the spans of a sequence give is merged afterwards, by their largest scores and sums (`cached.attended`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn._core import Array, Integers
from refattn_numba.cpu import stored_numbers as types
from refattn_numba.cpu.exponential import exp, tanh
from refattn_numba.cpu.jit import compiled, kernel
from refattn_numba.cpu.row_products import ROWS, add_to_four_rows, add_to_one_row, dots
from refattn_numba.cpu.simd import (
    between,
    bytes_at,
    filled,
    halves_at,
    integers_at,
    lanes_of,
    largest_of,
    load,
    maximum,
    next_of,
    pointer_to,
    prefetch,
    select,
    signed_bytes_at,
    store,
    total_of,
)
from refattn_numba.cpu.sizes import larger, smaller
from refattn_numba.cpu.tiles import fill

BLOCK = 64  # positions whose scores are made before their weights
STEP = 32  # positions that are numbers in the thread's memory at a time, where they were not numbers before

Stored = np.dtype(
    [(name, np.int64) for name in ("address", "kind", "direct", "in_registers", "size", "item", "width", "page", "head", "row")]
    + [(name, np.int64) for name in ("factors", "factor_page", "factor_head", "factor_row", "factor_step", "factor_item", "step", "ahead")],
    align=True,
)
"""A pool of pages as it lies in memory.

`kind` is what its bits mean (`stored_numbers`); `direct` says that they are numbers as they stand, `in_registers` that they become
numbers where they are multiplied, times one factor for each position at the end. A row has `size` elements of `item`
bytes, which become `width` numbers. Steps are in bytes; those of the factors of the elements are 0 along an axis that has one for all.
Rows are read `step` at a time, while as many are fetched that lie `ahead` rows behind them.
"""

Decoding = np.dtype(
    [("key", Stored), ("value", Stored), ("softcap", np.float64)]
    + [(name, np.int64) for name in ("memory_size", "tasks", "rows", "queries", "group", "heads", "page_size", "pages")]
    + [(name, np.int64) for name in ("query", "table", "task_sequence", "task_head", "task_first", "task_end", "reach_first", "reach_end")]
    + [(name, np.int64) for name in ("sums", "largest", "total")],
    align=True,
)
"""What the kernel is told: sizes, and addresses of C-contiguous arrays."""


def decode_memory(rows: int, key_width: int, value_width: int, lanes: int) -> int:
    """How many numbers a thread works on."""
    return STEP * max(key_width, value_width) + rows * (BLOCK + 2 * lanes + value_width)


@kernel
def decode(calls: Any, options: Any, memory: Array, counters: Integers) -> None:
    """Fill `sums`, `largest` and `total`, with the axes task and row. `options` is None where both pools have kind `SAME`.

    A row of `query` (sequence, key head, row, feature) is one query of one head: all heads' first, then their second. There is one
    row, or a multiple of `ROWS`, and what the last of these hold is nobody's.
    """
    call = calls[0]
    key, value, rows, lanes = call.key, call.value, call.rows, lanes_of(pointer_to(call.query, memory))
    numbers = pointer_to(memory.ctypes.data, memory) + next_of(counters, 1) * call.memory_size
    weights = numbers + STEP * larger(key.width, value.width)
    largest = weights + rows * BLOCK
    total, sums = largest + rows * lanes, largest + 2 * rows * lanes
    while True:
        task = next_of(counters, 0)
        if task >= call.tasks:
            return
        sequence, head = integer(call.task_sequence, task), integer(call.task_head, task)
        at, end = integer(call.task_first, task), integer(call.task_end, task)
        query = pointer_to(call.query, memory) + (sequence * call.heads + head) * rows * key.width
        fill(largest, rows * lanes, -np.inf)
        fill(total, rows * lanes, 0.0)
        fill(sums, rows * value.width, 0.0)
        while at < end:
            page, offset = integer(call.table, sequence * call.pages + at // call.page_size), at % call.page_size
            count = smaller(smaller(BLOCK, call.page_size - offset), end - at)
            for t in range(0, count, key.step):
                n = smaller(key.step, count - t)
                soon = row_of(call, key, sequence, head, smaller(at + t + key.ahead, end - 1))
                add_scores(call, options, page, head, offset + t, n, soon, query, numbers, weights + t)
            for r in range(rows):
                of_row = largest + r * lanes, total + r * lanes, sums + r * value.width
                weigh(weights + r * BLOCK, *reached(call, sequence, r, at, count), call.softcap, *of_row, value.width)
            for t in range(0, count, value.step):
                n = smaller(value.step, count - t)
                soon = row_of(call, value, sequence, head, smaller(at + t + value.ahead, end - 1))
                add_values(call, options, sequence, page, head, offset + t, at + t, n, soon, weights + t, numbers, sums)
            at += count
        for r in range(rows):
            at = task * rows + r
            pointer_to(call.largest, memory)[at] = largest[r * lanes]
            pointer_to(call.total, memory)[at] = total_of(load(total, r * lanes))
            for d in range(0, value.width, lanes):
                store(pointer_to(call.sums, memory), at * value.width + d, load(sums, r * value.width + d))


@compiled
def integer(address: int, index: int) -> int:
    """An element of an array of 64-bit integers."""
    return integers_at(address)[index]


@compiled
def reached(call: Any, sequence: int, row: int, at: int, count: int) -> tuple[int, int]:
    """Which positions of a block a row may attend to."""
    query = sequence * call.queries + smaller(row // call.group, call.queries - 1)
    first = smaller(larger(integer(call.reach_first, query) - at, 0), count)
    return first, smaller(larger(integer(call.reach_end, query) - at, first), count)


@compiled
def weigh(scores: Any, first: int, last: int, cap: float, largest: Any, total: Any, sums: Any, width: int) -> None:
    """Scores become weights relative to the largest so far, 0 for positions out of reach; earlier sums become so too."""
    lanes, nothing = lanes_of(scores), filled(scores, -np.inf)
    before = load(largest, 0)
    most = before
    for c in range(0, BLOCK, lanes):
        x = load(scores, c)
        if cap > 0:
            x = filled(scores, cap) * tanh(x * filled(scores, 1 / cap))
        x = select(between(x, first - c, last - 1 - c), x, nothing)
        store(scores, c, x)
        most = maximum(x, most)
    now = filled(scores, largest_of(most))
    shift = select(now == nothing, filled(scores, 0.0), now)
    added = filled(scores, 0.0)
    for c in range(0, BLOCK, lanes):
        weight = exp(load(scores, c) - shift)
        store(scores, c, weight)
        added = added + weight
    by = exp(before - shift)
    store(largest, 0, now)
    store(total, 0, load(total, 0) * by + added)
    for d in range(0, width, lanes):
        store(sums, d, load(sums, d) * by)


@compiled
def add_scores(
    call: Any, options: Any, page: int, head: int, row: int, count: int, soon: int, query: Any, numbers: Any, scores: Any
) -> None:
    """Products of all rows of queries with some rows of keys."""
    key = call.key
    if options is not None and key.in_registers:
        address, step = place_of_row(key, page, head, row), key.row // key.item
        if key.kind == types.INT8:
            codes, later = signed_bytes_at(address), signed_bytes_at(soon)
            dots(call.rows, query, key.width, codes, step, later, count, key.width, scores, BLOCK)
        else:
            halves, then = halves_at(address), halves_at(soon)
            dots(call.rows, query, key.width, halves, step, then, count, key.width, scores, BLOCK)
        scale_rows(key, page, head, row, count, scores, call.rows)
    else:
        lines, step, after = numbers_of(key, options, page, head, row, count, soon, numbers)
        dots(call.rows, query, key.width, lines, step, after, count, key.width, scores, BLOCK)


@compiled
def scale_rows(stored: Any, page: int, head: int, row: int, count: int, out: Any, rows: int) -> None:
    """Each row's numbers, one for each position, times the positions' factors."""
    factors = stored.factors + page * stored.factor_page + head * stored.factor_head + row * stored.factor_row
    lanes, whole = lanes_of(out), 0
    if stored.factor_row in (0, stored.factor_item):
        whole = count // lanes * lanes
        for t in range(0, whole, lanes):
            by = load(pointer_to(factors, out), t) if stored.factor_row else filled(out, pointer_to(factors, out)[0])
            for at in range(t, rows * BLOCK, BLOCK):
                store(out, at, load(out, at) * by)
    for t in range(whole, count):
        number = pointer_to(factors + t * stored.factor_row, out)[0]
        for at in range(t, rows * BLOCK, BLOCK):
            out[at] = out[at] * number


@compiled
def add_values(
    call: Any, options: Any, sequence: int, page: int, head: int, row: int, at: int, count: int, soon: int, weights: Any, numbers: Any,
    sums: Any,
) -> None:  # fmt: skip
    """Add weighted values to each row's sums."""
    value = call.value
    if options is not None and value.in_registers:
        address, step = place_of_row(value, page, head, row), value.row // value.item
        scale_rows(value, page, head, row, count, weights, call.rows)
        if value.kind == types.INT8:
            add_weighted(call, sequence, at, count, weights, signed_bytes_at(address), step, signed_bytes_at(soon), sums)
        else:
            add_weighted(call, sequence, at, count, weights, halves_at(address), step, halves_at(soon), sums)
    else:
        lines, step, later = numbers_of(value, options, page, head, row, count, soon, numbers)
        add_weighted(call, sequence, at, count, weights, lines, step, later, sums)


@compiled
def add_weighted(call: Any, sequence: int, at: int, count: int, weights: Any, lines: Any, step: int, soon: Any, sums: Any) -> None:
    """Of four rows at a time that reach the same positions."""
    width = call.value.width
    for r in range(0, call.rows, ROWS):
        end, reach = smaller(r + ROWS, call.rows), reached(call, sequence, r, at, count)
        same = end == r + ROWS
        for i in range(r + 1, end):
            same &= reached(call, sequence, i, at, count) == reach
        if same:
            add_to_four_rows(weights + r * BLOCK, BLOCK, lines, step, soon, *reach, sums + r * width, width, width)
        else:
            for i in range(r, end):
                reach = reached(call, sequence, i, at, count)
                add_to_one_row(weights + i * BLOCK, BLOCK, lines, step, soon, *reach, sums + i * width, width, width)


@compiled
def place_of_row(stored: Any, page: int, head: int, row: int) -> int:
    """Its address."""
    return stored.address + page * stored.page + head * stored.head + row * stored.row


@compiled
def row_of(call: Any, stored: Any, sequence: int, head: int, position: int) -> int:
    """Where a position's row is."""
    page = integer(call.table, sequence * call.pages + position // call.page_size)
    return stored.address + page * stored.page + head * stored.head + position % call.page_size * stored.row


@compiled
def numbers_of(stored: Any, options: Any, page: int, head: int, row: int, count: int, soon: int, out: Any) -> Any:
    """Rows of a page as whole registers: where they lie, or in `out`; and the step from one to the next."""
    address = place_of_row(stored, page, head, row)
    if stored.direct:
        return pointer_to(address, out), stored.row // stored.item, pointer_to(soon, out)
    factors = stored.factors + page * stored.factor_page + head * stored.factor_head + row * stored.factor_row
    if options is None or stored.kind == types.SAME:
        rows_of_same(stored, address, factors, count, soon, out)
    elif options is not None:
        kind = stored.kind
        if kind == types.FLOAT32:
            rows_of_float32(stored, address, factors, count, soon, out)
        elif kind == types.FLOAT16:
            rows_of_float16(stored, address, factors, count, soon, out)
        elif kind == types.BFLOAT16:
            rows_of_bfloat16(stored, address, factors, count, soon, out)
        elif kind == types.INT8:
            rows_of_int8(stored, address, factors, count, soon, out)
        elif kind == types.E4M3FN:
            rows_of_e4m3fn(stored, address, factors, count, soon, out)
        else:
            rows_of_e5m2(stored, address, factors, count, soon, out)
    return out, stored.width, out


def _rows_of(read: Any) -> Any:
    @compiled
    def rows_of(stored: Any, address: int, factors: int, count: int, soon: int, out: Any) -> None:
        """Numbers for the codes, times their factors; zeros behind a row's end. Nothing behind it is read."""
        lanes, zero = lanes_of(out), filled(out, 0.0)
        whole = stored.size // lanes * lanes
        within = between(zero, 0, stored.size - whole - 1)
        for t in range(count):
            code, factor, line = address + t * stored.row, factors + t * stored.factor_row, out + t * stored.width
            by = filled(out, pointer_to(factor, out)[0])
            later = bytes_at(soon + t * stored.row)
            for d in range(0, whole, lanes):
                prefetch(later, d * stored.item)
                if stored.factor_step:
                    by = types.read_same(factor + d * stored.factor_step, None, out)
                store(line, d, read(code + d * stored.item, None, out) * by)
            if whole < stored.size:
                if stored.factor_step:
                    by = types.read_same(factor + whole * stored.factor_step, within, out)
                store(line, whole, read(code + whole * stored.item, within, out) * select(within, by, zero))

    return rows_of


rows_of_same, rows_of_float32, rows_of_float16, rows_of_bfloat16 = map(
    _rows_of, (types.read_same, types.read_float32, types.read_float16, types.read_bfloat16)
)
rows_of_int8, rows_of_e4m3fn, rows_of_e5m2 = map(_rows_of, (types.read_int8, types.read_e4m3fn, types.read_e5m2))
