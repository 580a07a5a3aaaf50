"""What attention multiplies, as the instructions for the type want it in which queries, keys and values are stored.

Numbers of float32 and float64 are multiplied where they lie, queries by the scale when they are loaded. bfloat16 comes in couples
(`couples`): queries as they are stored, for a rounded product with the scale would be another number, which scores get instead; weights
and cotangents of scores rounded; and keys and values, where they are summed over keys, from arrays of couples of two rows.
"""

from __future__ import annotations

from typing import Any

from numba import types

from refattn_numba.cpu.attention_stages import Block
from refattn_numba.cpu.couples import (
    advance_in_couples,
    couple_lines,
    fill_last_tile,
    halves_of,
    load_couples,
    load_row_couples,
    narrow_lines,
)
from refattn_numba.cpu.jit import by_type, compiled
from refattn_numba.cpu.matrix_tiles import HAS_TILES, SIDE, TILED, add_tiles_product, fits, tiles_product
from refattn_numba.cpu.products import add_product, decay_and_add_product, product
from refattn_numba.cpu.simd import codes_at, lanes_of, tile_of
from refattn_numba.cpu.sizes import ceil_to
from refattn_numba.cpu.tiles import all_one, load_rows, load_tile, scale_lines

# helpers take first what decides: a pointer to what is stored


def _is_bfloat16(stored: Any) -> bool:
    return stored.dtype == types.uint16


