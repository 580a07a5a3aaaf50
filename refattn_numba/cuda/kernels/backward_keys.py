"""Cotangents of keys and values: tiles of these stay, queries and their outputs' cotangents pass through shared memory.

Dao, "FlashAttention-2", ICLR 2024, algorithm 2 (arXiv:2307.08691). Tiles are transposed, rows are keys, so that weights are left operands
without leaving their registers. The query heads of a group come one after the other, so that nothing is summed by atomics.
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
    row_warps : int
        Times 16 are the keys of a block.
    parts : int
        Warps that share the same keys, each of which sums a part of the columns; each makes all scores.
    queries : int
        In a tile.
    stages : int
        Pairs of tiles of queries and cotangents in shared memory, of which one is used while the others are filled.
    has_options : bool
        Whether there may be a mask, a bias, a cap, dropout, or a scale that is not positive.
    """

    element: Element
    size: int
    row_warps: int
    parts: int
    queries: int
    stages: int
    has_options: bool = False

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.row_warps * self.parts

    @property
    def tile(self) -> int:
        """Keys of a block."""
        return 16 * self.row_warps

    @property
    def pair_bytes(self) -> int:
        """Queries and cotangents of one stage, and two numbers for each row."""
        return 2 * self.queries * (stride_of(self.element, self.size) + 4)

    @property
    def shared_bytes(self) -> int:
        """The keys and values, and the ring."""
        return 2 * self.tile * stride_of(self.element, self.size) + self.stages * self.pair_bytes


PARAMETERS: Parameters = (
    *OPERANDS,
    *OPTIONS,
    *numbers("pointer", "d_output", "delta", "d_key", "d_value"),
    *strides("d_output", "d_key", "d_value"),
)
"""In order; a kernel without options looks at none of them."""


