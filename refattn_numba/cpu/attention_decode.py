"""The forward pass of a few queries over many keys, where all the time goes into reading these.

Lanes are the dimensions of a head here, so that keys and values are read once, in the order of memory. A task is a stretch of
the keys of one head (`splits` of them); what the stretches give is merged afterwards (`merged`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn._core import Array, Integers
from refattn_numba.cpu.exponential import exp
from refattn_numba.cpu.jit import compiled, kernel
from refattn_numba.cpu.simd import filled, lanes_of, largest_of, load, maximum, multiply_add, next_of, pointer_to, store, tile_of, total_of
from refattn_numba.cpu.sizes import ceil_to, smaller
from refattn_numba.cpu.tiles import fill, load_rows

FEW = 8
"""Queries, or heads that share keys, up to which this is faster than tiles."""


def decode_memory(head_dim: int, tile: int) -> int:
    """How many numbers a thread works on."""
    return (FEW * (-(-head_dim // tile) + 1) + 1) * tile


@kernel
def decode(calls: Any, options: Any, memory: Array, counters: Integers) -> None:
    """Fill `parts`, with the axes kv head, split, query: the sum of weighted values, the largest score, the sum of weights.

    Every query sees the keys from `first_key` to `end_key`. The arguments are those of the forward kernel.
    """
    call = calls[0]
    queries = pointer_to(memory.ctypes.data, memory) + next_of(counters, 1) * call.memory_size
    tile, rows, value_dim = tile_of(queries), call.query_len, call.value_dim
    size = ceil_to(call.head_dim, lanes_of(queries))
    factors, scores = queries + rows * size, queries + rows * size + tile
    stretch = ceil_to(ceil_to(call.end_key - call.first_key, call.splits) // call.splits, tile)
    while True:
        task = next_of(counters, 0)
        if task >= call.count * call.splits:
            return
        head, split = task // call.splits, task % call.splits
        batch, head = head // call.heads, head % call.heads
        query = pointer_to(call.query, memory) + (batch * call.query_batch + head * call.query_head)
        key = pointer_to(call.key, memory) + (batch * call.key_batch + head // call.group * call.key_head)
        value = pointer_to(call.value, memory) + (batch * call.value_batch + head // call.group * call.value_head)
        fill(factors, tile, call.scale)
        load_rows(query, call.query_row, rows, call.head_dim, factors, queries, size)
        sums = pointer_to(call.parts, memory) + task * rows * (value_dim + 2)
        for r in range(rows):
            for d in range(value_dim + 2):
                sums[r * (value_dim + 2) + d] = 0
            sums[r * (value_dim + 2) + value_dim] = -np.inf
        first = call.first_key + split * stretch
        for k in range(first, smaller(first + stretch, call.end_key), tile):
            n = smaller(tile, smaller(first + stretch, call.end_key) - k)
            for r in range(rows):
                fill(scores + r * tile, tile, -np.inf)
            for c in range(n):
                for r in range(rows):
                    scores[r * tile + c] = _dot(queries + r * size, key + (k + c) * call.key_row, call.head_dim)
            for r in range(rows):
                _attend(scores + r * tile, n, value + k * call.value_row, call.value_row, value_dim, sums + r * (value_dim + 2))


@compiled
def _dot(a: Any, b: Any, size: int) -> Any:
    lanes, total = lanes_of(a), filled(a, 0.0)
    whole = size // lanes * lanes
    for d in range(0, whole, lanes):
        total = multiply_add(load(a, d), load(b, d), total)
    number = total_of(total)
    for d in range(whole, size):
        number += a[d] * b[d]
    return number


@compiled
def _attend(scores: Any, keys: int, value: Any, step: int, size: int, sums: Any) -> None:
    """One step of the running softmax of one query; behind `sums` stand the largest score and the sum of weights."""
    lanes, tile = lanes_of(scores), tile_of(scores)
    before = sums[size]
    most = filled(scores, before)
    for c in range(0, tile, lanes):
        most = maximum(load(scores, c), most)
    now = largest_of(most)
    shift = filled(scores, now if now != -np.inf else 0.0)
    added = filled(scores, 0.0)
    for c in range(0, tile, lanes):
        weight = exp(load(scores, c) - shift)
        store(scores, c, weight)
        added = added + weight
    by = exp(filled(scores, before) - shift)
    decay = total_of(by) / lanes
    sums[size], sums[size + 1] = now, sums[size + 1] * decay + total_of(added)
    whole = size // lanes * lanes
    for d in range(0, whole, lanes):
        store(sums, d, load(sums, d) * by)
    for d in range(whole, size):
        sums[d] *= decay
    for c in range(0, keys, 4):  # the weights behind the last key are 0; its values are read again
        rows = value + c * step
        second, third, fourth = smaller(1, keys - 1 - c), smaller(2, keys - 1 - c), smaller(3, keys - 1 - c)
        w0, w1 = filled(scores, scores[c]), filled(scores, scores[c + 1])
        w2, w3 = filled(scores, scores[c + 2]), filled(scores, scores[c + 3])
        for d in range(0, whole, lanes):
            a = multiply_add(w0, load(rows, d), multiply_add(w1, load(rows, second * step + d), load(sums, d)))
            store(sums, d, multiply_add(w2, load(rows, third * step + d), multiply_add(w3, load(rows, fourth * step + d), a)))
        for d in range(whole, size):
            for i in range(smaller(4, keys - c)):
                sums[d] += scores[c + i] * rows[i * step + d]


def merged(parts: Array, sinks: Array | None) -> tuple[Array, Array, Array, Array]:
    """Output, log-sum-exp, shift and inverse from parts with the axes example, head, split, query, number."""
    largest, total = parts[..., -2], parts[..., -1]
    most = largest.max(axis=2)
    if sinks is not None:
        most = np.maximum(most, sinks[:, None])
    shift = np.where(np.isneginf(most), 0, most)
    factors = np.exp(largest - shift[:, :, None])
    whole = (total * factors).sum(axis=2)
    if sinks is not None:
        whole = whole + np.exp(sinks[:, None] - shift)
    inverse = np.where(whole == 0, 0, 1 / whole)
    return (parts[..., :-2] * (factors * inverse[:, :, None])[..., None]).sum(axis=2), shift + np.log(whole), shift, inverse
