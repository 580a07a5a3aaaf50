"""Convolution of any number of channels, and of arrays whose rows begin anywhere: the same product, whose operands are read one by one.

Taps and channels are one axis, so that few channels waste no part of a tile. What the next turn of the loop multiplies waits in registers
while this one does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from refattn_numba.cuda import activations, finishing, fragments, memory, pixels, products
from refattn_numba.cuda.fragments import Element, Tile, bytes_of, stride_of
from refattn_numba.cuda.kernels.geometry import blocks_work, sides


class Config(NamedTuple):
    """Sizes that are fixed when the kernel is compiled.

    Attributes
    ----------
    element : str
        Type of the operands.
    is_input : bool
        Whether the gradient of the input is made, and not the output.
    columns : int
        Channels of a block.
    depth : int
        Taps and channels in a tile of operands.
    row_warps, column_warps : int
        Warps that share the rows, and the columns.
    """

    element: Element
    is_input: bool
    columns: int
    depth: int
    row_warps: int = 2
    column_warps: int = 2

    is_odd = True
    """Whether rows may begin at any number, and not at multiples of 16 bytes alone."""

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.row_warps * self.column_warps

    @property
    def rows(self) -> int:
        """Positions of a block: each thread reads one."""
        return self.threads

    @property
    def tile(self) -> int:
        """The same."""
        return self.rows

    @property
    def shared_bytes(self) -> int:
        """Two pairs of tiles."""
        return 2 * (self.rows + self.columns) * stride_of(self.element, self.depth)


def odd_convolution(ops: Any, config: Config) -> Callable[..., None]:
    """The kernel; its parameters are those of `convolution`."""
    element, is_input, tile_rows, tile_columns = config.element, config.is_input, config.rows, config.columns
    depth, width, stride, column_warps = config.depth, bytes_of(element), stride_of(element, config.depth), config.column_warps
    tile, rows_bytes, slot_bytes = (
        Tile(tile_rows // config.row_warps, tile_columns // column_warps),
        tile_rows * stride,
        config.shared_bytes // 2,
    )
    warp_rows, warp_columns = tile
    of_part = depth * tile_columns // config.threads

    this_thread, this_block, shared, barrier = ops(memory.thread()), ops(memory.block()), ops(memory.shared()), ops(memory.barrier())
    warp_of, first_row, first_column = ops(memory.warp_of()), ops(memory.first_row()), ops(memory.first_column())
    quotient, before = ops(memory.quotient()), ops(memory.before())
    each_thread = pixels.Chunks(element, tile_rows, 16 // width, tile_rows)
    positions, addresses = ops(pixels.positions(each_thread)), ops(pixels.addresses(each_thread))
    load_row, load_weights = ops(pixels.load_taps(element, depth)), ops(pixels.load_taps(element, of_part))
    store_row, store_weights = ops(pixels.store_bits(element, depth)), ops(pixels.store_bits(element, of_part))
    no_sums, multiply = ops(fragments.zeros(tile.kind)), ops(products.product(element, tile, depth, stride, stride))
    add_bias, finish = ops(finishing.add_bias(element, tile)), activations.fused(ops, tile.kind)
    store = ops(finishing.store_positions(element, tile, is_odd=True))
    work, read_and_written = blocks_work(ops, config), sides(ops, config)

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
        columns, total = made - column_start, taps[0] * taps[1] * taps[2] * summed
        counts = max(taps[1], 1), max(taps[2], 1), summed

        origin = positions(first + thread, count, places, scale, start)
        at = addresses(first + thread, count, places, scale, start, source + group * summed * width, source_steps, thread)[0]
        tap_steps = step_of[0] * source_steps[1], step_of[1] * source_steps[2], step_of[2] * source_steps[3]

        of_tap, of_channel = c_in * width, kernel_d * kernel_h * kernel_w * c_in * width
        part = quotient(thread, tile_columns)
        column, part = thread - part * tile_columns, part * of_part
        weights_at = weight + group * c_out * of_channel + ((tap_of[0] * kernel_h + tap_of[1]) * kernel_w + tap_of[2]) * of_tap
        weight_steps = apart[0] * kernel_h * kernel_w * of_tap, apart[1] * kernel_w * of_tap, apart[2] * of_tap
        if is_input:
            weights_at, channel_step = weights_at + (column_start + column) * width, of_channel
        else:
            weights_at, channel_step = weights_at + (column_start + column) * of_channel, width
        has_column = before(column, columns)

        ring = shared()
        row_to, weights_to = ring + thread * stride, ring + rows_bytes + column * stride + part * width
        warp = warp_of(thread)
        row_warp = quotient(warp, column_warps)
        row, column = row_warp * warp_rows, (warp - row_warp * column_warps) * warp_columns
        left, right = ring + row * stride, ring + rows_bytes + column * stride

        bits = load_row(at, 0, total, counts, width, tap_steps, origin, step_of, source_sizes, 1)
        weights = load_weights(weights_at, part, total, counts, channel_step, weight_steps, (0, 0, 0), (0, 0, 0), (1, 1, 1), has_column)
        sums = no_sums()
        for step in range((total + depth - 1) // depth):
            slot, after = step % 2 * slot_bytes, (step + 1) * depth
            store_row(row_to + slot, bits)
            store_weights(weights_to + slot, weights)
            barrier()
            bits = load_row(at, after, total, counts, width, tap_steps, origin, step_of, source_sizes, 1)
            weights = load_weights(
                weights_at, after + part, total, counts, channel_step, weight_steps, (0, 0, 0), (0, 0, 0), (1, 1, 1), has_column
            )
            sums = multiply(sums, left + slot, right + slot, thread)

        column = column + first_column(thread)
        channel = group * made + column_start
        sums = finish(add_bias(sums, bias + channel * width if bias != 0 else 0, column, columns), activation)
        store(
            sums, first + row + first_row(thread), count, places, target_scale, target_start, target_sizes,
            target + channel * width, target_steps, column, columns,
        )  # fmt: skip

    return kernel
