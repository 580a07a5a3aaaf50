"""Tiles of attention's backward pass on compute capability 9.0: their sizes, where they lie in shared memory, and the warps that bring them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from refattn_numba.cuda import row_numbers, warpgroups
from refattn_numba.cuda.fragments import Element, bytes_of
from refattn_numba.cuda.kernels.hopper_forward import BARRIER_BYTES, WARPS
from refattn_numba.cuda.warpgroups import ALIGNMENT, ROWS


class Config(NamedTuple):
    """Sizes that are fixed when the kernel is compiled.

    Attributes
    ----------
    element : str
        Type of the operands, of 16 bits.
    size : int
        Numbers in a row: a multiple of 64, to which smaller ones are padded with zeros in shared memory.
    of_keys : bool
        Whether keys and values stay, or queries.
    groups : int
        Of four warps, besides the one that copies.
    others : int
        Rows in a tile of what passes by: a multiple of 16.
    stages : int
        Pairs of such tiles in shared memory.
    few, many : int
        Registers of a thread of the group that copies, and of the others.
    shares_rows : bool
        Whether all groups have the same 64 rows, and each sums a part of the columns, or each has its own rows.
    """

    element: Element
    size: int
    of_keys: bool
    groups: int
    others: int
    stages: int
    few: int
    many: int
    shares_rows: bool = False

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * WARPS * (1 + self.groups)

    @property
    def tile(self) -> int:
        """Rows of a block."""
        return ROWS if self.shares_rows else ROWS * self.groups

    @property
    def boxes(self) -> dict[str, int]:
        """Rows that are copied at a time, by operand."""
        of_queries, of_keys = (self.others, ROWS) if self.of_keys else (ROWS, self.others)
        return {"query": of_queries, "key": of_keys, "value": of_keys, "d_output": of_queries}

    @property
    def barriers(self) -> int:
        """One for what stays, and two for each stage: that it is full, and that it is empty."""
        return 1 + 2 * self.stages

    @property
    def shared_bytes(self) -> int:
        """Barriers, both tiles that stay, the ring, and in it two numbers of each query; and what aligning them may take."""
        rows = self.tile + self.stages * self.others
        of_numbers = 8 * self.stages * self.others if self.of_keys else 0
        return 2 * ALIGNMENT + 2 * rows * self.size * bytes_of(self.element) + of_numbers

    @property
    def kept_bytes(self) -> int:
        """Of one of the tiles that stay."""
        return self.tile * self.size * bytes_of(self.element)

    @property
    def tile_bytes(self) -> int:
        """Of one of those that pass by."""
        return self.others * self.size * bytes_of(self.element)


def barriers(ops: Any, config: Config) -> Callable[..., Any]:
    """The function with which the first warp makes all barriers, from an address on."""
    stages, all_warps = config.stages, WARPS * config.groups
    init_kept, init_full = ops(warpgroups.barrier_init(1)), ops(warpgroups.barrier_init(2 if config.of_keys else 1))
    init_empty, made = ops(warpgroups.barrier_init(all_warps)), ops(warpgroups.barriers_made())

    def make(is_kept):
        init_kept(is_kept)
        for slot in range(stages):
            init_full(is_kept + BARRIER_BYTES * (1 + slot))
            init_empty(is_kept + BARRIER_BYTES * (1 + stages + slot))
        made()

    return ops.function(make)


def copies(ops: Any, config: Config) -> Callable[..., Any]:
    """The function of the warps that copy: one brings all tiles; where queries pass by, another their numbers.

    `row` and `other_row` are where what stays and what passes by begin, of which tiles from `begin` to `end` are brought for each of
    `members` heads; `lse` and `delta` are addresses of the first one's numbers.
    """
    size, of_keys, in_tile, stages = config.size, config.of_keys, config.others, config.stages
    kept_bytes, tile_bytes, numbers_bytes = config.kept_bytes, config.tile_bytes, 4 * in_tile
    group_bytes, parts = ROWS * size * bytes_of(config.element), config.tile // ROWS
    arrive, wait_phase = ops(warpgroups.barrier_arrive()), ops(warpgroups.barrier_wait())
    expect_kept, expect_pair = ops(warpgroups.barrier_expect(2 * kept_bytes)), ops(warpgroups.barrier_expect(2 * tile_bytes))
    acquire, coordinate = ops(warpgroups.map_acquire()), ops(warpgroups.coordinate())
    load_kept, load_tile = ops(warpgroups.load_rows(ROWS, size)), ops(warpgroups.load_rows(in_tile, size))
    put_numbers = ops(row_numbers.put_numbers(in_tile))

    def copy(
        warp, thread, is_kept, kept, head, kv_head, batch, members, row, other_row, begin, end, others, lse, delta, lse_head,
        query_map, key_map, value_map, d_output_map,
        query_batch, query_head, key_batch, key_head, value_batch, value_head, d_output_batch, d_output_head,
    ):  # fmt: skip
        is_full, is_empty = is_kept + BARRIER_BYTES, is_kept + BARRIER_BYTES * (1 + stages)
        ring = kept + 2 * kept_bytes
        slot, parity = 0, 1
        if warp == 0:
            acquire(query_map)
            acquire(key_map)
            acquire(value_map)
            acquire(d_output_map)
            expect_kept(is_kept)
            of_queries, of_cotangents = coordinate(batch, query_batch), coordinate(batch, d_output_batch)
            key_place = coordinate(kv_head, key_head), coordinate(batch, key_batch)
            value_place = coordinate(kv_head, value_head), coordinate(batch, value_batch)
            for part in range(parts):
                at, there = kept + part * group_bytes, row + part * ROWS
                if of_keys:
                    load_kept(at, key_map, is_kept, there, *key_place)
                    load_kept(at + kept_bytes, value_map, is_kept, there, *value_place)
                else:
                    load_kept(at, query_map, is_kept, there, coordinate(head, query_head), of_queries)
                    load_kept(at + kept_bytes, d_output_map, is_kept, there, coordinate(head, d_output_head), of_cotangents)
            for member in range(members):
                for j in range(begin, end):
                    at, there, full = ring + 2 * slot * tile_bytes, other_row + j * in_tile, is_full + BARRIER_BYTES * slot
                    wait_phase(is_empty + BARRIER_BYTES * slot, parity)
                    expect_pair(full)
                    if of_keys:
                        load_tile(at, query_map, full, there, coordinate(head + member, query_head), of_queries)
                        load_tile(at + tile_bytes, d_output_map, full, there, coordinate(head + member, d_output_head), of_cotangents)
                    else:
                        load_tile(at, key_map, full, there, *key_place)
                        load_tile(at + tile_bytes, value_map, full, there, *value_place)
                    slot += 1
                    if slot == stages:
                        slot, parity = 0, parity ^ 1
        elif of_keys and warp == 1:
            for member in range(members):
                at = member * lse_head * 4
                for j in range(begin, end):
                    wait_phase(is_empty + BARRIER_BYTES * slot, parity)
                    to = ring + (2 * stages * tile_bytes + 2 * slot * numbers_bytes)
                    put_numbers(to, lse + at, delta + at, j * in_tile, others, thread)
                    arrive(is_full + BARRIER_BYTES * slot)
                    slot += 1
                    if slot == stages:
                        slot, parity = 0, parity ^ 1

    return ops.function(copy)
