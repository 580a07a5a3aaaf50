"""The gradient of a convolution's weights on compute capability 9.0: four warps gather, groups of four warps multiply.

What is computed, and by which blocks, is as in `convolution_weight`; how tiles go from warps to warps is as in `hopper_convolution`. Both
operands lie in shared memory with their depth first, and products turn them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refattn_numba.cuda import fragments, memory, pixels, swizzled, warpgroups
from refattn_numba.cuda.fragments import Tile, bytes_of
from refattn_numba.cuda.kernels.convolution_weight import weights_work
from refattn_numba.cuda.kernels.hopper_convolution import Config
from refattn_numba.cuda.kernels.hopper_forward import BARRIER_BYTES, WARPS
from refattn_numba.cuda.warpgroups import ALIGNMENT, BLOCK_BYTES, BLOCK_COLUMNS, ROWS


def hopper_weight_gradient(ops: Any, config: Config) -> Callable[..., None]:
    """The kernel; its parameters are those of `convolution_weight`. Rows are channels of y, columns those of x, and the depth is positions."""
    element, tile_rows, tile_columns, depth, stages = config.element, config.rows, config.columns, config.depth, config.stages
    stage_bytes, width, ahead, copying = config.stage_bytes, bytes_of(config.element), max(config.stages - 2, 1), 32 * WARPS
    tile, rows_bytes, block_bytes = Tile(16, tile_columns), tile_rows * BLOCK_BYTES, depth * BLOCK_BYTES
    chunks = pixels.Chunks(element, depth, BLOCK_COLUMNS, copying)

    this_thread, this_block, shared = ops(memory.thread()), ops(memory.block()), ops(warpgroups.aligned_shared())
    warp_of, first_row, first_column = ops(memory.warp_of()), ops(memory.first_row()), ops(memory.first_column())
    init_full, init_empty = ops(warpgroups.barrier_init(WARPS)), ops(warpgroups.barrier_init(WARPS * config.groups))
    made_barriers, barrier, row_of = ops(warpgroups.barriers_made()), ops(memory.barrier()), ops(pixels.row_of(chunks))
    arrive, wait_phase, show = ops(warpgroups.barrier_arrive()), ops(warpgroups.barrier_wait()), ops(swizzled.show_copies())
    commit, wait, digits = ops(memory.commit()), ops(memory.wait(ahead)), ops(pixels.digits())
    first_positions, later_positions = ops(pixels.first_positions(chunks)), ops(pixels.later_positions(chunks))
    copy_rows = ops(pixels.copy_summed(element, BLOCK_BYTES, chunks, tile_rows // BLOCK_COLUMNS))
    copy_columns = ops(pixels.copy_summed(element, BLOCK_BYTES, chunks, tile_columns // BLOCK_COLUMNS))
    start_products = ops(swizzled.product(element, tile_columns, is_left_deep=True, is_right_deep=True))
    fewer, more_registers = ops(warpgroups.registers(config.few, more=False)), ops(warpgroups.registers(config.many, more=True))
    no_sums, begin_products = ops(fragments.zeros(tile.kind)), ops(warpgroups.products_begin(tile.kind))
    wait_sums, store = ops(warpgroups.products_wait(tile.kind, 0)), ops(memory.store_rows("float32", tile))
    work = weights_work(ops, tile_rows, tile_columns, depth)

    def kernel(
        x, y, workspace,
        batch, in_d, in_h, in_w, out_d, out_h, out_w, kernel_d, kernel_h, kernel_w, stride_d, stride_h, stride_w,
        dilation_d, dilation_h, dilation_w, pad_d, pad_h, pad_w, groups, c_in, c_out,
        x_batch, x_d, x_h, x_w, y_batch, y_d, y_h, y_w, row_tiles, column_tiles, splits,
    ):  # fmt: skip
        thread, in_sizes, out_sizes, taps = this_thread(), (in_d, in_h, in_w), (out_d, out_h, out_w), kernel_d * kernel_h * kernel_w
        split, group, tap, first_out, first_in, begin, steps, start = work(
            this_block(), row_tiles, column_tiles, groups, splits, batch, out_sizes, (kernel_d, kernel_h, kernel_w),
            (dilation_d, dilation_h, dilation_w), (pad_d, pad_h, pad_w),
        )  # fmt: skip
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
            in_chunks = 16 // width
            x_steps = (x_batch // in_chunks, x_d // in_chunks, x_h // in_chunks, x_w // in_chunks)
            y_steps = (y_batch // in_chunks, y_d // in_chunks, y_h // in_chunks, y_w // in_chunks)
            x_at, y_at = x + (group * c_in + first_in) * width, y + (group * c_out + first_out) * width
            scale, same, nothing = (stride_d, stride_h, stride_w), (1, 1, 1), (0, 0, 0)
            at, more = first_positions(begin * depth + row_of(thread), out_sizes), digits(depth, out_sizes)
            slot, parity, full = 0, 1, 0
            for step in range(steps + ahead):
                if step < steps:
                    wait_phase(is_empty + BARRIER_BYTES * slot, parity)
                    to = ring + slot * stage_bytes
                    copy_rows(to, y_at, at, batch, same, nothing, out_sizes, y_steps, c_out - first_out, thread)
                    copy_columns(to + rows_bytes, x_at, at, batch, scale, start, in_sizes, x_steps, c_in - first_in, thread)
                    at = later_positions(at, more, out_sizes)
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
            more_registers()
            of_group = (warp >> 2) - 1
            sums, slot, parity = no_sums(), 0, 0
            for _ in range(steps):
                wait_phase(is_full + BARRIER_BYTES * slot, parity)
                operands = ring + slot * stage_bytes
                sums = start_products(begin_products(sums), operands + of_group * block_bytes, operands + rows_bytes)
                sums = wait_sums(sums)
                arrive(is_empty + BARRIER_BYTES * slot)
                slot += 1
                if slot == stages:
                    slot, parity = 0, parity ^ 1

            to = workspace + (((split * groups + group) * c_out + first_out) * taps * c_in + tap * c_in + first_in) * 4
            row, column = of_group * ROWS + (warp & 3) * 16 + first_row(thread), first_column(thread)
            store(sums, to, taps * c_in * 4, row, column, c_out - first_out, c_in - first_in)

    return kernel
