"""The gradient of a convolution's weights for any number of channels: columns are taps times channels, and operands are read one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refattn_numba.cuda import fragments, memory, pixels, products
from refattn_numba.cuda.fragments import Tile, bytes_of
from refattn_numba.cuda.kernels.convolution_weight import Config


def odd_weight_gradient(ops: Any, config: Config) -> Callable[..., None]:
    """The kernel; its parameters are those of `convolution_weight`, its columns taps times channels of x, and its stages two."""
    element, size, depth, stride, threads = config.element, config.size, config.depth, config.stride, config.threads
    width, tile_bytes, column_warps = bytes_of(element), config.depth * config.stride, config.column_warps
    tile, of_part = Tile(size // config.row_warps, size // column_warps), size * depth // threads
    warp_rows, warp_columns = tile

    this_thread, this_block, shared, barrier = ops(memory.thread()), ops(memory.block()), ops(memory.shared()), ops(memory.barrier())
    warp_of, first_row, first_column = ops(memory.warp_of()), ops(memory.first_row()), ops(memory.first_column())
    quotient, positions_of = ops(memory.quotient()), ops(pixels.digits())
    address_of, origin_of = ops(pixels.address()), ops(pixels.origin())
    load, store_bits = ops(pixels.load_taps(element, of_part)), ops(pixels.store_bits(element, of_part))
    before, no_sums = ops(memory.before()), ops(fragments.zeros(tile.kind))
    multiply = ops(products.product(element, tile, depth, stride, stride, is_left_deep=True, is_right_deep=True))
    store = ops(memory.store_rows("float32", tile))

    def kernel(
        x, y, workspace,
        batch, in_d, in_h, in_w, out_d, out_h, out_w, kernel_d, kernel_h, kernel_w, stride_d, stride_h, stride_w,
        dilation_d, dilation_h, dilation_w, pad_d, pad_h, pad_w, groups, c_in, c_out,
        x_batch, x_d, x_h, x_w, y_batch, y_d, y_h, y_w, row_tiles, column_tiles, splits,
    ):  # fmt: skip
        thread = this_thread()
        rest = quotient(this_block(), column_tiles)
        above = quotient(rest, row_tiles)
        split = quotient(above, groups)
        group, first_in, first_out = above - split * groups, (this_block() - rest * column_tiles) * size, (rest - above * row_tiles) * size

        count = batch * out_d * out_h * out_w
        in_split = quotient((count + depth - 1) // depth + splits - 1, splits) * depth
        begin = min(split * in_split, count)
        end = min(begin + in_split, count)

        total, out_sizes = kernel_d * kernel_h * kernel_w * c_in, (out_d, out_h, out_w)
        x_at, y_at = x + group * c_in * width, y + group * c_out * width
        x_steps, y_steps = (
            (x_batch * width, x_d * width, x_h * width, x_w * width),
            (y_batch * width, y_d * width, y_h * width, y_w * width),
        )
        scale, start, dilation = (stride_d, stride_h, stride_w), (-pad_d, -pad_h, -pad_w), (dilation_d, dilation_h, dilation_w)
        tap_steps = dilation_d * x_steps[1], dilation_h * x_steps[2], dilation_w * x_steps[3]
        counts, none, one, nowhere = (kernel_h, kernel_w, c_in), (0, 0, 0), (1, 1, 1), (0, 0, 0)

        part = quotient(thread, depth)
        row, part = thread - part * depth, part * of_part
        ring = shared()
        to = ring + row * stride + part * width
        warp = warp_of(thread)
        row_warp = quotient(warp, column_warps)
        of_rows, of_columns = row_warp * warp_rows, (warp - row_warp * column_warps) * warp_columns
        left, right = ring + of_rows * width, ring + tile_bytes + of_columns * width

        def cotangents(position):
            """Of this thread's channels at a position."""
            there_is = before(position, end)
            at = address_of(y_at, positions_of(position * there_is, out_sizes), one, none, y_steps)
            return load(at, first_out + part, c_out, (1, 1, c_out), width, nowhere, none, none, one, there_is)

        def seen(position):
            """What this thread's taps and channels see from there."""
            there_is = before(position, end)
            place = positions_of(position * there_is, out_sizes)
            at, origin = address_of(x_at, place, scale, start, x_steps), origin_of(place, scale, start)
            return load(at, first_in + part, total, counts, width, tap_steps, origin, dilation, (in_d, in_h, in_w), there_is)

        sums = no_sums()
        of_y, of_x = cotangents(begin + row), seen(begin + row)
        for position in range(begin, end, depth):
            slot = (position - begin) // depth % 2 * (2 * tile_bytes)
            store_bits(to + slot, of_y)
            store_bits(to + slot + tile_bytes, of_x)
            barrier()
            of_y, of_x = cotangents(position + depth + row), seen(position + depth + row)
            sums = multiply(sums, left + slot, right + slot, thread)

        target = workspace + (((split * groups + group) * c_out + first_out) * total + first_in) * 4
        store(sums, target, total * 4, of_rows + first_row(thread), of_columns + first_column(thread), c_out - first_out, total - first_in)

    return kernel
