"""What attention does to one tile of scores, forward and backward.

The lines of such a tile are keys, its lanes are queries, so that the softmax needs no sum along a register::

                 lane: query ->
       key  c    s(c, r)  s(c, r + 1)  ...
       key  c+1  ...

Queries are multiplied by the scale when they are loaded. A masked pair has the logit -inf, and by this every later stage knows it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn_numba.cpu.exponential import exp, tanh
from refattn_numba.cpu.jit import compiled
from refattn_numba.cpu.products import LINES
from refattn_numba.cpu.simd import between, bytes_at, filled, lanes_of, load, maximum, pointer_to, select, store, tile_of, transpose
from refattn_numba.cpu.sizes import larger, smaller

KEYS = 16 * LINES  # lines of a tile; a multiple of `products.SPARE`


class Block(NamedTuple):
    """Which pairs of queries and keys a tile holds."""

    batch: int
    head: int
    query: int
    queries: int
    key: int
    keys: int


@compiled
def next_keys(query: int, queries: int, after: int, key: int, end: int, step: int, lanes: int) -> tuple[int, int]:
    """How many keys to take, from `key` on, and how many of the tile's first queries see none of them, in whole registers.

    Where the diagonal crosses, half as many as elsewhere, in multiples of `step`: a quarter of such a square of pairs is left out.
    """
    keys = smaller(KEYS, end - key)
    if key + keys - 1 > query + after:
        keys = smaller(keys, KEYS // 2 // step * step)
    return keys, smaller(larger(0, key - after - query), queries - 1) // lanes * lanes


@compiled
def load_pairs(source: Any, step: int, column: int, block: Block, tile: Any) -> None:
    """A number for each pair of a block, as a tile."""
    width, lanes = tile_of(tile), lanes_of(tile)
    if step == 0:
        for c in range(block.keys):
            number = filled(tile, source[c * column])
            for r in range(0, block.queries, lanes):
                store(tile, c * width + r, number)
        return
    for r in range(0, block.queries, lanes):
        whole = block.keys // lanes * lanes if r + lanes <= block.queries and column == 1 else 0
        for c in range(0, whole, lanes):
            transpose(source + (r * step + c), step, tile + (c * width + r), width)
        for row in range(r, smaller(r + lanes, block.queries)):
            for c in range(whole, block.keys):
                tile[c * width + row] = source[row * step + c * column]


@compiled
def sees_nothing(call: Any, block: Block) -> bool:
    """Whether the mask hides every pair of a block, so that it needs no work."""
    if not call.mask:
        return False
    at = block.batch * call.mask_batch + block.head * call.mask_head + block.query * call.mask_row + block.key * call.mask_column
    pairs, column = bytes_at(call.mask) + at, call.mask_column
    keys = block.keys if column else 1
    for r in range(block.queries if call.mask_row else 1):
        row, found = pairs + r * call.mask_row, 0
        if column == 1:  # known to be 1, so that the loop becomes vector instructions
            for c in range(keys):
                found |= row[c]
        else:
            for c in range(keys):
                found |= row[c * column]
        if found:
            return False
    return True


@compiled
def scores_to_logits(call: Any, block: Block, tile: Any, given: Any, slopes: Any) -> None:
    """Softcap, bias and mask, in place; `slopes` get the softcap's derivative."""
    if call.softcap != 0:
        _softcap(tile, slopes, block, call.softcap)
    if call.bias:
        at = block.batch * call.bias_batch + block.head * call.bias_head + block.query * call.bias_row + block.key * call.bias_column
        load_pairs(pointer_to(call.bias, tile) + at, call.bias_row, call.bias_column, block, given)
        _add_bias(tile, given, block)
    if call.mask:
        at = block.batch * call.mask_batch + block.head * call.mask_head + block.query * call.mask_row + block.key * call.mask_column
        load_pairs(bytes_at(call.mask) + at, call.mask_row, call.mask_column, block, given)
        _mask(tile, given, block)


@compiled
def _softcap(tile: Any, slopes: Any, block: Block, cap: float) -> None:
    width, lanes, one = tile_of(tile), lanes_of(tile), filled(tile, 1.0)
    height, inverse = filled(tile, cap), filled(tile, 1 / cap)
    for c in range(block.keys):
        for i in range(c * width, c * width + block.queries, lanes):
            bounded = tanh(load(tile, i) * inverse)
            store(slopes, i, one - bounded * bounded)
            store(tile, i, height * bounded)


