"""The backward pass: each tile of weights is computed again, once for the queries and once for the keys and values.

With two passes no element of a gradient has two writers, and every sum has one order. The first pass runs over tiles of
queries and leaves what the second one, over tiles of keys, needs of the queries: their transposed tiles, and the centre of
each row, the sum of weights times their cotangents less the cotangent of the log-sum-exp.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refattn._core import Array
from refattn_numba.cpu.jit import compiled, kernel
from refattn_numba.cpu.packing import Groups
from refattn_numba.cpu.plain.attention_stages import (
    Block,
    Operands,
    Rows,
    Scoring,
    Sizes,
    add_to_keys,
    add_to_pairs,
    add_to_queries,
    key_range,
    load_factors,
    logits_backward,
    query_range,
    scores_to_logits,
    weights_backward,
)
from refattn_numba.cpu.plain.tiles import (
    LINES,
    TILE,
    load_lanes,
    load_lines,
    load_panels,
    multiply,
    multiply_lanes_allowed,
    multiply_lines_allowed,
    task_of,
)
from refattn_numba.cpu.sizes import ceil_to, smaller


class Cotangents(NamedTuple):
    """What the second pass reads besides the inputs: transposed tiles have the axes head, tile, row, lane."""

    d_output: Array
    d_lse: Array
    centre: Array
    query_tiles: Array
    d_output_tiles: Array


class PairGradient(NamedTuple):
    """The gradient of a bias or scale, in the one form that fits how it is broadcast; the others are empty.

    Attributes
    ----------
    pairs : array, shape (n)
        Like `Pairs.values`, where these differ along queries and keys.
    rows : array, shape (batch * heads, query_len)
        Where they are the same for all keys.
    columns : array, shape (batch * heads, key_len)
        Where they are the same for all queries, but not for all keys.
    """

    pairs: Array
    rows: Array
    columns: Array


class Scratch(NamedTuple):
    """One thread's memory."""

    keys: Array
    values: Array
    logits: Array
    weights: Array
    d_tile: Array
    products: Array
    slopes: Array
    given: Array
    factors: Array
    ones: Array


@compiled
def _scratch(operands: Operands) -> Scratch:
    dtype = operands.query.dtype
    return Scratch(
        np.empty((TILE, ceil_to(operands.query.shape[2], LINES)), dtype),
        np.empty((TILE, ceil_to(operands.value.shape[2], LINES)), dtype),
        np.empty((TILE, TILE), dtype),
        np.empty((TILE, TILE), dtype),
        np.empty((TILE, TILE), dtype),
        np.empty((TILE, TILE), dtype),
        np.empty((TILE, TILE), dtype),
        np.empty((TILE, TILE), dtype),
        np.empty(TILE, dtype),
        np.ones(TILE, dtype),
    )


@compiled
def _weights_again(
    block: Block, operands: Operands, scoring: Scoring, sizes: Sizes, rows: Rows, cotangents: Cotangents, s: Scratch
) -> None:
    """The weights of a tile, and in `d_tile` the cotangent of its logits."""
    tile = block.query // TILE
    query_tile, d_output_tile = cotangents.query_tiles[block.head, tile], cotangents.d_output_tiles[block.head, tile]
    multiply(s.keys, False, query_tile, s.logits, block.keys, operands.query.shape[2], block.queries)
    multiply(s.values, False, d_output_tile, s.d_tile, block.keys, operands.value.shape[2], block.queries)
    scores_to_logits(s.logits, s.products, s.slopes, s.given, block, sizes, scoring)
    weights_backward(s.logits, s.weights, s.d_tile, s.given, rows, cotangents.centre, block, scoring)