def backward_keys(ops: Any, config: Config) -> Callable[..., None]:
    """The kernel."""
    element, size, queries_in_tile, stages, threads = config.element, config.size, config.queries, config.stages, config.threads
    rows, tile_rows, row_warps, columns_of_part, has_options = (
        16,
        config.tile,
        config.row_warps,
        config.size // config.parts,
        config.has_options,
    )
    width, stride = bytes_of(element), stride_of(element, size)
    key_bytes, tile_bytes, pair_bytes = tile_rows * stride, queries_in_tile * stride, config.pair_bytes
    of_scores, of_sums = Tile(rows, queries_in_tile), Tile(rows, columns_of_part)
    has_parts = config.parts > 1
    per_row, log2_e, one = of_scores.of_rows, np.float32(LOG2_E), np.float32(1)

    at_pairs = addresses_of_pairs(ops, has_options=has_options)
    place = places(ops, tile_rows, of_keys=True)
    this_thread, this_block, shared = ops(memory.thread()), ops(memory.block()), ops(memory.shared())
    warp_of, first_row, first_column = ops(memory.warp_of()), ops(memory.first_row()), ops(memory.first_column())
    barrier, commit, wait, wait_all = ops(memory.barrier()), ops(memory.commit()), ops(memory.wait(stages - 2)), ops(memory.wait(0))
    quotient, inverse = ops(memory.quotient()), ops(memory.inverse())
    copy_keys = ops(memory.copy_rows(element, tile_rows, size, threads))
    copy_tile, copy_numbers = ops(memory.copy_rows(element, queries_in_tile, size, threads)), ops(memory.copy_numbers(queries_in_tile))
    no_scores, no_sums = ops(fragments.zeros(of_scores.kind)), ops(fragments.zeros(of_sums.kind))
    add_scores = ops(fragments.product_of_rows(element, of_scores, size, stride, stride))
    add_rows = ops(fragments.product_of_weights(element, of_sums, queries_in_tile, stride))
    make_finite, mask_by_place = (
        ops(fragments.make_finite(element, queries_in_tile, size, threads)),
        ops(fragments.masked_by_place(of_scores)),
    )
    weights_from_lse = ops(fragments.weights_from_lse(of_scores, by_column=True))
    scores_cotangent = ops(fragments.scores_cotangent(of_scores, by_column=True))
    scale_sums, all_rows, multiply = (
        ops(fragments.scale_rows(of_sums)),
        ops(fragments.same(per_row)),
        ops(fragments.products(of_scores.kind)),
    )
    load_numbers, store_rows = ops(memory.load_column_numbers(of_scores)), ops(memory.store_rows(element, of_sums))
    capped, slopes, dropped = ops(memory.capped(of_scores)), ops(memory.slopes(of_scores)), ops(memory.dropped(of_scores))
    add_bias, mask_by_mask = ops(memory.bias_added(element, of_scores)), ops(memory.masked_by_mask(of_scores))
    add_visible = visible_sums(ops, element, rows, columns_of_part)

    def kernel(
        query, key, value, lse, cu_query, cu_key, sinks,
        tiles, heads, group, query_len, key_len, head_dim, value_dim, sequences, align_right, low, high,
        query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row, lse_batch, lse_head,
        scale, mask, bias, keep,
        mask_batch, mask_head, mask_row, mask_key, bias_batch, bias_head, bias_row, bias_key, keep_batch, keep_head, keep_row, keep_key,
        softcap, keep_scale, d_output, delta, d_key, d_value,
        d_output_batch, d_output_head, d_output_row, d_key_batch, d_key_head, d_key_row, d_value_batch, d_value_head, d_value_row,
    ):  # fmt: skip
        thread = this_thread()
        first, kv_head, batch, key_start, keys, query_start, queries = place(
            this_block(), tiles, quotient(heads, group), cu_key, cu_query, key_len, query_len, sequences
        )
        if first >= keys:
            return
        shift = align_right * (keys - queries)
        lowest, highest = -(high + shift), -(low + shift)  # of a query's place less a key's
        begin = max(first + lowest, 0) // queries_in_tile
        end = (min(min(first + tile_rows, keys) + highest, queries) + queries_in_tile - 1) // queries_in_tile
        end = max(begin, end)
        count = end - begin

        key_at = key + (batch * key_batch + kv_head * key_head + (key_start + first) * key_row) * width
        value_at = value + (batch * value_batch + kv_head * value_head + (key_start + first) * value_row) * width
        query_at = query + (batch * query_batch + query_start * query_row) * width
        d_output_at = d_output + (batch * d_output_batch + query_start * d_output_row) * width
        lse_at = (batch * lse_batch + query_start) * 4
        tile_of_keys = shared()
        ring = tile_of_keys + 2 * key_bytes

        def fetch(step, member, at):
            """A tile of queries and one of cotangents, with their log-sum-exp and delta; past a head's last the next head's."""
            while at >= end and member < group:
                at, member = at - count, member + 1
            if member < group:
                head, there, to = kv_head * group + member, at * queries_in_tile, ring + step % stages * pair_bytes
                left, numbers_at = queries - there, lse_at + (head * lse_head + there) * 4
                copy_tile(to, query_at + (head * query_head + there * query_row) * width, query_row * width, left, head_dim, thread)
                source = d_output_at + (head * d_output_head + there * d_output_row) * width
                copy_tile(to + tile_bytes, source, d_output_row * width, left, value_dim, thread)
                copy_numbers(to + 2 * tile_bytes, lse + numbers_at, left, thread)
                copy_numbers(to + (2 * tile_bytes + 4 * queries_in_tile), delta + numbers_at, left, thread)
            commit()

        copy_keys(tile_of_keys, key_at, key_row * width, keys - first, head_dim, thread)
        copy_keys(tile_of_keys + key_bytes, value_at, value_row * width, keys - first, value_dim, thread)
        for step in range(stages - 1):
            fetch(step, 0, begin + step)

        warp = warp_of(thread)
        part = quotient(warp, row_warps) if has_parts else 0
        of_warp, of_part = (warp - part * row_warps) * rows, part * columns_of_part
        left, left_values = tile_of_keys + of_warp * stride, tile_of_keys + (key_bytes + of_warp * stride)
        row_of_tile, column = of_warp + first_row(thread), first_column(thread)
        row = first + row_of_tile
        factor = (one if has_options else scale) * log2_e
        over_cap = inverse(softcap)
        of_keys, of_values, has_hidden = no_sums(), no_sums(), 0

        for member in range(group):
            head = kv_head * group + member
            mask_at = at_pairs(mask, batch * mask_batch + head * mask_head, 1)
            bias_at = at_pairs(bias, batch * bias_batch + head * bias_head, width)
            keep_at = at_pairs(keep, batch * keep_batch + head * keep_head, 1)
            for at in range(begin, end):
                step, there = member * count + at - begin, at * queries_in_tile
                wait()
                barrier()
                fetch(step + stages - 1, member, at + stages - 1)
                queries_at = ring + step % stages * pair_bytes
                cotangents_at = queries_at + tile_bytes
                scores = add_scores(no_scores(), left, queries_at, thread)
                at_edge = (
                    there - (first + tile_rows - 1) < lowest
                    or there + queries_in_tile - 1 - first > highest
                    or there + queries_in_tile > queries
                )
                if has_options:
                    scores = capped(scores, scale, softcap, over_cap)
                    scores = add_bias(scores, bias_at, bias_key, bias_row, row, column + there, keys, queries)
                    scores = mask_by_mask(scores, mask_at, mask_key, mask_row, row, column + there, keys, queries)
                    at_edge = at_edge or mask != 0 or bias != 0
                if at_edge:
                    scores = mask_by_place(scores, row, column + there, lowest, highest, queries)
                of_lse = load_numbers(queries_at + 2 * tile_bytes, column)
                weights = weights_from_lse(scores, of_lse, factor)
                d_weights = add_scores(no_scores(), left_values, cotangents_at, thread)
                kept = weights
                if has_options:
                    kept = dropped(weights, keep_at, keep_key, keep_row, row, column + there, keys, queries, keep_scale)
                    d_weights = dropped(d_weights, keep_at, keep_key, keep_row, row, column + there, keys, queries, keep_scale)
                of_delta = load_numbers(queries_at + (2 * tile_bytes + 4 * queries_in_tile), column)
                d_scores = scores_cotangent(weights, d_weights, of_delta)
                if has_options and softcap != 0:  # once more, rather than kept in registers
                    products = add_scores(no_scores(), left, queries_at, thread)
                    d_scores = multiply(d_scores, slopes(products, scale, over_cap))
                if at_edge:
                    barrier()  # after the last use of these tiles as they are
                    make_finite(queries_at, thread)
                    has_hidden = has_hidden | make_finite(cotangents_at, thread)
                of_values = add_rows(of_values, kept, cotangents_at + of_part * width, thread)
                of_keys = add_rows(of_keys, d_scores, queries_at + of_part * width, thread)

        wait_all()
        of_keys = scale_sums(of_keys, all_rows(scale))
        d_key_at = d_key + (batch * d_key_batch + kv_head * d_key_head + (key_start + first) * d_key_row) * width
        d_value_at = d_value + (batch * d_value_batch + kv_head * d_value_head + (key_start + first) * d_value_row) * width
        d_key_at, d_value_at = d_key_at + of_part * width, d_value_at + of_part * width
        store_rows(of_keys, d_key_at, d_key_row * width, row_of_tile, column, keys - first, head_dim - of_part)
        store_rows(of_values, d_value_at, d_value_row * width, row_of_tile, column, keys - first, value_dim - of_part)
        if has_hidden != 0:
            barrier()
            for member in range(group):
                head = kv_head * group + member
                mask_at = at_pairs(mask, batch * mask_batch + head * mask_head, 1)
                bias_at = at_pairs(bias, batch * bias_batch + head * bias_head, width)
                add_visible(
                    d_output_at + (head * d_output_head + of_part) * width, d_output_row * width,
                    begin * queries_in_tile, min(end * queries_in_tile, queries),
                    d_value_at + of_warp * d_value_row * width, d_value_row * width, first + of_warp, keys, value_dim - of_part, lowest, highest,
                    mask_at, mask_key, mask_row, bias_at, bias_key, bias_row, thread,
                )  # fmt: skip

    return kernel
