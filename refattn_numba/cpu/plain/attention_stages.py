"""What attention does to one tile of scores, forward and backward.

A tile of scores is a lane tile (`tiles`): its rows are keys, its columns are queries, so that the softmax needs no sum along
a vector register. A masked pair has the logit -inf, and by this every later stage knows it.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from refattn._core import Array
from refattn_numba.cpu.jit import compiled
from refattn_numba.cpu.packing import Pairs
from refattn_numba.cpu.plain.exponential import exp, tanh
from refattn_numba.cpu.plain.tiles import LANES, LINES, TILE
from refattn_numba.cpu.sizes import ceil_to, larger, smaller

Real: TypeAlias = np.floating[Any]  # a number in the precision of the call


class Operands(NamedTuple):
    """What every tile reads; batch and heads are one axis, and `sinks` is empty where there are none."""

    query: Array
    key: Array
    value: Array
    sinks: Array


class Sizes(NamedTuple):
    """Integers that all tiles have in common: query i may attend to the keys from ``i - before`` to ``i + after``."""

    heads: int
    group: int
    query_len: int
    key_len: int
    before: int
    after: int


class Block(NamedTuple):
    """Which pairs of queries and keys a tile holds; `head` counts through the batch too."""

    head: int
    query: int
    queries: int
    key: int
    keys: int


class Scoring(NamedTuple):
    """What stands between a product of query and key and its logit, and between a weight and the value.

    Attributes
    ----------
    row_scale : Pairs
        The scale where it is the same for all keys; queries are multiplied by it.
    scale, bias, mask, keep : Pairs
        The options of these names; `scale` is absent where it is a `row_scale`.
    softcap, keep_factor, fill : float
        In the precision of the call: the bound, 0 for none; what dropout multiplies by; each weight of an empty row.
    """

    row_scale: Pairs
    scale: Pairs
    bias: Pairs
    mask: Pairs
    keep: Pairs
    softcap: Real
    keep_factor: Real
    fill: Real


class Rows(NamedTuple):
    """What the forward pass leaves of each row: its softmax subtracted `shift` and multiplied by `inverse`, 0 if empty."""

    output: Array
    lse: Array
    shift: Array
    inverse: Array


@compiled
def key_range(query: int, queries: int, sizes: Sizes) -> tuple[int, int]:
    """The keys that a tile of queries may attend to, from the first tile that holds one of them."""
    first = larger(0, query - sizes.before) // TILE * TILE
    return first, smaller(sizes.key_len, query + queries + sizes.after)


@compiled
def query_range(key: int, keys: int, sizes: Sizes) -> tuple[int, int]:
    """The queries that may attend to a tile of keys, from the first tile that holds one of them."""
    first = larger(0, key - sizes.after) // TILE * TILE
    return first, smaller(sizes.query_len, key + keys + sizes.before)


@compiled
def load_factors(row_scale: Pairs, head: int, query: int, queries: int, factors: Array) -> None:
    """The factor of each query: the scale, where it is the same for all keys."""
    at = row_scale.start[head] + query * row_scale.query_step
    for r in range(queries):
        factors[r] = row_scale.values[at + r * row_scale.query_step]


@compiled
def load_pairs(pairs: Pairs, block: Block, tile: Array) -> None:
    """The numbers of a block as a lane tile; rows of queries are read one after the other, as they lie far apart."""
    at = pairs.start[block.head] + block.query * pairs.query_step + block.key * pairs.key_step
    if pairs.query_step:
        for r in range(block.queries):
            row = at + r * pairs.query_step
            for c in range(block.keys):
                tile[c, r] = pairs.values[row + c * pairs.key_step]
    else:
        for c in range(block.keys):
            number = pairs.values[at + c * pairs.key_step]
            for r in range(block.queries):
                tile[c, r] = number


@compiled
def add_to_pairs(tile: Array, block: Block, pairs: Pairs, d_values: Array) -> None:
    """Add a tile to the gradient of numbers that differ along queries and keys."""
    at = pairs.start[block.head] + block.query * pairs.query_step + block.key * pairs.key_step
    for r in range(block.queries):
        row = at + r * pairs.query_step
        for c in range(block.keys):
            d_values[row + c * pairs.key_step] += tile[c, r]


@compiled
def scores_to_logits(tile: Array, products: Array, slopes: Array, given: Array, block: Block, sizes: Sizes, scoring: Scoring) -> None:
    """Scale, softcap, bias and masks, in place; `products` keeps the scores of before, `slopes` the softcap's derivative."""
    if scoring.scale.values.size:
        load_pairs(scoring.scale, block, given)
        _scale(tile, products, given, block)
    if scoring.softcap:
        _softcap(tile, slopes, block, scoring.softcap)
    if scoring.bias.values.size:
        load_pairs(scoring.bias, block, given)
        _add_bias(tile, given, block)
    if scoring.mask.values.size:
        load_pairs(scoring.mask, block, given)
        _mask(tile, given, block)
    _mask_outside_band(tile, block, sizes)
    _mask_padding(tile, block)


@compiled
def _scale(tile: Array, products: Array, scale: Array, block: Block) -> None:
    for c in range(block.keys):
        for r in range(block.queries):
            products[c, r] = tile[c, r]
            tile[c, r] *= scale[c, r]


@compiled
def _softcap(tile: Array, slopes: Array, block: Block, cap: Real) -> None:
    one = tile.dtype.type(1)
    for c in range(block.keys):
        for r in range(block.queries):
            bounded = tanh(tile[c, r] / cap)
            slopes[c, r] = one - bounded * bounded
            tile[c, r] = cap * bounded


