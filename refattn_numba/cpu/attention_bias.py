"""The gradient of a bias that is added to the scores, of any shape that broadcasts.

It is a pass of its own over the tiles of weights, since the heads and examples that share a bias add to one gradient: a task is
the bias's own part, a head or what many share, and within it a tile of queries where they differ.
"""

from __future__ import annotations

from typing import Any

from refattn._core import Array, Integers
from refattn_numba.cpu.attention_backward import weights_with_options
from refattn_numba.cpu.attention_stages import KEYS, Block, load_keep, mask_outside_band, scores_to_logits, sees_nothing
from refattn_numba.cpu.jit import compiled, kernel
from refattn_numba.cpu.products import SPARE, product
from refattn_numba.cpu.simd import filled, lanes_of, load, next_of, pointer_to, store, tile_of, total_of, transpose
from refattn_numba.cpu.sizes import ceil_to, larger, smaller
from refattn_numba.cpu.tiles import fill, load_tile, with_spare_lines


def bias_memory(head_dim: int, value_dim: int, tile: int) -> int:
    """How many numbers a thread works on."""
    return (sum(-(-n // SPARE) * SPARE for n in (head_dim, value_dim, *(KEYS,) * 4)) + 4) * tile


@kernel
def backward_bias(calls: Any, options: Any, memory: Array, counters: Integers) -> None:
    """Add to `d_bias`, which has the axes of the bias: batch, head, query and key, each of size 1 where it is broadcast.

    The backward kernel has to run before, for `centre`. The arguments are those of the forward kernel.
    """
    call = options[0]
    head_dim, value_dim = call.head_dim, call.value_dim
    queries = pointer_to(memory.ctypes.data, memory) + next_of(counters, 1) * call.memory_size
    tile = tile_of(queries)
    d_outputs = queries + with_spare_lines(head_dim) * tile
    weights = d_outputs + with_spare_lines(value_dim) * tile
    d_logits = weights + with_spare_lines(KEYS) * tile
    given = d_logits + with_spare_lines(KEYS) * tile
    slopes = given + with_spare_lines(KEYS) * tile
    factors = slopes + with_spare_lines(KEYS) * tile
    centre, shift, inverse = factors + tile, factors + 2 * tile, factors + 3 * tile
    batches, tiles = call.count // larger(call.heads, 1), ceil_to(call.query_len, tile) // tile
    own_batches = batches if call.bias_batch else 1
    own_heads = call.heads if call.bias_head else 1
    own_tiles = tiles if call.bias_row else 1
    rows, columns = call.query_len if call.bias_row else 1, call.key_len if call.bias_column else 1
    while True:
        task = next_of(counters, 0)
        if task >= own_batches * own_heads * own_tiles:
            return
        part = task // own_tiles
        out = pointer_to(call.d_bias, memory) + part * rows * columns
        for unit in range(task % own_tiles, batches // own_batches * (call.heads // own_heads) * tiles, own_tiles):
            # what shares the bias: other examples, other heads, and all tiles of queries where the bias has one row
            first, member = unit % tiles * tile, unit // tiles
            batch = part // own_heads if call.bias_batch else member // (call.heads // own_heads)
            head = part % own_heads if call.bias_head else member % (call.heads // own_heads)
            count = smaller(tile, call.query_len - first)
            kv_head, at = head // call.group, (batch * call.heads + head) * call.query_rows + first
            query = pointer_to(call.query, memory) + (batch * call.query_batch + head * call.query_head + first * call.query_row)
            key = pointer_to(call.key, memory) + (batch * call.key_batch + kv_head * call.key_head)
            value = pointer_to(call.value, memory) + (batch * call.value_batch + kv_head * call.value_head)
            at_d = batch * call.d_output_batch + head * call.d_output_head + first * call.d_output_row
            fill(factors, tile, call.scale)
            for r in range(count):
                centre[r] = pointer_to(call.centre, memory)[at + r]
                shift[r], inverse[r] = pointer_to(call.shift, memory)[at + r], pointer_to(call.inverse, memory)[at + r]
            load_tile(query, call.query_row, count, head_dim, factors, queries)
            fill(factors, tile, 1.0)
            load_tile(pointer_to(call.d_output, memory) + at_d, call.d_output_row, count, value_dim, factors, d_outputs)
            key_end = smaller(call.key_len, first + count + call.after)
            for k in range(larger(0, first - call.before), key_end, KEYS):
                block = Block(batch, head, first, count, k, smaller(KEYS, key_end - k))
                if sees_nothing(call, block):
                    continue
                product(queries, tile, key + k * call.key_row, call.key_row, 1, block.keys, head_dim, weights, tile, count, weights)
                values = value + k * call.value_row
                product(d_outputs, tile, values, call.value_row, 1, block.keys, value_dim, d_logits, tile, count, weights)
                scores_to_logits(call, block, weights, given, slopes)
                mask_outside_band(weights, block, call.before, call.after)
                load_keep(call, block, given)
                weights_with_options(call, block, weights, d_logits, given, slopes, centre, shift, inverse, False)
                _add(d_logits, block, out + (first if call.bias_row else 0) * columns, call.bias_row, call.bias_column, columns)


@compiled
def _add(d_logits: Any, block: Block, out: Any, has_rows: int, has_columns: int, columns: int) -> None:
    """Add a tile to the rows of a gradient, or its sums to what it has of rows and columns; overwrites the tile."""
    width, lanes = tile_of(d_logits), lanes_of(d_logits)
    if has_rows and has_columns:
        for r in range(0, block.queries, lanes):
            whole = block.keys // lanes * lanes if r + lanes <= block.queries else 0
            for c in range(0, whole, lanes):
                square = d_logits + (c * width + r)
                transpose(square, width, square, width)
                for row in range(lanes):
                    i = (r + row) * columns + block.key + c
                    store(out, i, load(out, i) + load(square, row * width))
            for row in range(r, smaller(r + lanes, block.queries)):
                for c in range(whole, block.keys):
                    out[row * columns + block.key + c] += d_logits[c * width + row]
        return
    if has_rows:
        for r in range(block.queries):
            for c in range(block.keys):
                out[r] += d_logits[c * width + r]
        return
    whole = block.queries // lanes * lanes
    for c in range(block.keys):
        total = filled(d_logits, 0.0)
        for r in range(0, whole, lanes):
            total = total + load(d_logits, c * width + r)
        number = total_of(total)
        for r in range(whole, block.queries):
            number += d_logits[c * width + r]
        out[(block.key + c) if has_columns else 0] += number
