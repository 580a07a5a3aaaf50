"""Cotangent of the queries: tiles of queries stay, keys and values pass through shared memory.

Dao, "FlashAttention-2", ICLR 2024, algorithm 2 (arXiv:2307.08691), in two kernels in place of atomic sums, so that results repeat: this one
and that of keys both make the scores again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from refattn_numba.cuda import fragments, memory
from refattn_numba.cuda.fragments import LOG2_E, Element, Tile, bytes_of, stride_of
from refattn_numba.cuda.kernel import Parameters
from refattn_numba.cuda.kernels.place import OPERANDS, OPTIONS, addresses_of_pairs, numbers, places, strides


class Config(NamedTuple):
    """Sizes that are fixed when the kernel is compiled.

    Attributes
    ----------
    element : str
        Type of the operands.
    size : int
        Numbers in a row, to which smaller ones are padded with zeros in shared memory.
    rows : int
        Queries of one warp.
    row_warps : int
        Times `rows` are the queries of a block.
    parts : int
        Warps that share the same queries, each of which sums a part of the columns; each makes all scores.
    keys : int
        In a tile.
    stages : int
        Pairs of tiles of keys and values in shared memory, of which one is used while the others are filled.
    has_options : bool
        Whether there may be a mask, a bias, a cap, dropout, or a scale that is not positive.
    """

    element: Element
    size: int
    rows: int
    row_warps: int
    parts: int
    keys: int
    stages: int
    has_options: bool = False

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.row_warps * self.parts

    @property
    def tile(self) -> int:
        """Queries of a block."""
        return self.rows * self.row_warps

    @property
    def shared_bytes(self) -> int:
        """The queries and their outputs' cotangents, and the ring."""
        return 2 * (self.tile + self.stages * self.keys) * stride_of(self.element, self.size)


PARAMETERS: Parameters = (
    *OPERANDS,
    *OPTIONS,
    *numbers("pointer", "d_output", "delta", "d_query", "d_bias"),
    *strides("d_output", "d_query", "d_bias"),
)
"""In order; a kernel without options looks at none of them. `d_bias` is of each pair, in float32, with keys in a row."""