@compiled
def _add_bias(tile: Any, bias: Any, block: Block) -> None:
    width, lanes, masked = tile_of(tile), lanes_of(tile), filled(tile, -np.inf)
    for c in range(block.keys):
        for i in range(c * width, c * width + block.queries, lanes):
            b = load(bias, i)
            store(tile, i, select(b == masked, masked, load(tile, i) + b))


@compiled
def _mask(tile: Any, mask: Any, block: Block) -> None:
    width, lanes, masked, no = tile_of(tile), lanes_of(tile), filled(tile, -np.inf), filled(tile, 0.0)
    for c in range(block.keys):
        for i in range(c * width, c * width + block.queries, lanes):
            store(tile, i, select(load(mask, i) == no, masked, load(tile, i)))


@compiled
def mask_outside_band(tile: Any, block: Block, before: int, after: int) -> bool:
    """Query i sees the keys from ``i - before`` to ``i + after``; whether the tile has others."""
    if block.query + block.queries - 1 - before <= block.key and block.key + block.keys - 1 <= block.query + after:
        return False
    width, lanes, masked = tile_of(tile), lanes_of(tile), filled(tile, -np.inf)
    for c in range(block.keys):
        column = block.key + c - block.query
        first, last = larger(column - after, -1), smaller(column + before, width)
        for r in range(0, block.queries, lanes):
            if first > r or last < r + lanes - 1:
                x = load(tile, c * width + r)
                store(tile, c * width + r, select(between(x, first - r, last - r), x, masked))
    return True


@compiled
def load_keep(call: Any, block: Block, tile: Any) -> None:
    """Which weights dropout keeps, as 0 and 1; nothing without dropout."""
    if call.keep:
        at = block.batch * call.keep_batch + block.head * call.keep_head + block.query * call.keep_row + block.key * call.keep_column
        load_pairs(bytes_at(call.keep) + at, call.keep_row, call.keep_column, block, tile)


@compiled
def drop(call: Any, block: Block, tile: Any, given: Any) -> None:
    """Dropout of a tile, in place."""
    load_keep(call, block, given)
    width, lanes, by = tile_of(tile), lanes_of(tile), filled(tile, call.keep_factor)
    for c in range(block.keys):
        for i in range(c * width, c * width + block.queries, lanes):
            store(tile, i, load(tile, i) * (load(given, i) * by))


@compiled
def largest_line(tile: Any, start: int, end: int) -> Any:
    """The largest number of each lane, from line to line; NaN may be passed over."""
    width = tile_of(tile)
    a = b = c = d = load(tile, start)
    i = start
    while i < end - 3 * width:  # four at a time, as each waits for the one before
        a, b = maximum(load(tile, i), a), maximum(load(tile, i + width), b)
        c, d = maximum(load(tile, i + 2 * width), c), maximum(load(tile, i + 3 * width), d)
        i += 4 * width
    while i < end:
        a = maximum(load(tile, i), a)
        i += width
    return maximum(maximum(a, b), maximum(c, d))


@compiled
def advance(tile: Any, block: Block, largest: Any, total: Any, decay: Any) -> None:
    """One step of the running softmax, in place: weights relative to the new `largest`, and by what earlier ones shrink."""
    width, lanes, end = tile_of(tile), lanes_of(tile), block.keys * tile_of(tile)
    nothing, zero = filled(tile, -np.inf), filled(tile, 0.0)
    for r in range(0, block.queries, lanes):
        before = load(largest, r)
        now = maximum(before, largest_line(tile, r, end))
        shift = select(now == nothing, zero, now)
        added = zero
        for i in range(r, end, width):
            weight = exp(load(tile, i) - shift)
            store(tile, i, weight)
            added = added + weight
        by = exp(before - shift)
        store(largest, r, now)
        store(decay, r, by)
        store(total, r, load(total, r) * by + added)


@compiled
def copy_tile(tile: Any, block: Block, out: Any) -> None:
    """Whole registers of a tile."""
    width, lanes = tile_of(tile), lanes_of(tile)
    for c in range(block.keys):
        for i in range(c * width, c * width + block.queries, lanes):
            store(out, i, load(tile, i))
