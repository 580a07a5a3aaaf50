"""The backward pass: each tile of weights is computed again, once.

A task is the queries of one head of keys, or a part of them (`chunks`), so that no two tasks write to one place. It walks over
panels of keys, as many as the second-level cache holds together with their gradients, and for each panel over all its tiles
of queries. For one tile of weights there are five products::

    scores     S[c, r]  = K[c] . Q[r]         lanes: queries        K and V are read where they lie
    d_weights  dP[c, r] = V[c] . dO[r]        lanes: queries
    d_query    dQ[d, r] += K[c, d] dS[c, r]   lanes: queries        a transposed tile, for all keys of the panel
    d_value    dV[c, d] += P[c, r] dO[r, d]   lanes: value_dim      panels in scratch memory, for all queries
    d_key      dK[c, d] += dS[c, r] Q[r, d]   lanes: head_dim

Queries and cotangents are needed both transposed and as rows of whole registers; both are made once for a panel. Every sum
over a tile is made in registers and then added to memory, so that it has the rounding errors of a blocked sum.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn._core import Array, Integers
from refattn_numba.cpu.attention_hidden import add_visible, add_visible_rows, hide
from refattn_numba.cpu.attention_operands import add_d_query, add_rows, granule, leaves_raw, load_queries, load_query_rows, scores_of
from refattn_numba.cpu.attention_stages import (
    KEYS,
    Block,
    copy_tile,
    load_keep,
    mask_outside_band,
    next_keys,
    scores_to_logits,
    sees_nothing,
)
from refattn_numba.cpu.call import place_of
from refattn_numba.cpu.exponential import exp
from refattn_numba.cpu.jit import compiled, kernel
from refattn_numba.cpu.matrix_tiles import leave_tiles, take_tiles
from refattn_numba.cpu.products import SPARE
from refattn_numba.cpu.simd import (
    accumulators,
    filled,
    get,
    lanes_of,
    load,
    multiply_add,
    next_of,
    pointer_to,
    select,
    store,
    tile_of,
    total_of,
)
from refattn_numba.cpu.sizes import ceil_to, larger, smaller
from refattn_numba.cpu.tiles import all_finite, fill, load_rows, store_rows, store_tile, with_spare_lines

PANEL_BYTES = 1 << 19  # of keys, values and their gradients: half of a usual second-level cache


def backward_sizes(head_dim: int, value_dim: int, key_len: int, tile: int, lanes: int, itemsize: int) -> tuple[int, int]:
    """Keys of a panel, and how many numbers a thread works on."""
    lines = lambda n: -(-n // SPARE) * SPARE  # noqa: E731
    key_row, value_row = (-(-n // lanes) * lanes for n in (head_dim, value_dim))
    panel = max(1, min(PANEL_BYTES // (2 * itemsize * (key_row + value_row)), key_len) // KEYS) * KEYS
    tiles = 2 * lines(head_dim) + lines(value_dim) + 5 * lines(KEYS) + key_row + value_row + 5
    return panel, -(-(tiles * tile + (panel + SPARE) * (key_row + value_row)) // tile) * tile


@kernel
def backward(calls: Any, options: Any, memory: Array, counters: Integers) -> None:
    """Fill `d_query`, `centre` (the sum of weights times their cotangents, less that of lse), and parts of `d_key`, `d_value`.

    The parts have the axes kv head, chunk, key, dimension. The arguments are those of the forward kernel; a task is a chunk.
    """
    call = calls[0]
    head_dim, value_dim = call.head_dim, call.value_dim
    queries = accumulators(memory.ctypes.data, memory) + next_of(counters, 1) * call.memory_size
    tile, lanes = tile_of(queries), lanes_of(queries)
    query_row, value_row = ceil_to(head_dim, lanes), ceil_to(value_dim, lanes)
    d_query = queries + with_spare_lines(head_dim) * tile
    d_outputs = d_query + with_spare_lines(head_dim) * tile
    weights = d_outputs + with_spare_lines(value_dim) * tile
    d_scores = weights + with_spare_lines(KEYS) * tile
    given = d_scores + with_spare_lines(KEYS) * tile
    slopes = given + with_spare_lines(KEYS) * tile
    logits = slopes + with_spare_lines(KEYS) * tile
    query_rows = logits + with_spare_lines(KEYS) * tile
    d_output_rows = query_rows + query_row * tile
    factors = d_output_rows + value_row * tile
    centre, shift, inverse = factors + tile, factors + 2 * tile, factors + 3 * tile
    ones = factors + 4 * tile
    fill(ones, tile, 1.0)
    take_tiles(memory)
    d_keys = factors + 5 * tile
    d_values = d_keys + (call.panel + SPARE) * query_row
    while True:
        which, task = place_of(calls, next_of(counters, 0))
        if which == calls.size:
            leave_tiles(memory)
            return
        call = calls[which]
        tiles = ceil_to(call.query_len, tile) // tile
        kv_heads, units = call.heads // larger(call.group, 1), tiles * call.group
        kv, chunk = task // call.chunks, call.chunks - 1 - task % call.chunks
        batch, kv_head = kv // kv_heads, kv % kv_heads
        key = pointer_to(call.key, memory) + (batch * call.key_batch + kv_head * call.key_head)
        value = pointer_to(call.value, memory) + (batch * call.value_batch + kv_head * call.value_head)
        part = kv * call.chunks + chunk
        for start in range(0, larger(call.key_len, 1), call.panel):
            end = smaller(start + call.panel, call.key_len)
            fill(d_keys, (end - start) * query_row, 0.0)
            fill(d_values, (end - start) * value_row, 0.0)
            for unit in range(chunk * units // call.chunks, (chunk + 1) * units // call.chunks):
                head, first = kv_head * call.group + unit // tiles, unit % tiles * tile
                count = smaller(tile, call.query_len - first)
                at = (batch * call.heads + head) * call.query_rows + first
                out = pointer_to(call.d_query, queries) + at * head_dim
                key_first, key_end = larger(0, first - call.before), smaller(call.key_len, first + count + call.after)
                low, high = larger(key_first, start), smaller(key_end, end)
                if low >= high and start > 0:
                    continue
                query = pointer_to(call.query, memory) + (batch * call.query_batch + head * call.query_head + first * call.query_row)
                at_d = batch * call.d_output_batch + head * call.d_output_head + first * call.d_output_row
                d_output = pointer_to(call.d_output, memory) + at_d
                _centres(call, at, count, d_output, centre, shift, inverse)
                if key_first >= key_end:
                    for i in range(count * head_dim):
                        out[i] = 0
                if low >= high:
                    continue
                fill(factors, tile, call.scale)
                load_queries(query, call.query_row, count, head_dim, factors, queries)
                load_query_rows(query, call.query_row, count, head_dim, ones, query_rows, query_row)
                load_queries(d_output, call.d_output_row, count, value_dim, ones, d_outputs)
                load_query_rows(d_output, call.d_output_row, count, value_dim, ones, d_output_rows, value_row)
                fill(d_query, head_dim * tile, 0.0)
                # whole groups of lines, since products write no less; what that adds is masked
                step = granule(query, SPARE)
                low, high = start + (low - start) // step * step, smaller(start + ceil_to(high - start, step), end)
                k = low
                while k < high:
                    n, skip = next_keys(first, count, call.after, k, high, step, granule(query, lanes))
                    block = Block(batch, head, first + skip, count - skip, k, n)
                    if options is not None and sees_nothing(options[which], block):
                        k += n
                        continue
                    keys, values = key + k * call.key_row, value + k * call.value_row
                    p, ds, of_tile = weights + skip, d_scores + skip, centre + skip
                    is_raw = options is None and leaves_raw(query, head_dim, call.scale)
                    scores_of(keys, call.key_row, head_dim, block, queries + skip, factors + skip, p, is_raw)
                    scores_of(values, call.value_row, value_dim, block, d_outputs + skip, ones, ds, True)
                    if options is not None:
                        scores_to_logits(options[which], block, p, given, slopes)
                    masked = mask_outside_band(p, block, call.before, call.after)
                    if options is not None:
                        masked |= (options[which].mask != 0) | (options[which].bias != 0)
                    odd = masked and not (
                        all_finite(keys, call.key_row, n, head_dim)
                        and all_finite(values, call.value_row, n, value_dim)
                        and all_finite(query, call.query_row, count, head_dim)
                        and all_finite(d_output, call.d_output_row, count, value_dim)
                        and all_finite(centre, tile, 3, count)
                    )
                    if odd:
                        copy_tile(p, block, logits)
                    if options is not None:
                        load_keep(options[which], block, given)
                        weights_with_options(options[which], block, p, ds, given, slopes, of_tile, shift + skip, inverse + skip, True)
                    else:
                        _weights(block, p, ds, call.scale if is_raw else 1.0, of_tile, shift + skip, inverse + skip)
                    made, d_made = d_keys + (k - start) * query_row, d_values + (k - start) * value_row
                    if odd:
                        load_rows(query, call.query_row, count, head_dim, ones, query_rows, query_row)
                        load_rows(d_output, call.d_output_row, count, value_dim, ones, d_output_rows, value_row)
                        hide(logits, block, p)
                        hide(logits, block, ds)
                        add_visible(logits, block, ds, keys, call.key_row, head_dim, ones, d_query + skip)
                        add_visible_rows(logits, block, p, d_output_rows + skip * value_row, value_row, d_made)
                        add_visible_rows(logits, block, ds, query_rows + skip * query_row, query_row, made)
                        load_query_rows(query, call.query_row, count, head_dim, ones, query_rows, query_row)
                        load_query_rows(d_output, call.d_output_row, count, value_dim, ones, d_output_rows, value_row)
                    else:
                        add_d_query(keys, call, block, ds, logits, d_query + skip)
                        add_rows(values, block, skip, p, d_output_rows, value_row, d_made)
                        add_rows(keys, block, skip, ds, query_rows, query_row, made)
                    k += n
                store_tile(d_query, count, head_dim, factors, key_first < start, out, head_dim)
            to = pointer_to(call.d_key, queries) + (part * call.key_rows + start) * head_dim
            store_rows(d_keys, query_row, end - start, head_dim, call.scale, to, head_dim)
            to = pointer_to(call.d_value, queries) + (part * call.key_rows + start) * value_dim
            store_rows(d_values, value_row, end - start, value_dim, 1.0, to, value_dim)


@compiled
def _centres(call: Any, at: int, count: int, d_output: Any, centre: Any, shift: Any, inverse: Any) -> None:
    """What the tile's rows need of the forward pass, and the centre of each; that of an empty row is 0."""
    lanes, size = lanes_of(centre), call.value_dim
    whole, output, step = size // lanes * lanes, pointer_to(call.output, d_output) + at * size, call.d_output_row
    shifts, inverses, centres = pointer_to(call.shift, centre), pointer_to(call.inverse, centre), pointer_to(call.centre, centre)
    for r in range(count):
        shift[r], inverse[r] = shifts[at + r], inverses[at + r]
        total = filled(centre, 0.0)
        for d in range(0, whole, lanes):
            total = multiply_add(load(output, r * size + d), load(d_output, r * step + d), total)
        number = total_of(total)
        for d in range(whole, size):
            number += get(output, r * size + d) * get(d_output, r * step + d)
        if call.d_lse:
            number -= pointer_to(call.d_lse, centre)[at + r]
        centre[r] = number if inverse[r] != 0 else 0.0
        centres[at + r] = centre[r]


