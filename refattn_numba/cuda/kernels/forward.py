"""Softmax attention in tiles of queries: scores are never held, and keys and values pass through shared memory once for each tile.

Dao, "FlashAttention-2", ICLR 2024, algorithm 1 (arXiv:2307.08691); the exponentials are powers of 2 and the largest score is kept unscaled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from refattn_numba.cuda import fragments, memory
from refattn_numba.cuda.fragments import LOG2_E, Element, Tile, bytes_of, stride_of
from refattn_numba.cuda.kernel import Parameters
from refattn_numba.cuda.kernels.place import OPERANDS, OPTIONS, addresses_of_pairs, numbers, places, strides
from refattn_numba.cuda.kernels.visible import visible_sums


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
    keys : int
        In a tile.
    stages : int
        Tiles of keys or of values in shared memory, of which one is used while the others are filled.
    has_options : bool
        Whether there may be a mask, a bias, a cap, dropout, or a scale that is not positive.
    parts : int
        Warps that share the same queries, each of which sums a part of the columns; each makes all scores.
    """

    element: Element
    size: int
    rows: int
    row_warps: int
    keys: int
    stages: int
    has_options: bool = False
    parts: int = 1

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
        """The queries, and the ring of keys and values."""
        return (self.tile + self.stages * self.keys) * stride_of(self.element, self.size)


PARAMETERS: Parameters = (*OPERANDS, *OPTIONS, ("output", "pointer"), *strides("output"), *numbers("float32", "empty"))
"""In order; a kernel without options looks at none of them."""


