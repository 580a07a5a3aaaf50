"""Softmax attention on compute capability 9.0: one warp copies tiles, groups of four warps multiply, and take turns at it.

Shah et al., "FlashAttention-3", NeurIPS 2024, section 3 and algorithm 2 (arXiv:2407.08608): while the products of one tile run, a group of
warps makes the weights of the next, and other groups' products fill the tensor cores meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refattn_numba.cuda import fragments, memory, warpgroups
from refattn_numba.cuda.fragments import LOG2_E, Tile, bytes_of
from refattn_numba.cuda.kernel import Parameters
from refattn_numba.cuda.kernels.exact_rows import exact_rows
from refattn_numba.cuda.kernels.hopper_tiles import BARRIER_BYTES, WARPS, Config, first_of_values, joins
from refattn_numba.cuda.kernels.place import OPERANDS, numbers, places_in, strides
from refattn_numba.cuda.warpgroups import ALIGNMENT, ROWS

PARAMETERS: Parameters = (
    *OPERANDS,
    ("output", "pointer"),
    *strides("output"),
    *numbers("float32", "empty"),
    *numbers("pointer", "query_map", "key_map", "value_map"),
)
"""In order; the last are tensor maps (`refattn_numba.cuda.tensor_map`) of the operands."""


def forward(ops: Any, config: Config) -> Callable[..., None]:
    """The kernel."""
    element, size, groups, keys_in_tile, stages, tile_rows = (
        config.element,
        config.size,
        config.groups,
        config.keys,
        config.stages,
        config.tile,
    )
    width, of_result, of_sinks = (bytes_of(x) for x in (element, config.result, config.of_sinks))
    group_bytes, slot_bytes = ROWS * config.row_bytes, config.slot_bytes
    query_bytes, slots, pair_of_groups = groups * group_bytes, 2 * stages, 2 * 32 * WARPS
    of_scores, of_sums = Tile(16, keys_in_tile), Tile(16, size)
    per_row, log2_e, one = of_scores.of_rows, np.float32(LOG2_E), 2.0**config.raised

    place, first_value = places_in(ops, tile_rows), first_of_values(ops, config)
    this_thread, this_block, shared = ops(memory.thread()), ops(memory.block()), ops(warpgroups.aligned_shared())
    warp_of, first_row, first_column = ops(memory.warp_of()), ops(memory.first_row()), ops(memory.first_column())
    quotient, load, inverse, barrier = (
        ops(memory.quotient()),
        ops(memory.load(config.of_sinks)),
        ops(memory.inverse()),
        ops(memory.barrier()),
    )
    init_full, init_empty, made = (
        ops(warpgroups.barrier_init(1)),
        ops(warpgroups.barrier_init(WARPS * groups)),
        ops(warpgroups.barriers_made()),
    )
    arrive, wait_phase = ops(warpgroups.barrier_arrive()), ops(warpgroups.barrier_wait())
    expect_queries = ops(warpgroups.barrier_expect(query_bytes))
    meet, announce = ops(warpgroups.meet(pair_of_groups)), ops(warpgroups.announce(pair_of_groups))
    acquire, coordinate = ops(warpgroups.map_acquire()), ops(warpgroups.coordinate())
    load_queries, load_keys, load_values = map(ops, config.loads())
    fewer, more = ops(warpgroups.registers(config.few, more=False)), ops(warpgroups.registers(config.many, more=True))
    start_scores = ops(warpgroups.product_of_rows(element, keys_in_tile, size))
    start_sums = ops(config.product_of_weights())
    begin_products, wait_sums = ops(warpgroups.products_begin(of_sums.kind)), ops(warpgroups.products_wait(of_sums.kind, 0))
    wait_scores, wait_older = (ops(warpgroups.products_wait(of_scores.kind, running)) for running in (0, 1))
    made_before = ops(warpgroups.made_before(per_row))
    pack = ops(config.packed())
    no_sums, all_rows, lane_total = ops(fragments.zeros(of_sums.kind)), ops(fragments.same(per_row)), ops(fragments.at_first_lane(per_row))
    mask_by_place, maxima = ops(fragments.masked_by_place(of_scores)), ops(fragments.row_maxima(of_scores))
    decays, exponentials, add_weights = (
        ops(fragments.decays(per_row)),
        ops(fragments.exponentials(of_scores, config.raised)),
        ops(fragments.row_sums(of_scores)),
    )
    scale_sums, scale_totals = ops(fragments.scale_rows(of_sums)), ops(fragments.products(per_row))
    joined, last_joined = joins(ops, config)
    whole_rows, natural_lse = ops(fragments.whole_rows(per_row)), ops(memory.natural_lse(per_row, config.raised))
    inverses, fill_empty = ops(fragments.inverses(per_row)), ops(fragments.fill_empty_rows(of_sums))
    store_lse, store_output = ops(memory.store_row_numbers(of_sums)), ops(memory.store_rows(config.result, of_sums))
    has_not_finite, warp_barrier = ops(warpgroups.has_not_finite(of_sums.kind)), ops(warpgroups.warp_barrier())
    make_rows = exact_rows(ops, element, 16, size, config.result)

    def fetching(load_tile, tile_bytes):
        expect_tile = ops(warpgroups.barrier_expect(tile_bytes))

        def fetch(slot, parity, tensor_map, first, head, batch, is_full, is_empty, ring):
            """A tile into its slot of the ring, once that is empty."""
            wait_phase(is_empty + BARRIER_BYTES * slot, parity)
            expect_tile(is_full + BARRIER_BYTES * slot)
            load_tile(ring + slot * slot_bytes, tensor_map, is_full + BARRIER_BYTES * slot, first, head, batch)

        return ops.function(fetch)

    fetch_keys, fetch_values = fetching(load_keys, config.key_bytes), fetching(load_values, config.value_bytes)

    def softmax(scores, there, top, lowest, highest, keys, row, column, largest, totals, factor):
        """Weights of a tile, and what they change."""
        if there - (top + ROWS - 1) < lowest or there + keys_in_tile - 1 - top > highest or there + keys_in_tile > keys:
            scores = mask_by_place(scores, row, column + there, lowest, highest, keys)
        larger = maxima(scores, largest)
        decay = decays(largest, larger, factor)
        weights = exponentials(scores, larger, factor)
        return weights, larger, add_weights(weights, scale_totals(totals, decay)), decay

    softmax = ops.function(softmax)

    def kernel(
        query, key, value, lse, cu_query, cu_key, sinks,
        tiles, heads, group, query_len, key_len, head_dim, value_dim, sequences, align_right, low, high,
        query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row, lse_batch, lse_head,
        scale, output, output_batch, output_head, output_row, empty, query_map, key_map, value_map,
    ):  # fmt: skip
        thread = this_thread()
        first, head, batch, query_start, queries, key_start, keys, sequence = place(
            this_block(), tiles, heads, cu_query, cu_key, query_len, key_len, sequences
        )
        if first >= queries:
            return
        kv_head = quotient(head, group)
        lowest, highest = low + align_right * (keys - queries), high + align_right * (keys - queries)
        begin = max(first + lowest, 0) // keys_in_tile
        end = (min(min(first + tile_rows, queries) + highest, keys) + keys_in_tile - 1) // keys_in_tile
        end = max(begin, end)

        has_queries = shared()
        is_full, is_empty = has_queries + BARRIER_BYTES, has_queries + BARRIER_BYTES * (1 + slots)
        tile_of_queries = has_queries + ALIGNMENT
        ring = tile_of_queries + query_bytes
        warp = warp_of(thread)
        if warp == 0:
            init_full(has_queries)
            for slot in range(slots):
                init_full(is_full + BARRIER_BYTES * slot)
                init_empty(is_empty + BARRIER_BYTES * slot)
            made()
        barrier()

        if warp < WARPS:
            fewer()
            if warp == 0:
                acquire(query_map)
                acquire(key_map)
                acquire(value_map)
                expect_queries(has_queries)
                of_head, of_batch = coordinate(head, query_head), coordinate(batch, query_batch)
                for part in range(groups):
                    load_queries(
                        tile_of_queries + part * group_bytes, query_map, has_queries, query_start + first + part * ROWS, of_head, of_batch
                    )
                key_place = coordinate(kv_head, key_head), coordinate(batch, key_batch)
                value_place = coordinate(kv_head, value_head), coordinate(batch, value_batch)
                value_start = first_value(key_start, sequence)
                slot, parity = 0, 1
                for j in range(begin, end):
                    there = j * keys_in_tile
                    fetch_keys(slot, parity, key_map, key_start + there, *key_place, is_full, is_empty, ring)
                    fetch_values(slot + 1, parity, value_map, value_start + there, *value_place, is_full, is_empty, ring)
                    slot += 2
                    if slot == slots:
                        slot, parity = 0, parity ^ 1
        else:
            more()
            of_group = (warp >> 2) - 1
            turn, next_turn = 1 + of_group, 1 + (of_group + 1) % groups
            left, top = tile_of_queries + of_group * group_bytes, first + of_group * ROWS
            of_warp = top + (warp & 3) * 16
            row, column = of_warp + first_row(thread), first_column(thread)
            factor = scale * log2_e
            sums, largest, totals = no_sums(), all_rows(float("-inf")), all_rows(0.0)
            if sinks != 0:
                largest, totals = all_rows(load(sinks + head * of_sinks) * inverse(scale)), lane_total(one, thread)
            wait_phase(has_queries, 0)
            if begin < end:
                wait_phase(is_full, 0)
                sums = begin_products(sums)
                scores = wait_scores(start_scores(left, ring))
                arrive(is_empty)
                scores, largest, totals, before = softmax(
                    scores, begin * keys_in_tile, top, lowest, highest, keys, row, column, largest, totals, factor
                )
                weights = pack(scores)
                if of_group == groups - 1:
                    announce(1)
                slot, parity = 0, 0
                for j in range(begin + 1, end):
                    following, of_following = slot + 2, parity
                    if following == slots:
                        following, of_following = 0, parity ^ 1
                    wait_phase(is_full + BARRIER_BYTES * following, of_following)
                    meet(turn)
                    sums = begin_products(sums)
                    scores = start_scores(left, ring + following * slot_bytes)
                    wait_phase(is_full + BARRIER_BYTES * (slot + 1), parity)
                    parts = start_sums(sums, weights, ring + (slot + 1) * slot_bytes)
                    announce(next_turn)
                    scores = wait_older(scores)
                    arrive(is_empty + BARRIER_BYTES * following)
                    scores, largest, totals, decay = softmax(
                        scores, j * keys_in_tile, top, lowest, highest, keys, row, column, largest, totals, factor
                    )
                    made_before(totals)
                    parts = wait_sums(parts)
                    arrive(is_empty + BARRIER_BYTES * (slot + 1))
                    weights = pack(scores)
                    sums, before = joined(sums, parts, before, decay), decay
                    slot, parity = following, of_following
                if of_group == 0:
                    meet(1)
                wait_phase(is_full + BARRIER_BYTES * (slot + 1), parity)
                sums = begin_products(sums)
                sums = last_joined(sums, wait_sums(start_sums(sums, weights, ring + (slot + 1) * slot_bytes)), before)

            totals = whole_rows(totals)
            lse_at = lse + (batch * lse_batch + head * lse_head + query_start) * 4
            store_lse(natural_lse(totals, largest, factor), lse_at, row, queries, thread)
            sums = scale_sums(sums, inverses(totals))
            output_at = output + (batch * output_batch + head * output_head + query_start * output_row) * of_result
            if has_not_finite(sums) == 0:
                store_output(fill_empty(sums, totals, empty), output_at, output_row * of_result, row, column, queries, value_dim)
            else:
                warp_barrier()
                make_rows(
                    query + (batch * query_batch + head * query_head + query_start * query_row) * width, query_row * width,
                    key + (batch * key_batch + kv_head * key_head + key_start * key_row) * width, key_row * width,
                    value + (batch * value_batch + kv_head * value_head + key_start * value_row) * width, value_row * width,
                    output_at, output_row * of_result, lse_at, of_warp, queries, head_dim, value_dim,
                    begin * keys_in_tile, min(end * keys_in_tile, keys), lowest, highest, scale, empty, thread,
                )  # fmt: skip

    return kernel