def backward_queries(ops: Any, config: Config) -> Callable[..., None]:
    """The kernel."""
    element, size, keys_in_tile, stages, threads = config.element, config.size, config.keys, config.stages, config.threads
    rows, tile_rows, row_warps, columns_of_part = config.rows, config.tile, config.row_warps, config.size // config.parts
    has_options = config.has_options
    width, stride = bytes_of(element), stride_of(element, size)
    query_bytes, tile_bytes = tile_rows * stride, keys_in_tile * stride
    of_scores, of_sums = Tile(rows, keys_in_tile), Tile(rows, columns_of_part)
    has_parts = config.parts > 1
    per_row, log2_e, one = of_scores.of_rows, np.float32(LOG2_E), np.float32(1)

    at_pairs = addresses_of_pairs(ops, has_options=has_options)
    place = places(ops, tile_rows)
    this_thread, this_block, shared = ops(memory.thread()), ops(memory.block()), ops(memory.shared())
    warp_of, first_row, first_column = ops(memory.warp_of()), ops(memory.first_row()), ops(memory.first_column())
    barrier, commit, wait, wait_all = ops(memory.barrier()), ops(memory.commit()), ops(memory.wait(stages - 2)), ops(memory.wait(0))
    quotient, inverse = ops(memory.quotient()), ops(memory.inverse())
    copy_queries = ops(memory.copy_rows(element, tile_rows, size, threads))
    copy_tile = ops(memory.copy_rows(element, keys_in_tile, size, threads))
    no_scores, no_sums = ops(fragments.zeros(of_scores.kind)), ops(fragments.zeros(of_sums.kind))
    add_scores = ops(fragments.product_of_rows(element, of_scores, size, stride, stride))
    add_keys = ops(fragments.product_of_weights(element, of_sums, keys_in_tile, stride))
    make_finite, mask_by_place = ops(fragments.make_finite(element, keys_in_tile, size, threads)), ops(fragments.masked_by_place(of_scores))
    weights_from_lse, scores_cotangent = ops(fragments.weights_from_lse(of_scores)), ops(fragments.scores_cotangent(of_scores))
    scale_sums, all_rows, multiply = (
        ops(fragments.scale_rows(of_sums)),
        ops(fragments.same(per_row)),
        ops(fragments.products(of_scores.kind)),
    )
    load_numbers, store_rows = ops(memory.load_row_numbers(of_scores)), ops(memory.store_rows(element, of_sums))
    capped, slopes, dropped = ops(memory.capped(of_scores)), ops(memory.slopes(of_scores)), ops(memory.dropped(of_scores))
    add_bias, mask_by_mask = ops(memory.bias_added(element, of_scores)), ops(memory.masked_by_mask(of_scores))
    store_pairs = ops(memory.store_pairs(of_scores))

    def kernel(
        query, key, value, lse, cu_query, cu_key, sinks,
        tiles, heads, group, query_len, key_len, head_dim, value_dim, sequences, align_right, low, high,
        query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row, lse_batch, lse_head,
        scale, mask, bias, keep,
        mask_batch, mask_head, mask_row, mask_key, bias_batch, bias_head, bias_row, bias_key, keep_batch, keep_head, keep_row, keep_key,
        softcap, keep_scale, d_output, delta, d_query, d_bias,
        d_output_batch, d_output_head, d_output_row, d_query_batch, d_query_head, d_query_row, d_bias_batch, d_bias_head, d_bias_row,
    ):  # fmt: skip
        thread = this_thread()
        first, head, batch, query_start, queries, key_start, keys = place(
            this_block(), tiles, heads, cu_query, cu_key, query_len, key_len, sequences
        )
        if first >= queries:
            return
        kv_head = quotient(head, group)
        lowest, highest = low + align_right * (keys - queries), high + align_right * (keys - queries)
        begin = max(first + lowest, 0) // keys_in_tile
        end = (min(min(first + tile_rows, queries) + highest, keys) + keys_in_tile - 1) // keys_in_tile
        end = max(begin, end)

        row_of_batch = query_start + first
        query_at = query + (batch * query_batch + head * query_head + row_of_batch * query_row) * width
        d_output_at = d_output + (batch * d_output_batch + head * d_output_head + row_of_batch * d_output_row) * width
        key_at = key + (batch * key_batch + kv_head * key_head + key_start * key_row) * width
        value_at = value + (batch * value_batch + kv_head * value_head + key_start * value_row) * width
        lse_at = (batch * lse_batch + head * lse_head + row_of_batch) * 4
        tile_of_queries = shared()
        ring = tile_of_queries + 2 * query_bytes

        def fetch(step):
            """A tile of keys and one of values."""
            at = begin + step
            if at < end:
                to, there = ring + step % stages * (2 * tile_bytes), at * keys_in_tile
                copy_tile(to, key_at + there * key_row * width, key_row * width, keys - there, head_dim, thread)
                copy_tile(to + tile_bytes, value_at + there * value_row * width, value_row * width, keys - there, value_dim, thread)
            commit()

        copy_queries(tile_of_queries, query_at, query_row * width, queries - first, head_dim, thread)
        copy_queries(tile_of_queries + query_bytes, d_output_at, d_output_row * width, queries - first, value_dim, thread)
        for step in range(stages - 1):
            fetch(step)

        warp = warp_of(thread)
        part = quotient(warp, row_warps) if has_parts else 0
        of_warp, of_part = (warp - part * row_warps) * rows, part * columns_of_part
        left, left_cotangent = tile_of_queries + of_warp * stride, tile_of_queries + (query_bytes + of_warp * stride)
        row_of_tile, column = of_warp + first_row(thread), first_column(thread)
        row = first + row_of_tile
        of_lse, of_delta = (
            load_numbers(lse + lse_at, row_of_tile, queries - first),
            load_numbers(delta + lse_at, row_of_tile, queries - first),
        )
        factor = (one if has_options else scale) * log2_e
        over_cap = inverse(softcap)
        sums = no_sums()

        for j in range(begin, end):
            mask_at = at_pairs(mask, batch * mask_batch + head * mask_head, 1)
            bias_at = at_pairs(bias, batch * bias_batch + head * bias_head, width)
            keep_at = at_pairs(keep, batch * keep_batch + head * keep_head, 1)
            d_bias_at = at_pairs(d_bias if part == 0 else 0, batch * d_bias_batch + head * d_bias_head, 4)
            step, there = j - begin, j * keys_in_tile
            wait()
            barrier()
            fetch(step + stages - 1)
            keys_at = ring + step % stages * (2 * tile_bytes)
            scores = add_scores(no_scores(), left, keys_at, thread)
            at_edge = there - (first + tile_rows - 1) < lowest or there + keys_in_tile - 1 - first > highest or there + keys_in_tile > keys
            if has_options:
                scores = capped(scores, scale, softcap, over_cap)
                scores = add_bias(scores, bias_at, bias_row, bias_key, row, column + there, queries, keys)
                scores = mask_by_mask(scores, mask_at, mask_row, mask_key, row, column + there, queries, keys)
                at_edge = at_edge or mask != 0 or bias != 0
            if at_edge:
                scores = mask_by_place(scores, row, column + there, lowest, highest, keys)
            weights = weights_from_lse(scores, of_lse, factor)
            d_weights = add_scores(no_scores(), left_cotangent, keys_at + tile_bytes, thread)
            if has_options:
                d_weights = dropped(d_weights, keep_at, keep_row, keep_key, row, column + there, queries, keys, keep_scale)
            d_scores = scores_cotangent(weights, d_weights, of_delta)
            if has_options:
                store_pairs(d_scores, d_bias_at, d_bias_row, 1, row, column + there, queries, keys)
                if softcap != 0:  # once more, rather than kept in registers
                    products = add_scores(no_scores(), left, keys_at, thread)
                    d_scores = multiply(d_scores, slopes(products, scale, over_cap))
            if at_edge:
                barrier()  # after the last use of the keys as they are
                make_finite(keys_at, thread)
            sums = add_keys(sums, d_scores, keys_at + of_part * width, thread)

        wait_all()
        d_query_at = d_query + (batch * d_query_batch + head * d_query_head + row_of_batch * d_query_row + of_part) * width
        sums = scale_sums(sums, all_rows(scale))
        store_rows(sums, d_query_at, d_query_row * width, row_of_tile, column, queries - first, head_dim - of_part)

    return kernel