@compiled
def _weights(block: Block, logits: Any, d_weights: Any, scale: float, centre: Any, shift: Any, inverse: Any) -> None:
    """From logits, times the scale, to weights, and from the cotangent of weights to that of logits, both in place."""
    width, lanes, factor, zero = tile_of(logits), lanes_of(logits), filled(logits, scale), filled(logits, 0.0)
    for r in range(0, block.queries, lanes):
        less, by, middle = zero - load(shift, r), load(inverse, r), load(centre, r)
        for i in range(r, block.keys * width, width):
            weight = exp(multiply_add(load(logits, i), factor, less)) * by
            store(logits, i, weight)
            store(d_weights, i, weight * (load(d_weights, i) - middle))


@compiled
def weights_with_options(
    call: Any, block: Block, logits: Any, d_weights: Any, kept: Any, slopes: Any, centre: Any, shift: Any, inverse: Any, to_scores: bool
) -> None:
    """The same, where weights were dropped; with `to_scores` the cotangent is that of before the softcap. Masked pairs get 0."""
    width, lanes, factor = tile_of(logits), lanes_of(logits), filled(logits, call.keep_factor)
    masked, zero = filled(logits, -np.inf), filled(logits, 0.0)
    for r in range(0, block.queries, lanes):
        less, by, middle = load(shift, r), load(inverse, r), load(centre, r)
        for i in range(r, block.keys * width, width):
            logit, d_weight = load(logits, i), load(d_weights, i)
            weight = exp(logit - less) * by
            if call.keep:
                passed = load(kept, i) * factor
                d_score = weight * (d_weight * passed - middle)
                weight = weight * passed
            else:
                d_score = weight * (d_weight - middle)
            if to_scores and call.softcap != 0:
                d_score = d_score * load(slopes, i)
            store(logits, i, weight)
            store(d_weights, i, select(logit == masked, zero, d_score))
