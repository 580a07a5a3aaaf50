"""Convolution on compute capability 9.0: four warps gather what taps see, groups of four warps multiply it.

What is computed, and by which blocks, is as in `convolution`. Tiles are copied 16 bytes at a time, by any stride, dilation and padding, to
where products by four warps take them (`warpgroups`); barriers with phases say which of the ring's slots are full and which are empty.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from refattn_numba.cuda import activations, finishing, fragments, memory, pixels, swizzled, warpgroups
from refattn_numba.cuda.fragments import Element, Tile, bytes_of
from refattn_numba.cuda.kernels.convolution import taps_in_turn
from refattn_numba.cuda.kernels.geometry import blocks_work, sides
from refattn_numba.cuda.kernels.hopper_forward import BARRIER_BYTES, WARPS
from refattn_numba.cuda.warpgroups import ALIGNMENT, BLOCK_BYTES, BLOCK_COLUMNS, ROWS


class Config(NamedTuple):
    """Sizes that are fixed when the kernel is compiled.

    Attributes
    ----------
    element : str
        Type of the operands, of 16 bits.
    groups : int
        Of four warps that have 64 rows each, positions or channels of y, besides the one that copies.
    columns : int
        Channels of a block: a multiple of 64.
    stages : int
        Pairs of tiles in shared memory, of which one is used while the others are filled.
    few, many : int
        Registers of a thread of the group that copies, and of the others.
    is_input : bool
        Whether the gradient of the input is made, and not the output or the gradient of the weight.
    """

    element: Element
    groups: int
    columns: int
    stages: int
    few: int
    many: int
    is_input: bool = False

    depth = BLOCK_COLUMNS
    """Of a tile of operands: channels, or positions for the gradient of the weight."""

    is_odd = False
    """Whether rows may begin at any number, and not at multiples of 16 bytes alone."""

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * WARPS * (1 + self.groups)

    @property
    def rows(self) -> int:
        """Of a block."""
        return ROWS * self.groups

    @property
    def tile(self) -> int:
        """The same."""
        return self.rows

    @property
    def stage_bytes(self) -> int:
        """Of a pair of tiles."""
        return (self.rows + self.columns) * BLOCK_BYTES

    @property
    def shared_bytes(self) -> int:
        """Barriers and the ring, and what aligning them may take."""
        return 2 * ALIGNMENT + self.stages * self.stage_bytes


def hopper_convolution(ops: Any, config: Config) -> Callable[..., None]:
    """The kernel; its parameters are those of `convolution`."""
    element, is_input, tile_rows, tile_columns = config.element, config.is_input, config.rows, config.columns
    depth, stages, stage_bytes, width, ahead = config.depth, config.stages, config.stage_bytes, bytes_of(element), max(config.stages - 2, 1)
    tile, rows_bytes, copying = Tile(16, tile_columns), tile_rows * BLOCK_BYTES, 32 * WARPS
    chunks = pixels.Chunks(element, tile_rows, depth, copying)

    this_thread, this_block, shared = ops(memory.thread()), ops(memory.block()), ops(warpgroups.aligned_shared())
    warp_of, first_row, first_column = ops(memory.warp_of()), ops(memory.first_row()), ops(memory.first_column())
    init_full, init_empty = ops(warpgroups.barrier_init(WARPS)), ops(warpgroups.barrier_init(WARPS * config.groups))
    made_barriers, barrier, row_of = ops(warpgroups.barriers_made()), ops(memory.barrier()), ops(pixels.row_of(chunks))
    arrive, wait_phase, show = ops(warpgroups.barrier_arrive()), ops(warpgroups.barrier_wait()), ops(swizzled.show_copies())
    commit, wait = ops(memory.commit()), ops(memory.wait(ahead))
    positions, addresses = ops(pixels.positions(chunks)), ops(pixels.addresses(chunks))
    copy_positions = ops(pixels.copy_positions(element, depth, chunks, is_swizzled=True))
    weights_in_tile, weights_in_row = (depth, tile_columns) if is_input else (tile_columns, depth)
    copy_weights = ops(swizzled.copy_rows(element, weights_in_tile, weights_in_row, copying))
    start_products = ops(swizzled.product(element, tile_columns, is_right_deep=is_input))
    fewer, more = ops(warpgroups.registers(config.few, more=False)), ops(warpgroups.registers(config.many, more=True))
    no_sums, begin_products = ops(fragments.zeros(tile.kind)), ops(warpgroups.products_begin(tile.kind))
    wait_sums = ops(warpgroups.products_wait(tile.kind, 0))
    add_bias, finish = ops(finishing.add_bias(element, tile)), activations.fused(ops, tile.kind)
    store = ops(finishing.store_positions(element, tile, is_odd=False))
    work, read_and_written, next_tap = blocks_work(ops, config), sides(ops, config), taps_in_turn(ops)

    def kernel(
        x, weight, bias, y,
        batch, in_d, in_h, in_w, out_d, out_h, out_w, kernel_d, kernel_h, kernel_w, stride_d, stride_h, stride_w,
        dilation_d, dilation_h, dilation_w, pad_d, pad_h, pad_w, groups, c_in, c_out,
        x_batch, x_d, x_h, x_w, y_batch, y_d, y_h, y_w, row_tiles, column_tiles, activation,
    ):  # fmt: skip
        thread = this_thread()
        sizes, out, taps_of_kernel = (in_d, in_h, in_w), (out_d, out_h, out_w), (kernel_d, kernel_h, kernel_w)
        strides, dilations, pads = (stride_d, stride_h, stride_w), (dilation_d, dilation_h, dilation_w), (pad_d, pad_h, pad_w)
        group, column_start, first, count, phase, places, start, scale, step_of, taps, tap_of, apart = work(
            this_block(), row_tiles, column_tiles, batch, sizes, out, taps_of_kernel, strides, dilations, pads
        )
        if first >= count:
            return
        source, source_sizes, source_steps, summed, target, target_sizes, target_steps, made, target_scale, target_start = read_and_written(
            x, y, sizes, out, (x_batch, x_d, x_h, x_w), (y_batch, y_d, y_h, y_w), c_in, c_out, strides, phase
        )
        columns, parts = made - column_start, (summed + depth - 1) // depth
        steps = parts * taps[0] * taps[1] * taps[2]

        is_full = shared()
        is_empty, ring = is_full + BARRIER_BYTES * stages, is_full + ALIGNMENT
        warp = warp_of(thread)
        if warp == 0:
            for slot in range(stages):
                init_full(is_full + BARRIER_BYTES * slot)
                init_empty(is_empty + BARRIER_BYTES * slot)
            made_barriers()
        barrier()

        if warp < WARPS:
            fewer()
            mine = first + row_of(thread)
            origins = positions(mine, count, places, scale, start)
            at = addresses(mine, count, places, scale, start, source + group * summed * width, source_steps, thread)
            weight_step = kernel_d * kernel_h * kernel_w * c_in * width
            group_weights = weight + group * c_out * weight_step
            part, i, j, k, slot, parity, full = 0, 0, 0, 0, 0, 1, 0
            for step in range(steps + ahead):
                if step < steps:
                    wait_phase(is_empty + BARRIER_BYTES * slot, parity)
                    to, channel = ring + slot * stage_bytes, part * depth
                    left = summed - channel
                    tap = (i * step_of[0], j * step_of[1], k * step_of[2])
                    offset = tap[0] * source_steps[1] + tap[1] * source_steps[2] + tap[2] * source_steps[3] + channel * width
                    copy_positions(to, at, origins, tap, offset, source_sizes, left, thread)
                    plane = (tap_of[0] + i * apart[0]) * kernel_h + tap_of[1] + j * apart[1]
                    of_tap = (plane * kernel_w + tap_of[2] + k * apart[2]) * c_in
                    if is_input:
                        there = group_weights + channel * weight_step + (of_tap + column_start) * width
                        copy_weights(to + rows_bytes, there, weight_step, left, columns, thread)
                    else:
                        there = group_weights + column_start * weight_step + (of_tap + channel) * width
                        copy_weights(to + rows_bytes, there, weight_step, columns, left, thread)
                    part, i, j, k = next_tap(part, i, j, k, parts, taps[1], taps[2])
                    slot += 1
                    if slot == stages:
                        slot, parity = 0, parity ^ 1
                commit()
                wait()
                if step >= ahead:
                    show()
                    arrive(is_full + BARRIER_BYTES * full)
                    full = full + 1 if full + 1 < stages else 0
        else:
            more()
            of_group = (warp >> 2) - 1
            sums, slot, parity = no_sums(), 0, 0
            for _ in range(steps):
                wait_phase(is_full + BARRIER_BYTES * slot, parity)
                operands = ring + slot * stage_bytes
                sums = start_products(begin_products(sums), operands + of_group * (ROWS * BLOCK_BYTES), operands + rows_bytes)
                sums = wait_sums(sums)
                arrive(is_empty + BARRIER_BYTES * slot)
                slot += 1
                if slot == stages:
                    slot, parity = 0, parity ^ 1

            column, channel = first_column(thread), group * made + column_start
            sums = finish(add_bias(sums, bias + channel * width if bias != 0 else 0, column, columns), activation)
            store(
                sums, first + of_group * ROWS + (warp & 3) * 16 + first_row(thread), count, places, target_scale, target_start,
                target_sizes, target + channel * width, target_steps, column, columns,
            )  # fmt: skip

    return kernel
