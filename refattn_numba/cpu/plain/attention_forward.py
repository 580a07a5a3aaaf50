"""The forward pass: a running softmax over the tiles of keys, for one tile of queries at a time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refattn._core import Array
from refattn_numba.cpu.jit import compiled, kernel
from refattn_numba.cpu.plain.attention_stages import (
    Block,
    Operands,
    Rows,
    Scoring,
    Sizes,
    advance,
    begin,
    drop,
    finite_or,
    key_range,
    load_factors,
    load_pairs,
    scores_to_logits,
)
from refattn_numba.cpu.plain.exponential import exp
from refattn_numba.cpu.plain.tiles import LANES, LINES, TILE, load_lanes, load_lines, multiply, multiply_lanes_allowed, task_of
from refattn_numba.cpu.sizes import ceil_to, larger, smaller


class Scratch(NamedTuple):
    """One thread's memory; the vectors have one element for each query of a tile."""

    queries: Array
    keys: Array
    values: Array
    logits: Array
    weights: Array
    unused: Array
    given: Array
    part: Array
    sums: Array
    factors: Array
    largest: Array
    total: Array
    decay: Array
    tile_total: Array


@kernel
def forward(operands: Operands, scoring: Scoring, sizes: Sizes, rows: Rows, share: int, shares: int) -> None:
    """Fill `rows`; a task is one tile of queries."""
    s, head_dim, value_dim = _scratch(operands), operands.query.shape[2], operands.value.shape[2]
    tiles = ceil_to(sizes.query_len, TILE) // TILE
    tasks = operands.query.shape[0] * tiles
    for turn in range(ceil_to(tasks, shares) // shares):
        task = task_of(turn, share, shares)
        if task >= tasks:
            continue
        head, first = task // tiles, task % tiles * TILE
        count = smaller(TILE, sizes.query_len - first)
        width = ceil_to(count, LANES)
        query, key, value = operands.query[head], operands.key[head // sizes.group], operands.value[head // sizes.group]
        load_factors(scoring.row_scale, head, first, count, s.factors)
        load_lanes(query, first, count, s.factors, s.queries)
        begin(s.largest, s.total, s.sums, width)
        key_first, key_end = key_range(first, count, sizes)
        for k in range(key_first, key_end, TILE):
            block = Block(head, first, count, k, smaller(TILE, sizes.key_len - k))
            load_lines(key, k, block.keys, s.keys)
            multiply(s.keys, False, s.queries, s.logits, block.keys, head_dim, count)
            scores_to_logits(s.logits, s.unused, s.unused, s.given, block, sizes, scoring)
            advance(s.logits, s.weights, s.largest, s.total, s.decay, s.tile_total, block)
            if scoring.keep.values.size:
                load_pairs(scoring.keep, block, s.given)
                drop(s.weights, s.given, scoring.keep_factor, block)
            if load_lines(value, k, block.keys, s.values):
                multiply(s.values, True, s.weights, s.part, value_dim, block.keys, count)
            else:
                multiply_lanes_allowed(s.values, s.logits, s.weights, s.part, value_dim, block.keys, count)
            for d in range(value_dim):
                for r in range(width):
                    s.sums[d, r] = s.sums[d, r] * s.decay[r] + s.part[d, r]
        _finish(head, first, count, operands.sinks, value, scoring, sizes, rows, s)


@compiled
def _scratch(operands: Operands) -> Scratch:
    dtype = operands.query.dtype
    head_dim, value_dim = ceil_to(operands.query.shape[2], LINES), ceil_to(operands.value.shape[2], LINES)
    return Scratch(
        np.empty((head_dim, TILE), dtype),
        np.empty((TILE, head_dim), dtype),
        np.empty((TILE, value_dim), dtype),
        np.empty((TILE, TILE), dtype),
        np.empty((TILE, TILE), dtype),
        np.empty((TILE, TILE), dtype),
        np.empty((TILE, TILE), dtype),
        np.empty((value_dim, TILE), dtype),
        np.empty((value_dim, TILE), dtype),
        np.empty(TILE, dtype),
        np.empty(TILE, dtype),
        np.empty(TILE, dtype),
        np.empty(TILE, dtype),
        np.empty(TILE, dtype),
    )


@compiled
def _finish(
    head: int, first: int, count: int, sinks: Array, value: Array, scoring: Scoring, sizes: Sizes, rows: Rows, scratch: Scratch
) -> None:
    """Let the sink take its weight, divide, and write."""
    dtype = value.dtype
    zero, one, sink = dtype.type(0), dtype.type(1), dtype.type(-np.inf)
    if sinks.size:
        sink = sinks[head % sizes.heads]
    for r in range(count):
        largest = larger(sink, scratch.largest[r])
        shift = finite_or(zero, largest)
        decay = exp(scratch.largest[r] - shift)
        total = scratch.total[r] * decay + exp(sink - shift)
        i, empty = first + r, total == 0
        rows.lse[head, i] = -np.inf if empty else shift + np.log(total)
        rows.shift[head, i] = shift
        rows.inverse[head, i] = zero if empty else one / total
        if empty:
            _fill_row(head, i, value, scoring, sizes, rows.output[head, i])
        else:
            factor = decay / total
            for d in range(value.shape[1]):
                rows.output[head, i, d] = scratch.sums[d, r] * factor


@compiled
def _fill_row(head: int, i: int, value: Array, scoring: Scoring, sizes: Sizes, out: Array) -> None:
    """An empty row, in which all keys have the same weight."""
    out[:] = 0
    if scoring.fill == 0:
        return
    keep, factor = scoring.keep, scoring.fill
    for j in range(sizes.key_len):
        if keep.values.size:
            kept = keep.values[keep.start[head] + i * keep.query_step + j * keep.key_step]
            factor = scoring.fill * (scoring.keep_factor if kept else value.dtype.type(0))
        for d in range(out.size):
            out[d] += factor * value[j, d]