@compiled
def couples_of_rows(call: Any, block: Block, address: int, size: int) -> Any:
    """Where the couples of a block's rows of keys begin, in an array that `couples.couples_for_sums` made."""
    head = (block.batch * call.heads + block.head) // call.group
    if fits(size // 2):
        return codes_at(address) + (head * (ceil_to(call.key_len, TILED) // TILED) + block.key // TILED) * (size * SIDE)
    return codes_at(address) + (head * ((call.key_len + 1) // 2) + block.key // 2) * size


@by_type
def granule(stored: Any, least: Any) -> Any:
    """Blocks of keys begin and end at multiples of this: of `least`, or of what a matrix tile takes."""

    def numbers(stored: Any, least: Any) -> int:
        return least

    def couples(stored: Any, least: Any) -> int:
        return TILED if HAS_TILES else least

    return couples if _is_bfloat16(stored) else numbers


@by_type
def load_queries(stored: Any, step: Any, rows: Any, size: Any, factors: Any, tile: Any) -> Any:
    """A tile of rows that are summed along: for scores, and for cotangents of weights."""

    def numbers(stored: Any, step: Any, rows: Any, size: Any, factors: Any, tile: Any) -> None:
        load_tile(stored, step, rows, size, factors, tile)

    def couples(stored: Any, step: Any, rows: Any, size: Any, factors: Any, tile: Any) -> None:
        load_couples(stored, step, rows, size, tile)

    return couples if _is_bfloat16(stored) else numbers


@by_type
def load_query_rows(stored: Any, step: Any, rows: Any, size: Any, ones: Any, out: Any, out_step: Any) -> Any:
    """Rows that are summed over, for gradients of keys and values; `out_step` is whole registers."""

    def numbers(stored: Any, step: Any, rows: Any, size: Any, ones: Any, out: Any, out_step: Any) -> None:
        load_rows(stored, step, rows, size, ones, out, out_step)

    def couples(stored: Any, step: Any, rows: Any, size: Any, ones: Any, out: Any, out_step: Any) -> None:
        load_row_couples(stored, step, rows, size, out, out_step)
        fill_last_tile(rows, out, out_step)

    return couples if _is_bfloat16(stored) else numbers


@by_type
def leaves_raw(stored: Any, size: Any, scale: Any) -> Any:
    """Whether `scores_of` need not multiply by the scale, since `in_couples` and the backward pass do as they take the exponential."""

    def numbers(stored: Any, size: Any, scale: Any) -> bool:
        return False

    def couples(stored: Any, size: Any, scale: Any) -> bool:
        return fits(size // 2) and scale > 0

    return couples if _is_bfloat16(stored) else numbers


@by_type
def scores_of(stored: Any, step: Any, size: Any, block: Any, queries: Any, factors: Any, out: Any, is_raw: Any) -> Any:
    """The products of a block's keys, `stored` with a `step` from row to row, and of a tile of queries that `load_queries` made.

    Times the scale of each query, which numbers have already; where couples make whole tiles, not if `is_raw`.
    """

    def numbers(stored: Any, step: Any, size: Any, block: Any, queries: Any, factors: Any, out: Any, is_raw: Any) -> None:
        width = tile_of(out)
        product(queries, width, stored, step, 1, block.keys, size, out, width, block.queries, out)

    def couples(stored: Any, step: Any, size: Any, block: Any, queries: Any, factors: Any, out: Any, is_raw: Any) -> None:
        width, depth, whole = tile_of(out), size // 2, 0
        if fits(depth):
            whole = block.keys // SIDE * SIDE
            tiles_product(queries, width, stored, step, TILED, whole, depth, out, width, block.queries)
        if whole < block.keys:
            rest, to = stored + whole * step, out + whole * width
            product(queries, width, rest, step, 2, block.keys - whole, depth, to, width, block.queries, factors)
        if not is_raw:
            scale_lines(out, block.keys, block.queries, factors)

    return couples if _is_bfloat16(stored) else numbers


@by_type
def in_couples(stored: Any, scores: Any, block: Any, scale: Any, largest: Any, total: Any, decay: Any) -> Any:
    """`advance` from raw scores to weights in couples, as `add_values` takes them."""

    def numbers(stored: Any, scores: Any, block: Any, scale: Any, largest: Any, total: Any, decay: Any) -> None:
        pass

    def couples(stored: Any, scores: Any, block: Any, scale: Any, largest: Any, total: Any, decay: Any) -> None:
        advance_in_couples(scores, block, scale, largest, total, decay)

    return couples if _is_bfloat16(stored) else numbers


@by_type
def add_values(stored: Any, call: Any, block: Any, weights: Any, decay: Any, sums: Any, is_coupled: Any) -> Any:
    """``sums = sums * decay + weights @ values``; overwrites the weights, which may be couples already."""

    def numbers(stored: Any, call: Any, block: Any, weights: Any, decay: Any, sums: Any, is_coupled: Any) -> None:
        width = tile_of(sums)
        decay_and_add_product(weights, width, stored, 1, call.value_row, call.value_dim, block.keys, sums, width, block.queries, decay)

    def couples(stored: Any, call: Any, block: Any, weights: Any, decay: Any, sums: Any, is_coupled: Any) -> None:
        width, size, depth = tile_of(sums), call.value_dim, (block.keys + 1) // 2
        if not is_coupled:
            couple_lines(weights, block, weights)
        rows = couples_of_rows(call, block, call.value_couples, size)
        if fits(size // 2):
            for r in range(0, block.queries, lanes_of(sums)):
                if not all_one(decay + r, 1):  # one register
                    scale_lines(sums + r, size, 1, decay + r)
            add_tiles_product(weights, width, rows, SIDE, size * SIDE, size, depth, sums, width, block.queries)
        else:
            decay_and_add_product(weights, width, rows, 1, size, size, depth, sums, width, block.queries, decay)

    return couples if _is_bfloat16(stored) else numbers


@by_type
def add_d_query(stored: Any, call: Any, block: Any, d_scores: Any, spare: Any, d_query: Any) -> Any:
    """``d_query += d_scores @ keys``, lanes are queries; `spare` is another tile."""

    def numbers(stored: Any, call: Any, block: Any, d_scores: Any, spare: Any, d_query: Any) -> None:
        width = tile_of(d_scores)
        add_product(d_scores, width, stored, 1, call.key_row, call.head_dim, block.keys, d_query, width, block.queries, d_query)

    def couples(stored: Any, call: Any, block: Any, d_scores: Any, spare: Any, d_query: Any) -> None:
        width, size = tile_of(d_scores), call.head_dim
        couple_lines(d_scores, block, spare)
        rows = couples_of_rows(call, block, call.key_couples, size)
        depth = (block.keys + 1) // 2
        if fits(size // 2):
            add_tiles_product(spare, width, rows, SIDE, size * SIDE, size, depth, d_query, width, block.queries)
        else:
            add_product(spare, width, rows, 1, size, size, depth, d_query, width, block.queries, d_query)

    return couples if _is_bfloat16(stored) else numbers


@by_type
def add_rows(stored: Any, block: Any, skip: Any, weights: Any, rows: Any, row: Any, out: Any) -> Any:
    """``out += weights @ rows``, lanes are dimensions; `rows` are those that `load_query_rows` made, from the tile's first query on.

    Overwrites the weights.
    """

    def numbers(stored: Any, block: Any, skip: Any, weights: Any, rows: Any, row: Any, out: Any) -> None:
        add_product(rows + skip * row, row, weights, tile_of(weights), 1, block.keys, block.queries, out, row, row, out)

    def couples(stored: Any, block: Any, skip: Any, weights: Any, rows: Any, row: Any, out: Any) -> None:
        narrow_lines(weights, block)
        lines, step, count = halves_of(weights), 2 * tile_of(weights), (block.queries + 1) // 2
        here, whole = rows + skip // 2 * row, 0
        if fits(SIDE):
            whole = block.keys // SIDE * SIDE
            add_tiles_product(here, row, lines, step, TILED, whole, count, out, row, row)
        add_product(here, row, lines + whole * step, step, 2, block.keys - whole, count, out + whole * row, row, row, out)

    return couples if _is_bfloat16(stored) else numbers