def forward(ops: Any, config: Config) -> Callable[..., None]:
    """The kernel."""
    element, size, keys_in_tile, stages, threads = config.element, config.size, config.keys, config.stages, config.threads
    rows, tile_rows, row_warps, columns_of_part = config.rows, config.tile, config.row_warps, config.size // config.parts
    has_options = config.has_options
    width, stride = bytes_of(element), stride_of(element, size)
    ring_bytes, tile_bytes = tile_rows * stride, keys_in_tile * stride
    of_scores, of_sums = Tile(rows, keys_in_tile), Tile(rows, columns_of_part)
    has_parts = config.parts > 1
    per_row, log2_e, one = of_scores.of_rows, np.float32(LOG2_E), np.float32(1)

    at_pairs = addresses_of_pairs(ops, has_options=has_options)
    place = places(ops, tile_rows)
    this_thread, this_block, shared = ops(memory.thread()), ops(memory.block()), ops(memory.shared())
    warp_of, first_row, first_column = ops(memory.warp_of()), ops(memory.first_row()), ops(memory.first_column())
    barrier, commit, wait = ops(memory.barrier()), ops(memory.commit()), ops(memory.wait(stages - 2))
    wait_all = ops(memory.wait(0))
    quotient, load = ops(memory.quotient()), ops(memory.load(element))
    copy_queries = ops(memory.copy_rows(element, tile_rows, size, threads))
    copy_tile = ops(memory.copy_rows(element, keys_in_tile, size, threads))
    no_scores, no_sums = ops(fragments.zeros(of_scores.kind)), ops(fragments.zeros(of_sums.kind))
    all_rows, lane_total = ops(fragments.same(per_row)), ops(fragments.at_first_lane(per_row))
    add_scores = ops(fragments.product_of_rows(element, of_scores, size, stride, stride))
    add_values = ops(fragments.product_of_weights(element, of_sums, keys_in_tile, stride))
    make_finite = ops(fragments.make_finite(element, keys_in_tile, size, threads))
    mask_by_place, inverse = ops(fragments.masked_by_place(of_scores)), ops(memory.inverse())
    maxima, decays = ops(fragments.row_maxima(of_scores)), ops(fragments.decays(per_row))
    exponentials, add_weights = ops(fragments.exponentials(of_scores)), ops(fragments.row_sums(of_scores))
    scale_sums, scale_totals = ops(fragments.scale_rows(of_sums)), ops(fragments.products(per_row))
    whole_rows, natural_lse = ops(fragments.whole_rows(per_row)), ops(memory.natural_lse(per_row))
    inverses, fill_empty = ops(fragments.inverses(per_row)), ops(fragments.fill_empty_rows(of_sums))
    store_lse, store_output = ops(memory.store_row_numbers(of_sums)), ops(memory.store_rows(element, of_sums))
    capped, dropped = ops(memory.capped(of_scores)), ops(memory.dropped(of_scores))
    add_bias, mask_by_mask = ops(memory.bias_added(element, of_scores)), ops(memory.masked_by_mask(of_scores))
    add_visible = visible_sums(ops, element, rows, columns_of_part)

    def kernel(
        query, key, value, lse, cu_query, cu_key, sinks,
        tiles, heads, group, query_len, key_len, head_dim, value_dim, sequences, align_right, low, high,
        query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row, lse_batch, lse_head,
        scale, mask, bias, keep,
        mask_batch, mask_head, mask_row, mask_key, bias_batch, bias_head, bias_row, bias_key, keep_batch, keep_head, keep_row, keep_key,
        softcap, keep_scale, output, output_batch, output_head, output_row, empty,
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

        query_at = query + (batch * query_batch + head * query_head + (query_start + first) * query_row) * width
        key_at = key + (batch * key_batch + kv_head * key_head + key_start * key_row) * width
        value_at = value + (batch * value_batch + kv_head * value_head + key_start * value_row) * width
        tile_of_queries = shared()
        ring = tile_of_queries + ring_bytes

        def fetch(step):
            """Keys and values take turns."""
            at = begin + step // 2
            if at < end:
                to, there = ring + step % stages * tile_bytes, at * keys_in_tile
                if step % 2 == 0:
                    copy_tile(to, key_at + there * key_row * width, key_row * width, keys - there, head_dim, thread)
                else:
                    copy_tile(to, value_at + there * value_row * width, value_row * width, keys - there, value_dim, thread)
            commit()

        copy_queries(tile_of_queries, query_at, query_row * width, queries - first, head_dim, thread)
        for step in range(stages - 1):
            fetch(step)

        warp = warp_of(thread)
        part = quotient(warp, row_warps) if has_parts else 0
        of_warp, of_part = (warp - part * row_warps) * rows, part * columns_of_part
        left = tile_of_queries + of_warp * stride
        row, column = first + of_warp + first_row(thread), first_column(thread)
        mask_at = at_pairs(mask, batch * mask_batch + head * mask_head, 1)
        bias_at = at_pairs(bias, batch * bias_batch + head * bias_head, width)
        keep_at = at_pairs(keep, batch * keep_batch + head * keep_head, 1)
        unit = one if has_options else scale
        over_cap = inverse(softcap)
        factor = unit * log2_e
        sums, largest, totals = no_sums(), all_rows(float("-inf")), all_rows(0.0)
        if sinks != 0:
            largest, totals = all_rows(load(sinks + head * width) * inverse(unit)), lane_total(1.0, thread)

        has_hidden = 0
        for j in range(begin, end):
            step, there = 2 * (j - begin), j * keys_in_tile
            wait()
            barrier()
            fetch(step + stages - 1)
            scores = add_scores(no_scores(), left, ring + step % stages * tile_bytes, thread)
            at_edge = there - (first + tile_rows - 1) < lowest or there + keys_in_tile - 1 - first > highest or there + keys_in_tile > keys
            if has_options:
                scores = capped(scores, scale, softcap, over_cap)
                scores = add_bias(scores, bias_at, bias_row, bias_key, row, column + there, queries, keys)
                scores = mask_by_mask(scores, mask_at, mask_row, mask_key, row, column + there, queries, keys)
                at_edge = at_edge or mask != 0 or bias != 0
            if at_edge:
                scores = mask_by_place(scores, row, column + there, lowest, highest, keys)
            larger = maxima(scores, largest)
            decay = decays(largest, larger, factor)
            weights = exponentials(scores, larger, factor)
            largest, totals, sums = larger, add_weights(weights, scale_totals(totals, decay)), scale_sums(sums, decay)
            if has_options:
                weights = dropped(weights, keep_at, keep_row, keep_key, row, column + there, queries, keys, keep_scale)
            wait()
            barrier()
            fetch(step + stages)
            values = ring + (step + 1) % stages * tile_bytes
            if at_edge:
                has_hidden = has_hidden | make_finite(values, thread)
            sums = add_values(sums, weights, values + of_part * width, thread)

        wait_all()
        totals = whole_rows(totals)
        row = row - first
        lse_at = lse + (batch * lse_batch + head * lse_head + query_start + first) * 4
        store_lse(natural_lse(totals, largest, factor), lse_at, row, queries - first, thread)
        sums = fill_empty(scale_sums(sums, inverses(totals)), totals, empty)
        output_at = output + (batch * output_batch + head * output_head + (query_start + first) * output_row + of_part) * width
        store_output(sums, output_at, output_row * width, row, column, queries - first, value_dim - of_part)
        if has_hidden != 0:
            barrier()
            add_visible(
                value_at + of_part * width, value_row * width, begin * keys_in_tile, min(end * keys_in_tile, keys),
                output_at + of_warp * output_row * width, output_row * width, first + of_warp, queries, value_dim - of_part, lowest, highest,
                mask_at, mask_row, mask_key, bias_at, bias_row, bias_key, thread,
            )  # fmt: skip

    return kernel
