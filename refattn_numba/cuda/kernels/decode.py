"""A few queries of each sequence against its cache, which is cut into splits that blocks read at the same time.

The query heads that share a head of keys are the rows of one tile, so that the cache is read once for all of them. Each warp has keys of its
own, which pass through its part of shared memory, and never waits for the others; at the end the block makes one softmax of theirs. With
more than one split its results go to a workspace, of which a second kernel (`merge`) makes the output.

Dao et al., "Flash-Decoding for long-context inference", 2023 (splits); Kwon et al., "PagedAttention", SOSP 2023, section 4.1 (pages).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from refattn_numba.cuda import codes, fragments, gathering, memory, merging
from refattn_numba.cuda.fragments import LOG2_E, Element, Tile, bytes_of, stride_of
from refattn_numba.cuda.kernel import Parameters
from refattn_numba.cuda.kernels.pages import hidden_values
from refattn_numba.cuda.kernels.place import numbers, strides
from refattn_numba.cuda.operations import Many

ROWS = 16
"""Of a tile, the smallest of the tensor cores: query heads of a group, times queries."""


class Config(NamedTuple):
    """Sizes that are fixed when the kernel is compiled.

    Attributes
    ----------
    element : str
        Type of the operands.
    size : int
        Numbers in a row, to which smaller ones are padded with zeros in shared memory.
    warps : int
        In a block, each with keys of its own.
    keys : int
        In a tile of one warp, which has room for two tiles of keys and of values, of which one is used while the other is filled.
    has_codes : bool
        Whether the caches hold codes of 8 bits.
    """

    element: Element
    size: int
    warps: int
    keys: int
    has_codes: bool = False

    @property
    def stride(self) -> int:
        """Bytes from one row of a cache to the next in shared memory."""
        return codes.code_stride(self.size) if self.has_codes else stride_of(self.element, self.size)

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.warps

    @property
    def warp_bytes(self) -> int:
        """Shared memory of a warp: its tiles, and later its sums."""
        return max(4 * self.keys * self.stride, ROWS * self.size * 4)

    @property
    def shared_bytes(self) -> int:
        """The queries, the warps' parts, and of each row of a warp the largest score and the sum of weights."""
        return ROWS * stride_of(self.element, self.size) + self.warps * (self.warp_bytes + 2 * ROWS * 4)


PARAMETERS: Parameters = (
    *numbers("pointer", "query", "key", "value", "table", "lengths", "sinks", "key_scale", "value_scale", "output", "lse"),
    *numbers("int32", "kv_heads", "group", "query_len", "key_len", "head_dim", "value_dim", "page_size", "pages", "table_len"),
    *numbers("int32", "tiles", "splits", "split_rows", "low", "high"),
    *strides("query", "key", "value", "key_scale", "value_scale"),
    ("output_row", "int64"),
    *numbers("float32", "scale", "value_factor", "softcap", "empty"),
)
"""In order. Where there is more than one split, `output` and `lse` are a workspace of float32, with `split_rows` rows for each split.

Without a table each sequence has a page of its own, and without lengths all caches are full. `low` and `high` bound the key's position less the query's.
"""


