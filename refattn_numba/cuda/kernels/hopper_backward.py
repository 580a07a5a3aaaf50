"""Cotangents of softmax attention on compute capability 9.0: one warp copies tiles, groups of four warps multiply.

Dao, "FlashAttention-2", ICLR 2024, algorithm 2 (arXiv:2307.08691), on the hardware of Shah et al., "FlashAttention-3", NeurIPS 2024, section
3 (arXiv:2407.08608). One source makes two kernels: keys and values stay while queries and their outputs' cotangents pass by, or the other
way round. Both make the scores, so that nothing is summed by atomics, and results repeat. What stays is on the left of all products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refattn_numba.cuda import fragments, memory, row_numbers, warpgroups
from refattn_numba.cuda.fragments import LOG2_E, Tile, bytes_of
from refattn_numba.cuda.kernel import Parameters
from refattn_numba.cuda.kernels.backward_tiles import Config, barriers, copies
from refattn_numba.cuda.kernels.exact_gradients import exact_gradients
from refattn_numba.cuda.kernels.hopper_forward import BARRIER_BYTES, WARPS
from refattn_numba.cuda.kernels.place import OPERANDS, numbers, places, strides
from refattn_numba.cuda.warpgroups import ALIGNMENT, BLOCK_BYTES, BLOCK_COLUMNS, ROWS

PARAMETERS: Parameters = (
    *OPERANDS,
    *numbers("pointer", "d_output", "delta", "d_query", "d_key", "d_value"),
    *strides("d_output", "d_query", "d_key", "d_value"),
    *numbers("pointer", "query_map", "key_map", "value_map", "d_output_map"),
)
"""In order; the last are tensor maps (`refattn_numba.cuda.tensor_map`) of the operands."""


def backward(ops: Any, config: Config) -> Callable[..., None]:
    """The kernel."""
    element, size, of_keys, in_tile, stages = config.element, config.size, config.of_keys, config.others, config.stages
    tile_rows, shares_rows, columns_of_group = config.tile, config.shares_rows, size // config.groups if config.shares_rows else size
    width, log2_e, kept_bytes, tile_bytes = bytes_of(element), np.float32(LOG2_E), config.kept_bytes, config.tile_bytes
    group_bytes, numbers_bytes = ROWS * size * width, 4 * in_tile
    part_bytes = columns_of_group // BLOCK_COLUMNS * in_tile * BLOCK_BYTES
    of_scores, of_sums = Tile(16, in_tile), Tile(16, columns_of_group)

    place = places(ops, tile_rows, of_keys=of_keys)
    this_thread, this_block, shared = ops(memory.thread()), ops(memory.block()), ops(warpgroups.aligned_shared())
    warp_of, first_row, first_column = ops(memory.warp_of()), ops(memory.first_row()), ops(memory.first_column())
    quotient, barrier, make_barriers, copy = ops(memory.quotient()), ops(memory.barrier()), barriers(ops, config), copies(ops, config)
    arrive, wait_phase = ops(warpgroups.barrier_arrive()), ops(warpgroups.barrier_wait())
    fewer, more = ops(warpgroups.registers(config.few, more=False)), ops(warpgroups.registers(config.many, more=True))
    start_scores = ops(warpgroups.product_of_rows(element, in_tile, size))
    start_sums = ops(warpgroups.product_of_weights(element, columns_of_group, in_tile))
    begin_products = ops(warpgroups.products_begin(of_sums.kind))
    wait_sums, wait_values = (ops(warpgroups.products_wait(of_sums.kind, running)) for running in (0, 1))
    wait_scores, wait_d_weights = (ops(warpgroups.products_wait(of_scores.kind, running)) for running in (1, int(of_keys)))
    pack, no_sums = ops(warpgroups.packed(element, in_tile)), ops(fragments.zeros(of_sums.kind))
    no_numbers = ops(fragments.zeros(of_scores.of_rows))
    mask_by_place = ops(fragments.masked_by_place(of_scores))
    load_shifts, load_deltas = ops(row_numbers.row_shifts(of_scores)), ops(memory.load_row_numbers(of_scores))
    weights_by_column, weights_by_row = ops(row_numbers.weights_by_column(of_scores)), ops(row_numbers.weights_by_row(of_scores))
    made_before = ops(warpgroups.all_made_before(of_scores.kind))
    d_by_column, d_by_row = ops(row_numbers.cotangents_by_column(of_scores)), ops(row_numbers.cotangents_by_row(of_scores))
    scale_sums, all_rows, store_rows = (
        ops(fragments.scale_rows(of_sums)),
        ops(fragments.same(of_sums.of_rows)),
        ops(memory.store_rows(element, of_sums)),
    )
    has_not_finite = ops(warpgroups.has_not_finite(of_sums.kind))
    make_rows = exact_gradients(ops, element, 16, columns_of_group, size, of_keys=of_keys)

    def masked(scores, there, top, lowest, highest, others, row, column):
        """Scores with -inf in place of those that are not to be, in a tile that may have such."""
        if there - (top + ROWS - 1) < lowest or there + in_tile - 1 - top > highest or there + in_tile > others:
            scores = mask_by_place(scores, row, column + there, lowest, highest, others)
        return scores

    masked = ops.function(masked)

    def kernel(
        query, key, value, lse, cu_query, cu_key, sinks,
        tiles, heads, group, query_len, key_len, head_dim, value_dim, sequences, align_right, low, high,
        query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row, lse_batch, lse_head,
        scale, d_output, delta, d_query, d_key, d_value,
        d_output_batch, d_output_head, d_output_row, d_query_batch, d_query_head, d_query_row,
        d_key_batch, d_key_head, d_key_row, d_value_batch, d_value_head, d_value_row,
        query_map, key_map, value_map, d_output_map,
    ):  # fmt: skip
        thread = this_thread()
        if of_keys:
            first, kv_head, batch, start, rows, other_start, others = place(
                this_block(), tiles, quotient(heads, group), cu_key, cu_query, key_len, query_len, sequences
            )
            head, members, query_start, key_start = kv_head * group, group, other_start, start
            shift = align_right * (rows - others)
            lowest, highest = -(high + shift), -(low + shift)  # of a query's place less a key's
        else:
            first, head, batch, start, rows, other_start, others = place(
                this_block(), tiles, heads, cu_query, cu_key, query_len, key_len, sequences
            )
            kv_head, members, query_start, key_start = quotient(head, group), 1, start, other_start
            shift = align_right * (others - rows)
            lowest, highest = low + shift, high + shift
        if first >= rows:
            return
        begin = max(first + lowest, 0) // in_tile
        end = (min(min(first + tile_rows, rows) + highest, others) + in_tile - 1) // in_tile
        end = max(begin, end)
        numbers_at = (batch * lse_batch + head * lse_head + query_start) * 4

        is_kept = shared()
        is_full, is_empty = is_kept + BARRIER_BYTES, is_kept + BARRIER_BYTES * (1 + stages)
        kept = is_kept + ALIGNMENT
        ring = kept + 2 * kept_bytes
        of_numbers = ring + 2 * stages * tile_bytes
        warp = warp_of(thread)
        if warp == 0:
            make_barriers(is_kept)
        barrier()

        if warp < WARPS:
            fewer()
            copy(
                warp, thread, is_kept, kept, head, kv_head, batch, members, start + first, other_start, begin, end, others,
                lse + numbers_at, delta + numbers_at, lse_head, query_map, key_map, value_map, d_output_map,
                query_batch, query_head, key_batch, key_head, value_batch, value_head, d_output_batch, d_output_head,
            )  # fmt: skip
        else:
            more()
            of_group = (warp >> 2) - 1
            of_rows, part = (0, of_group) if shares_rows else (of_group, 0)
            left, top = kept + of_rows * group_bytes, first + of_rows * ROWS
            left_values, of_warp = left + kept_bytes, top + (warp & 3) * 16
            row, column = of_warp + first_row(thread), first_column(thread)
            factor = scale * log2_e
            shifts, deltas = no_numbers(), no_numbers()
            if not of_keys:
                shifts, deltas = load_shifts(lse + numbers_at, row, rows), load_deltas(delta + numbers_at, row, rows)
            of_left, of_values = no_sums(), no_sums()
            slot, parity, before = 0, 0, -1
            wait_phase(is_kept, 0)
            for _ in range(members):
                for j in range(begin, end):
                    right = ring + 2 * slot * tile_bytes
                    right_values, numbers_of_tile = right + tile_bytes, of_numbers + 2 * slot * numbers_bytes
                    wait_phase(is_full + BARRIER_BYTES * slot, parity)
                    of_left = begin_products(of_left)
                    scores = start_scores(left, right)
                    d_weights = start_scores(left_values, right_values)
                    scores = wait_scores(scores)
                    if before >= 0:
                        arrive(is_empty + BARRIER_BYTES * before)
                    scores = masked(scores, j * in_tile, top, lowest, highest, others, row, column)
                    if of_keys:
                        weights = weights_by_column(scores, numbers_of_tile, column, factor)
                        packed = pack(weights)
                        of_values = begin_products(of_values)
                        of_values = start_sums(of_values, packed, right_values + part * part_bytes)
                        d_weights = wait_d_weights(d_weights)
                        d_scores = pack(d_by_column(weights, d_weights, numbers_of_tile + numbers_bytes, column))
                    else:
                        weights = weights_by_row(scores, shifts, factor)
                        made_before(weights)
                        d_weights = wait_d_weights(d_weights)
                        d_scores = pack(d_by_row(weights, d_weights, deltas))
                    of_left = begin_products(of_left)
                    of_left = start_sums(of_left, d_scores, right + part * part_bytes)
                    if of_keys:
                        of_values = wait_values(of_values)
                    before = slot
                    slot += 1
                    if slot == stages:
                        slot, parity = 0, parity ^ 1
            of_left = wait_sums(of_left)
            of_values = wait_sums(of_values)

            offset = part * columns_of_group
            is_spoilt = has_not_finite(of_left)  # and with them all that makes other sums so
            key_at = key + (batch * key_batch + kv_head * key_head + key_start * key_row) * width
            value_at = value + (batch * value_batch + kv_head * value_head + key_start * value_row) * width
            query_at = query + (batch * query_batch + head * query_head + query_start * query_row) * width
            d_output_at = d_output + (batch * d_output_batch + head * d_output_head + query_start * d_output_row) * width
            if of_keys:
                d_key_at = d_key + (batch * d_key_batch + kv_head * d_key_head + key_start * d_key_row) * width
                d_value_at = d_value + (batch * d_value_batch + kv_head * d_value_head + key_start * d_value_row) * width
                if is_spoilt == 0:
                    of_left = scale_sums(of_left, all_rows(scale))
                    store_rows(of_left, d_key_at + offset * width, d_key_row * width, row, column, rows, head_dim - offset)
                    store_rows(of_values, d_value_at + offset * width, d_value_row * width, row, column, rows, value_dim - offset)
                else:
                    make_rows(
                        key_at, key_row * width, value_at, value_row * width,
                        query_at, query_row * width, query_head * width, d_output_at, d_output_row * width, d_output_head * width,
                        lse + numbers_at, delta + numbers_at, lse_head, members,
                        d_key_at, d_key_row * width, d_value_at, d_value_row * width, of_warp, rows, head_dim, value_dim, offset,
                        begin * in_tile, min(end * in_tile, others), lowest, highest, scale, thread,
                    )  # fmt: skip
            else:
                d_query_at = d_query + (batch * d_query_batch + head * d_query_head + query_start * d_query_row) * width
                if is_spoilt == 0:
                    of_left = scale_sums(of_left, all_rows(scale))
                    store_rows(of_left, d_query_at + offset * width, d_query_row * width, row, column, rows, head_dim - offset)
                else:
                    make_rows(
                        query_at, query_row * width, d_output_at, d_output_row * width,
                        key_at, key_row * width, 0, value_at, value_row * width, 0,
                        lse + numbers_at, delta + numbers_at, 0, 1,
                        d_query_at, d_query_row * width, 0, 0, of_warp, rows, head_dim, value_dim, offset,
                        begin * in_tile, min(end * in_tile, others), lowest, highest, scale, thread,
                    )  # fmt: skip

    return kernel
