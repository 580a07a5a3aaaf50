"""The forward pass: a running softmax over the tiles of keys, for one tile of queries at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn._core import Array, Integers
from refattn_numba.cpu.attention_hidden import add_visible
from refattn_numba.cpu.attention_operands import add_values, granule, in_couples, leaves_raw, load_queries, scores_of
from refattn_numba.cpu.attention_stages import (
    KEYS,
    Block,
    advance,
    copy_tile,
    drop,
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
from refattn_numba.cpu.simd import accumulators, filled, lanes_of, load, maximum, next_of, pointer_to, select, store, tile_of
from refattn_numba.cpu.sizes import ceil_to, larger, smaller
from refattn_numba.cpu.tiles import all_finite, fill, read_ahead, scale_lines, store_tile, with_spare_lines

FETCHING = 8  # last tiles of keys, during which the output's cache lines come, and those of the next queries


def forward_memory(head_dim: int, value_dim: int, tile: int) -> int:
    """How many numbers a thread works on: tiles, and vectors with a number for each query of a tile."""
    lines = (head_dim, value_dim, KEYS, KEYS, KEYS, KEYS)
    return (sum(-(-n // SPARE) * SPARE for n in lines) + 4) * tile


@kernel
def forward(calls: Any, options: Any, memory: Array, counters: Integers) -> None:
    """Fill `output`, `shift` and `inverse`: the softmax subtracted `shift` and multiplied by `inverse`.

    A task is one tile of queries of one of the calls; later ones, which see more keys under a causal mask, come first.
    `options` are the calls again where an option of pairs or the softcap is present, else None, and their code is not
    compiled. `counters` count the tasks and the threads.
    """
    call = calls[0]
    start = accumulators(memory.ctypes.data, memory) + next_of(counters, 1) * call.memory_size
    tile, head_dim, value_dim = tile_of(start), call.head_dim, call.value_dim
    queries = start
    sums = queries + with_spare_lines(head_dim) * tile
    weights = sums + with_spare_lines(value_dim) * tile
    given = weights + with_spare_lines(KEYS) * tile
    slopes = given + with_spare_lines(KEYS) * tile
    logits = slopes + with_spare_lines(KEYS) * tile
    factors = logits + with_spare_lines(KEYS) * tile
    largest, total, decay = factors + tile, factors + 2 * tile, factors + 3 * tile
    take_tiles(memory)
    while True:
        which, task = place_of(calls, next_of(counters, 0))
        if which == calls.size:
            leave_tiles(memory)
            return
        call = calls[which]
        tiles = ceil_to(call.query_len, tile) // tile
        head, first = task // tiles, (tiles - 1 - task % tiles) * tile
        batch, head = head // call.heads, head % call.heads
        count = smaller(tile, call.query_len - first)
        kv_head = head // call.group
        query = pointer_to(call.query, memory) + (batch * call.query_batch + head * call.query_head + first * call.query_row)
        key = pointer_to(call.key, memory) + (batch * call.key_batch + kv_head * call.key_head)
        value = pointer_to(call.value, memory) + (batch * call.value_batch + kv_head * call.value_head)
        fill(factors, tile, call.scale)
        read_ahead(query, call.query_row, count, head_dim)
        load_queries(query, call.query_row, count, head_dim, factors, queries)
        out = pointer_to(call.output, memory) + ((batch * call.heads + head) * call.query_rows + first) * value_dim
        fill(largest, tile, -np.inf)
        fill(total, tile, 0.0)
        fill(sums, value_dim * tile, 0.0)
        # whole couples of keys, or whole tiles: what that adds is masked
        step = granule(query, 2)
        at, key_end = larger(0, first - call.before) // step * step, smaller(call.key_len, ceil_to(first + count + call.after, step))
        fetched = 0
        while at < key_end:
            if fetched < count and key_end - at <= FETCHING * KEYS:
                rows = smaller(tile // FETCHING, count - fetched)
                read_ahead(out + fetched * value_dim, value_dim, rows, value_dim)
                read_ahead(query + (fetched - call.threads * tile) * call.query_row, call.query_row, rows, head_dim)
                fetched += rows
            n, skip = next_keys(first, count, call.after, at, key_end, step, lanes_of(queries))
            block = Block(batch, head, first + skip, count - skip, at, n)
            if options is not None and sees_nothing(options[which], block):
                at += n
                continue
            keys, values, scores = key + at * call.key_row, value + at * call.value_row, weights + skip
            if count <= lanes_of(queries):  # a few queries wait for memory alone
                read_ahead(values, call.value_row, n, value_dim)
            is_raw = options is None and leaves_raw(query, head_dim, call.scale)
            scores_of(keys, call.key_row, head_dim, block, queries + skip, factors + skip, scores, is_raw)
            if options is not None:
                scores_to_logits(options[which], block, scores, given, slopes)
            masked = mask_outside_band(scores, block, call.before, call.after)
            if options is not None:
                masked |= (options[which].mask != 0) | (options[which].bias != 0)
            odd = masked and not all_finite(values, call.value_row, n, value_dim)
            if odd:
                if is_raw:
                    scale_lines(scores, n, block.queries, factors + skip)
                    is_raw = False
                copy_tile(scores, block, logits)
            if is_raw:
                in_couples(query, scores, block, call.scale, largest + skip, total + skip, decay + skip)
            else:
                advance(scores, block, largest + skip, total + skip, decay + skip)
            if options is not None and options[which].keep:
                drop(options[which], block, scores, given)
            if count <= lanes_of(queries):
                read_ahead(keys + n * call.key_row, call.key_row, KEYS, head_dim)
            by = decay + skip
            if odd:
                add_visible(logits, block, scores, values, call.value_row, value_dim, by, sums + skip)
            else:
                add_values(values, call, block, scores, by, sums + skip, is_raw)
            at += n
        at = (batch * call.heads + head) * call.query_rows + first
        _add_sink(call, head, count, largest, total, decay, factors)
        for r in range(count):
            pointer_to(call.shift, start)[at + r] = largest[r]
            pointer_to(call.inverse, start)[at + r] = decay[r]
        store_tile(sums, count, value_dim, factors, False, out, value_dim)


@compiled
def _add_sink(call: Any, head: int, count: int, largest: Any, total: Any, decay: Any, factors: Any) -> None:
    """Let the sink take its weight; shift, total, its inverse, and what `sums` have to be multiplied by."""
    zero, one, nothing = filled(total, 0.0), filled(total, 1.0), filled(total, -np.inf)
    sink = nothing
    if call.sinks:
        sink = filled(total, pointer_to(call.sinks, total)[head])
    for r in range(0, count, lanes_of(total)):
        before = load(largest, r)
        now = maximum(sink, before)
        shift = select(now == nothing, zero, now)
        by = exp(before - shift)
        sum_now = load(total, r) * by + exp(sink - shift)
        inverse = select(sum_now == zero, zero, one / sum_now)
        store(largest, r, shift)
        store(total, r, sum_now)
        store(decay, r, inverse)
        store(factors, r, select(before == nothing, zero, by * inverse))  # a sink that is no number is nothing to a row without keys