def decode(ops: Any, config: Config) -> Callable[..., None]:
    """The kernel that reads the caches."""
    element, size, warps, keys_in_tile, has_codes = config
    width, item, sums_stride = bytes_of(element), 1 if has_codes else bytes_of(element), size * 4
    stride, of_queries = config.stride, stride_of(element, size)
    tile_bytes, warp_bytes, queries_bytes = keys_in_tile * stride, config.warp_bytes, ROWS * of_queries
    of_scores, of_sums = Tile(ROWS, keys_in_tile), Tile(ROWS, size)
    per_row, per_warp = of_scores.of_rows, Many("float32", warps)
    log2_e, one, zero, nothing = np.float32(LOG2_E), np.float32(1), np.float32(0), np.float32(-np.inf)

    this_thread, this_block, shared = ops(memory.thread()), ops(memory.block()), ops(memory.shared())
    warp_of, lane_of = ops(memory.warp_of()), ops(memory.lane_of())
    first_row, first_column = ops(memory.first_row()), ops(memory.first_column())
    barrier, commit, wait, wait_queries = ops(memory.barrier()), ops(memory.commit()), ops(memory.wait(0)), ops(memory.wait(1))
    meet, barrier_any = ops(gathering.warp_barrier()), ops(gathering.barrier_any())
    quotient, load, inverse = ops(memory.quotient()), ops(memory.load("int32")), ops(memory.inverse())
    page_of, any_missing, row_at = ops(gathering.page_of()), ops(gathering.any_missing()), ops(gathering.address_of_row())
    copy_queries = ops(gathering.copy_rows_at(width, ROWS, size))
    copy_tile = ops(gathering.copy_rows_at(item, keys_in_tile, size))
    load_factor, of_columns = ops(gathering.load_factor()), ops(gathering.factors_of_columns(of_scores))
    scale_scores = ops(gathering.times_columns(of_scores))
    scale_weights = ops(gathering.times_columns(of_scores, of_weights=True))
    positions_of, mask = ops(gathering.positions_of_rows(of_scores)), ops(gathering.masked_by_positions(of_scores))
    no_scores, no_sums = ops(fragments.zeros(of_scores.kind)), ops(fragments.zeros(of_sums.kind))
    all_rows, spoiled = ops(fragments.same(per_row)), ops(gathering.spoiled(per_row))
    if has_codes:
        add_scores = ops(codes.product_of_codes(element, of_scores, size, of_queries))
        add_values = ops(codes.product_of_weights_and_codes(element, of_sums, keys_in_tile))
        store_sums = ops(merging.store_sums(of_sums, sums_stride, codes.column_of_code))
    else:
        add_scores = ops(fragments.product_of_rows(element, of_scores, size, of_queries, stride))
        add_values = ops(fragments.product_of_weights(element, of_sums, keys_in_tile, stride))
        store_sums = ops(merging.store_sums(of_sums, sums_stride))
    make_finite = ops(fragments.make_finite(element, keys_in_tile, size, 32, of_warp=True))
    capped, maxima, decays = ops(memory.capped(of_scores)), ops(fragments.row_maxima(of_scores)), ops(fragments.decays(per_row))
    exponentials, add_weights = ops(fragments.exponentials(of_scores)), ops(fragments.row_sums(of_scores))
    scale_sums, scale_totals = ops(fragments.scale_rows(of_sums)), ops(fragments.products(per_row))
    whole_rows, in_base_2 = ops(fragments.whole_rows(per_row)), ops(merging.in_base_2(per_row))
    store_of_rows = ops(merging.store_of_rows(per_row))
    load_of_rows, load_sums = ops(merging.load_of_parts(warps, ROWS * 4)), ops(merging.load_of_parts(warps, warp_bytes))
    sink_of, largest_of, weighted = ops(merging.sink_of(element)), ops(merging.largest_of(per_warp)), ops(merging.weighted(per_warp))
    shares_of, share_of = ops(merging.shares(per_warp)), ops(merging.share())
    averaged, lse_of, add_hidden = ops(merging.averaged()), ops(merging.lse_of()), hidden_values(ops, element)
    store, store_float = ops(memory.store_number(element)), ops(memory.store_number("float32"))

    def kernel(
        query, key, value, table, lengths, sinks, key_scale, value_scale, output, lse,
        kv_heads, group, query_len, key_len, head_dim, value_dim, page_size, pages, table_len,
        tiles, splits, split_rows, low, high,
        query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row,
        key_scale_batch, key_scale_head, key_scale_row, value_scale_batch, value_scale_head, value_scale_row,
        output_row, scale, value_factor, softcap, empty,
    ):  # fmt: skip
        thread, block = this_thread(), this_block()
        lane, warp = lane_of(thread), warp_of(thread)
        above = quotient(block, splits)
        split, tile = block - above * splits, above
        above = quotient(above, tiles)
        tile = tile - above * tiles
        sequence = quotient(above, kv_heads)
        kv_head = above - sequence * kv_heads
        rows, first = group * query_len, tile * ROWS

        end = min(max(load(lengths + 4 * sequence), 0), key_len) if lengths != 0 else key_len
        nearest = end - query_len
        reach = min(max(nearest + low, 0), end)
        start, stop = reach // keys_in_tile, (end + keys_in_tile - 1) // keys_in_tile
        share = quotient(stop - start + splits - 1, splits)
        start = min(start + split * share, stop)
        stop = min(start + share, stop)
        count = max(stop - start - warp + warps - 1, 0) // warps

        tile_of_queries = shared()
        ring = tile_of_queries + queries_bytes + warp * warp_bytes
        of_rows = tile_of_queries + queries_bytes + warps * warp_bytes
        key_at = key + kv_head * key_head * item
        value_at = value + kv_head * value_head * item
        key_scale_at = key_scale + kv_head * key_scale_head * 4 if key_scale != 0 else 0
        value_scale_at = value_scale + kv_head * value_scale_head * 4 if value_scale != 0 else 0
        table_at = table + sequence * table_len * 4 if table != 0 else 0

        def position_of(i):
            """Of the key that a lane looks for in a tile of its warp."""
            return (start + warp + i * warps) * keys_in_tile + (lane & (keys_in_tile - 1))

        def find(position):
            return page_of(table_at, quotient(position, page_size), sequence, pages, position, reach, end)

        def fetch(i, page):
            if i < count:
                to, position = ring + i % 2 * (2 * tile_bytes), position_of(i)
                row = position - quotient(position, page_size) * page_size
                copy_tile(to, row_at(key_at, key_batch * item, key_row * item, page, row, page), head_dim, lane)
                copy_tile(to + tile_bytes, row_at(value_at, value_batch * item, value_row * item, page, row, page), value_dim, lane)
            commit()

        if warp == 0:
            row = first + (lane & (ROWS - 1))
            head = quotient(row, query_len)
            at = query + (sequence * query_batch + kv_head * group * query_head) * width
            at = row_at(at, query_head * width, query_row * width, head, row - head * query_len, rows - 1 - row)
            copy_queries(tile_of_queries, at, head_dim, lane)
        commit()
        page = find(position_of(0))
        fetch(0, page)
        following = find(position_of(1))
        wait_queries()
        barrier()

        row, column = first_row(thread), first_column(thread)
        positions = positions_of(first + row, query_len, nearest)
        is_scaled = softcap != zero or scale <= zero
        unit = one if is_scaled else scale
        over_cap, factor = inverse(softcap), unit * log2_e
        sums, largest, totals = no_sums(), all_rows(nothing), all_rows(zero)
        has_hidden, is_missing = 0, 0
        for i in range(count):
            there, here = (start + warp + i * warps) * keys_in_tile, ring + i % 2 * (2 * tile_bytes)
            slot = position_of(i) - quotient(position_of(i), page_size) * page_size
            key_factor = load_factor(row_at(key_scale_at, key_scale_batch * 4, key_scale_row * 4, page, slot, page))
            value_factor_of = load_factor(row_at(value_scale_at, value_scale_batch * 4, value_scale_row * 4, page, slot, page))
            is_missing = is_missing | any_missing(page)
            wait()
            meet()
            fetch(i + 1, following)
            page = following
            following = find(position_of(i + 2))
            scores = add_scores(no_scores(), tile_of_queries, here, thread)
            if key_scale != 0:
                scores = scale_scores(scores, of_columns(key_factor, column))
            if is_scaled:
                scores = capped(scores, scale, softcap, over_cap)
            at_edge = there + keys_in_tile > end or there < end - 1 + low or there + keys_in_tile - 1 > nearest + high
            if at_edge:
                scores = mask(scores, positions, there + column, low, high, end)
                if not has_codes:
                    has_hidden = has_hidden | make_finite(here + tile_bytes, lane)
            larger = maxima(scores, largest)
            decay = decays(largest, larger, factor)
            weights = exponentials(scores, larger, factor)
            largest, totals, sums = larger, add_weights(weights, scale_totals(totals, decay)), scale_sums(sums, decay)
            if value_scale != 0:
                weights = scale_weights(weights, of_columns(value_factor_of, column))
            sums = add_values(sums, weights, here + tile_bytes, thread)

        wait()
        meet()
        totals = spoiled(whole_rows(totals), is_missing)
        store_sums(sums, ring, row, column)
        of_warp = of_rows + warp * (ROWS * 4)
        store_of_rows(in_base_2(largest, factor), of_warp, row, thread)
        store_of_rows(totals, of_warp + warps * (ROWS * 4), row, thread)
        has_hidden = barrier_any(has_hidden)

        sums_at = tile_of_queries + queries_bytes
        for row in range(warp, min(ROWS, rows - first), warps):
            head = quotient(first + row, query_len)
            position = nearest + first + row - head * query_len
            sink = sink_of(sinks + (kv_head * group + head) * width if sinks != 0 and split == 0 else 0)
            found = load_of_rows(of_rows + row * 4)
            most = largest_of(found, sink)
            parts = shares_of(found, most)
            total = weighted(load_of_rows(of_rows + (warps * ROWS + row) * 4), parts, share_of(sink, most))
            place = (sequence * kv_heads + kv_head) * rows + first + row
            if splits > 1:
                place = place + split * split_rows
            store_float(lse + place * 4, lse_of(total, most), 1 - lane)
            for across in range(0, size, 32):
                here = across + lane
                made = weighted(load_sums(sums_at + row * sums_stride + here * 4), parts, zero)
                made = averaged(made * value_factor, total, empty if splits == 1 else zero)
                if not has_codes and has_hidden != 0:
                    made = add_hidden(
                        made, here, value_dim - here, value_factor,
                        max(start * keys_in_tile, reach, position + low), min(stop * keys_in_tile, end, position + high + 1),
                        table_at, page_size, sequence, pages, value_at, value_batch * width, value_row * width,
                        value_scale_at, value_scale_batch * 4, value_scale_row * 4,
                    )  # fmt: skip
                if splits > 1:
                    store_float(output + (place * output_row + here) * 4, made, value_dim - here)
                else:
                    store(output + (place * output_row + here) * width, made, value_dim - here)

    return kernel