@compiled
def _add_bias(tile: Array, bias: Array, block: Block) -> None:
    for c in range(block.keys):
        for r in range(block.queries):
            tile[c, r] = bias[c, r] if bias[c, r] == -np.inf else tile[c, r] + bias[c, r]


@compiled
def _mask(tile: Array, mask: Array, block: Block) -> None:
    masked = tile.dtype.type(-np.inf)
    for c in range(block.keys):
        for r in range(block.queries):
            tile[c, r] = tile[c, r] if mask[c, r] != 0 else masked


@compiled
def _mask_outside_band(tile: Array, block: Block, sizes: Sizes) -> None:
    last_query, last_key = block.query + block.queries - 1, block.key + block.keys - 1
    if last_query - sizes.before <= block.key and last_key <= block.query + sizes.after:
        return
    for c in range(block.keys):
        column = block.key + c - block.query
        tile[c, : smaller(larger(column - sizes.after, 0), block.queries)] = -np.inf
        tile[c, larger(column + sizes.before + 1, 0) : block.queries] = -np.inf


@compiled
def _mask_padding(tile: Array, block: Block) -> None:
    width = ceil_to(block.queries, LANES)
    if block.queries < width:
        tile[: block.keys, block.queries : width] = -np.inf
    tile[block.keys : ceil_to(block.keys, LINES), :width] = -np.inf


@compiled
def drop(tile: Array, kept: Array, factor: Real, block: Block) -> None:
    """Dropout of a tile, in place."""
    for c in range(block.keys):
        for r in range(block.queries):
            tile[c, r] *= kept[c, r] * factor


@compiled
def begin(largest: Array, total: Array, sums: Array, width: int) -> None:
    """The running softmax of no key."""
    for r in range(width):
        largest[r] = -np.inf
        total[r] = 0
    sums[:, :width] = 0


@compiled
def advance(logits: Array, weights: Array, largest: Array, total: Array, decay: Array, sums: Array, block: Block) -> None:
    """One step of the running softmax: weights relative to the new `largest`, and by what earlier ones shrink."""
    zero = logits.dtype.type(0)
    keys, width = ceil_to(block.keys, LINES), ceil_to(block.queries, LANES)
    for r in range(width):
        decay[r] = largest[r]
        sums[r] = zero
    for c in range(keys):
        for r in range(width):
            largest[r] = larger(logits[c, r], largest[r])
    for c in range(keys):
        for r in range(width):
            weights[c, r] = exp(logits[c, r] - finite_or(zero, largest[r]))
            sums[r] += weights[c, r]
    for r in range(width):
        decay[r] = exp(decay[r] - finite_or(zero, largest[r]))
        total[r] = total[r] * decay[r] + sums[r]


@compiled
def finite_or(zero: Real, largest: Real) -> Real:
    """What is subtracted before the exponential: the largest logit, or 0 in a row that has nothing yet."""
    return largest if largest != -np.inf else zero


@compiled
def weights_backward(
    logits: Array, weights: Array, d_tile: Array, given: Array, rows: Rows, centre: Array, block: Block, scoring: Scoring
) -> None:
    """From the cotangent of what multiplies the values to that of the logits; `weights` become those after dropout."""
    zero = logits.dtype.type(0)
    last = block.query + block.queries
    shift, inverse = rows.shift[block.head, block.query : last], rows.inverse[block.head, block.query : last]
    centres = centre[block.head, block.query : last]
    if scoring.keep.values.size:
        load_pairs(scoring.keep, block, given)
        drop(d_tile, given, scoring.keep_factor, block)
    for c in range(block.keys):
        for r in range(block.queries):
            masked = logits[c, r] == -np.inf
            weight = exp(logits[c, r] - shift[r]) * inverse[r]
            weights[c, r] = zero if masked else weight
            d_tile[c, r] = zero if masked else weight * (d_tile[c, r] - centres[r])
    clear_padding(weights, block)
    clear_padding(d_tile, block)
    if scoring.keep.values.size:
        drop(weights, given, scoring.keep_factor, block)


@compiled
def clear_padding(tile: Array, block: Block) -> None:
    """Zeros where products read beyond a tile's own keys and queries."""
    width = ceil_to(block.queries, LANES)
    if block.queries < width:
        tile[: block.keys, block.queries : width] = 0
    tile[block.keys : ceil_to(block.keys, LINES), :width] = 0


@compiled
def logits_backward(logits: Array, d_tile: Array, products: Array, slopes: Array, given: Array, block: Block, scoring: Scoring) -> None:
    """From the cotangent of the logits to that of the products; `products` become the cotangent of the scale."""
    zero = logits.dtype.type(0)
    if scoring.softcap:
        for c in range(block.keys):
            for r in range(block.queries):
                d_tile[c, r] = d_tile[c, r] * slopes[c, r] if logits[c, r] != -np.inf else zero
    if scoring.scale.values.size:
        load_pairs(scoring.scale, block, given)
        for c in range(block.keys):
            for r in range(block.queries):
                masked, d_score = logits[c, r] == -np.inf, d_tile[c, r]
                products[c, r] = zero if masked else d_score * products[c, r]
                d_tile[c, r] = zero if masked else d_score * given[c, r]


@compiled
def add_to_queries(tile: Array, block: Block, d_rows: Array) -> None:
    """Add a tile, summed over its keys, to one number for each query."""
    out = d_rows[block.head]
    for c in range(block.keys):
        for r in range(block.queries):
            out[block.query + r] += tile[c, r]


@compiled
def add_to_keys(tile: Array, block: Block, d_columns: Array) -> None:
    """Add a tile, summed over its queries, to one number for each key."""
    out = d_columns[block.head]
    for c in range(block.keys):
        total = tile[c, 0]
        for r in range(1, block.queries):
            total += tile[c, r]
        out[block.key + c] += total