@kernel
def backward_queries(
    operands: Operands,
    scoring: Scoring,
    sizes: Sizes,
    rows: Rows,
    cotangents: Cotangents,
    groups: Groups,
    d_query: Array,
    d_bias: PairGradient,
    d_scale: PairGradient,
    share: int,
    shares: int,
) -> None:
    """Fill `d_query`, what the second pass reads, and gradients of rows and of pairs; a task is a tile in a group of heads."""
    s, head_dim = _scratch(operands), operands.query.shape[2]
    sums = np.empty((ceil_to(head_dim, LINES), TILE), operands.query.dtype)
    part = np.empty((ceil_to(head_dim, LINES), TILE), operands.query.dtype)
    tiles = ceil_to(sizes.query_len, TILE) // TILE
    tasks = (groups.bounds.size - 1) * tiles
    for turn in range(ceil_to(tasks, shares) // shares):
        task = task_of(turn, share, shares)
        if task >= tasks:
            continue
        group, first = task // tiles, task % tiles * TILE
        count = smaller(TILE, sizes.query_len - first)
        for member in range(groups.bounds[group], groups.bounds[group + 1]):
            head = groups.members[member]
            key, value = operands.key[head // sizes.group], operands.value[head // sizes.group]
            _prepare(head, first, count, operands, scoring, rows, cotangents, s)
            sums[:] = 0
            key_first, key_end = key_range(first, count, sizes)
            for k in range(key_first, key_end, TILE):
                block = Block(head, first, count, k, smaller(TILE, sizes.key_len - k))
                finite = load_lines(key, k, block.keys, s.keys)
                load_lines(value, k, block.keys, s.values)
                _weights_again(block, operands, scoring, sizes, rows, cotangents, s)
                if d_bias.pairs.size:
                    add_to_pairs(s.d_tile, block, scoring.bias, d_bias.pairs)
                if d_bias.rows.size:
                    add_to_queries(s.d_tile, block, d_bias.rows)
                logits_backward(s.logits, s.d_tile, s.products, s.slopes, s.given, block, scoring)
                if d_scale.pairs.size:
                    add_to_pairs(s.products, block, scoring.scale, d_scale.pairs)
                if finite:
                    multiply(s.keys, True, s.d_tile, part, head_dim, block.keys, count)
                else:
                    multiply_lanes_allowed(s.keys, s.logits, s.d_tile, part, head_dim, block.keys, count)
                for d in range(head_dim):
                    for r in range(TILE):
                        sums[d, r] += part[d, r]
            _finish_queries(head, first, count, operands.query, rows, sums, s.factors, d_query, d_scale.rows)


@compiled
def _prepare(
    head: int, first: int, count: int, operands: Operands, scoring: Scoring, rows: Rows, cotangents: Cotangents, s: Scratch
) -> None:
    """Transposed tiles and the centre of each row; an empty row has the centre 0."""
    load_factors(scoring.row_scale, head, first, count, s.factors)
    load_lanes(operands.query[head], first, count, s.factors, cotangents.query_tiles[head, first // TILE])
    load_lanes(cotangents.d_output[head], first, count, s.ones, cotangents.d_output_tiles[head, first // TILE])
    for i in range(first, first + count):
        centre = operands.query.dtype.type(0)
        if rows.inverse[head, i] != 0:
            for d in range(rows.output.shape[2]):
                centre += rows.output[head, i, d] * cotangents.d_output[head, i, d]
            centre -= cotangents.d_lse[head, i]
        cotangents.centre[head, i] = centre


@compiled
def _finish_queries(
    head: int, first: int, count: int, query: Array, rows: Rows, sums: Array, factors: Array, d_query: Array, scale_rows: Array
) -> None:
    """Write a tile of `d_query`, and the gradient of a scale that is the same for all keys."""
    for r in range(count):
        i = first + r
        for d in range(query.shape[2]):
            d_query[head, i, d] = sums[d, r] * factors[r]
        if scale_rows.size and rows.inverse[head, i] != 0:
            total = query.dtype.type(0)
            for d in range(query.shape[2]):
                total += query[head, i, d] * sums[d, r]
            scale_rows[head, i] = total


@kernel
def backward_keys(
    operands: Operands,
    scoring: Scoring,
    sizes: Sizes,
    rows: Rows,
    cotangents: Cotangents,
    d_key: Array,
    d_value: Array,
    d_bias: PairGradient,
    d_scale: PairGradient,
    share: int,
    shares: int,
) -> None:
    """Fill `d_key`, `d_value` and gradients of columns; a task is a tile of keys, for all query heads that read it."""
    s, dtype = _scratch(operands), operands.query.dtype
    key_panels, value_panels = ceil_to(operands.key.shape[2], TILE) // TILE, ceil_to(operands.value.shape[2], TILE) // TILE
    queries, d_keys = np.empty((key_panels, TILE, TILE), dtype), np.empty((key_panels, TILE, TILE), dtype)
    d_outputs, d_values = np.empty((value_panels, TILE, TILE), dtype), np.empty((value_panels, TILE, TILE), dtype)
    part = np.empty((TILE, TILE), dtype)
    tiles = ceil_to(sizes.key_len, TILE) // TILE
    tasks = operands.key.shape[0] * tiles
    for turn in range(ceil_to(tasks, shares) // shares):
        task = task_of(turn, share, shares)
        if task >= tasks:
            continue
        key_head, first = task // tiles, task % tiles * TILE
        count = smaller(TILE, sizes.key_len - first)
        load_lines(operands.key[key_head], first, count, s.keys)
        load_lines(operands.value[key_head], first, count, s.values)
        d_keys[:] = 0
        d_values[:] = 0
        query_first, query_end = query_range(first, count, sizes)
        for head in range(key_head * sizes.group, (key_head + 1) * sizes.group):
            for q in range(query_first, query_end, TILE):
                block = Block(head, q, smaller(TILE, sizes.query_len - q), first, count)
                _weights_again(block, operands, scoring, sizes, rows, cotangents, s)
                if d_bias.columns.size:
                    add_to_keys(s.d_tile, block, d_bias.columns)
                logits_backward(s.logits, s.d_tile, s.products, s.slopes, s.given, block, scoring)
                if d_scale.columns.size:
                    add_to_keys(s.products, block, d_scale.columns)
                load_factors(scoring.row_scale, head, q, block.queries, s.factors)
                finite = load_panels(operands.query[head], q, block.queries, s.factors, queries)
                _add_product(s.d_tile, s.logits, queries, finite, d_keys, part, block, operands.key.shape[2])
                finite = load_panels(cotangents.d_output[head], q, block.queries, s.ones, d_outputs)
                _add_product(s.weights, s.logits, d_outputs, finite, d_values, part, block, operands.value.shape[2])
        _write(d_keys, first, count, d_key[key_head])
        _write(d_values, first, count, d_value[key_head])
        if scoring.fill > 0:
            for head in range(key_head * sizes.group, (key_head + 1) * sizes.group):
                _add_empty_rows(head, first, count, scoring, rows, cotangents.d_output[head], d_value[key_head])


@compiled
def _add_product(tile: Array, logits: Array, queries: Array, finite: bool, sums: Array, part: Array, block: Block, size: int) -> None:
    """Add the product of a tile and rows of queries, in panels of `TILE` columns."""
    for p in range(queries.shape[0]):
        width = smaller(TILE, size - p * TILE)
        if finite:
            multiply(tile, False, queries[p], part, block.keys, block.queries, width)
        else:
            multiply_lines_allowed(tile, logits, queries[p], part, block.keys, block.queries, width)
        panel = sums[p]
        for c in range(block.keys):
            for d in range(width):
                panel[c, d] += part[c, d]


@compiled
def _write(panels: Array, first: int, count: int, out: Array) -> None:
    for c in range(count):
        for d in range(out.shape[1]):
            out[first + c, d] = panels[d // TILE, c, d % TILE]


@compiled
def _add_empty_rows(head: int, first: int, count: int, scoring: Scoring, rows: Rows, d_output: Array, d_value: Array) -> None:
    """Rows that attend nowhere, but average all values: their tiles may be outside every range."""
    keep = scoring.keep
    for i in range(d_output.shape[0]):
        if rows.inverse[head, i] == 0:
            for j in range(first, first + count):
                factor = scoring.fill
                if keep.values.size:
                    kept = keep.values[keep.start[head] + i * keep.query_step + j * keep.key_step]
                    factor = factor * scoring.keep_factor if kept else d_value.dtype.type(0)
                for d in range(d_output.shape[1]):
                    d_value[j, d] += factor * d_output[i, d]
