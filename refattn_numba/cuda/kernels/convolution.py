"""Convolution as a product of matrices that are never laid out: rows are positions, the depth is taps times channels.

Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning", 2014, section 3 (arXiv:1410.0759). A tile of positions is copied as one tap
sees it, then as the next does. The gradient of the input is the same kernel, which reads the cotangent by the taps that meet it; under a
stride, blocks take positions of one phase, which meet the same taps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from refattn_numba.cuda import activations, finishing, fragments, memory, pixels, products
from refattn_numba.cuda.fragments import Element, Tile, bytes_of, stride_of
from refattn_numba.cuda.kernel import Parameters
from refattn_numba.cuda.kernels.geometry import GEOMETRY, TILES, blocks_work, sides
from refattn_numba.cuda.kernels.place import numbers


class Config(NamedTuple):
    """Sizes that are fixed when the kernel is compiled.

    Attributes
    ----------
    element : str
        Type of the operands.
    is_input : bool
        Whether the gradient of the input is made, and not the output.
    rows : int
        Positions of a block.
    columns : int
        Channels of a block.
    depth : int
        Channels in a tile of operands.
    stages : int
        Pairs of such tiles in shared memory, of which one is used while the others are filled.
    row_warps, column_warps : int
        Warps that share the rows, and the columns.
    """

    element: Element
    is_input: bool
    rows: int
    columns: int
    depth: int
    stages: int
    row_warps: int = 2
    column_warps: int = 2

    is_odd = False
    """Whether rows may begin at any number, and not at multiples of 16 bytes alone."""

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.row_warps * self.column_warps

    @property
    def tile(self) -> int:
        """Positions of a block."""
        return self.rows

    @property
    def of_warp(self) -> Tile:
        """Sums of one warp."""
        return Tile(self.rows // self.row_warps, self.columns // self.column_warps)

    @property
    def weight_stride(self) -> int:
        """Bytes from one row of weights to the next: of a channel that is made, or, for the input, of one that is summed over."""
        return products.deep_stride_of(self.element, self.columns) if self.is_input else stride_of(self.element, self.depth)

    @property
    def stage_bytes(self) -> int:
        """Of a pair of tiles."""
        return self.rows * stride_of(self.element, self.depth) + self.weight_stride * (self.depth if self.is_input else self.columns)

    @property
    def shared_bytes(self) -> int:
        """The ring."""
        return self.stages * self.stage_bytes


PARAMETERS: Parameters = (*numbers("pointer", "x", "weight", "bias", "y"), *GEOMETRY, *TILES, ("activation", "int32"))
"""In order; a bias of 0 is none."""


def convolution(ops: Any, config: Config) -> Callable[..., None]:
    """The kernel."""
    element, is_input, tile_rows, tile_columns = config.element, config.is_input, config.rows, config.columns
    depth, stages, threads, stage_bytes = config.depth, config.stages, config.threads, config.stage_bytes
    width, stride, weight_stride, column_warps = bytes_of(element), stride_of(element, depth), config.weight_stride, config.column_warps
    tile, rows_bytes, chunks_of = config.of_warp, tile_rows * stride, pixels.Chunks(element, tile_rows, depth, threads)
    warp_rows, warp_columns = tile
    of_column = width if is_input else weight_stride

    this_thread, this_block, shared = ops(memory.thread()), ops(memory.block()), ops(memory.shared())
    warp_of, first_row, first_column = ops(memory.warp_of()), ops(memory.first_row()), ops(memory.first_column())
    barrier, commit, wait, wait_all = ops(memory.barrier()), ops(memory.commit()), ops(memory.wait(stages - 2)), ops(memory.wait(0))
    quotient, row_of = ops(memory.quotient()), ops(pixels.row_of(chunks_of))
    positions, addresses = ops(pixels.positions(chunks_of)), ops(pixels.addresses(chunks_of))
    copy_positions = ops(pixels.copy_positions(element, depth, chunks_of))
    weights_in_tile, weights_in_row = (depth, tile_columns) if is_input else (tile_columns, depth)
    copy_weights = ops(memory.copy_rows(element, weights_in_tile, weights_in_row, threads, weight_stride))
    no_sums = ops(fragments.zeros(tile.kind))
    multiply = ops(products.product(element, tile, depth, stride, weight_stride, is_right_deep=is_input))
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
        columns = made - column_start
        weight_step = kernel_d * kernel_h * kernel_w * c_in * width
        group_weights = weight + group * c_out * weight_step
        ring = shared()

        mine = first + row_of(thread)
        origins = positions(mine, count, places, scale, start)
        at = addresses(mine, count, places, scale, start, source + group * summed * width, source_steps, thread)
        parts = (summed + depth - 1) // depth
        steps = parts * taps[0] * taps[1] * taps[2]

        def fetch(step, part, i, j, k):
            """Positions and weights of one tap, a part of the channels."""
            if step < steps:
                to, channel = ring + step % stages * stage_bytes, part * depth
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
            commit()

        part, i, j, k = 0, 0, 0, 0
        for step in range(stages - 1):
            fetch(step, part, i, j, k)
            part, i, j, k = next_tap(part, i, j, k, parts, taps[1], taps[2])

        warp = warp_of(thread)
        row_warp = quotient(warp, column_warps)
        row, column = row_warp * warp_rows, (warp - row_warp * column_warps) * warp_columns
        left_of_warp, right_of_warp = ring + row * stride, ring + rows_bytes + column * of_column
        sums = no_sums()
        for step in range(steps):
            wait()
            barrier()
            fetch(step + stages - 1, part, i, j, k)
            part, i, j, k = next_tap(part, i, j, k, parts, taps[1], taps[2])
            slot = step % stages * stage_bytes
            sums = multiply(sums, left_of_warp + slot, right_of_warp + slot, thread)
        wait_all()

        column = column + first_column(thread)
        channel = group * made + column_start
        sums = finish(add_bias(sums, bias + channel * width if bias != 0 else 0, column, columns), activation)
        store(
            sums, first + row + first_row(thread), count, places, target_scale, target_start, target_sizes,
            target + channel * width, target_steps, column, columns,
        )  # fmt: skip

    return kernel


def taps_in_turn(ops: Any) -> Callable[..., Any]:
    """The function that goes on to the next part of the channels, and after the last of them to the next tap."""

    def following(part: Any, i: Any, j: Any, k: Any, parts: Any, taps_h: Any, taps_w: Any) -> tuple[Any, Any, Any, Any]:
        part += 1
        if part == parts:
            part, k = 0, k + 1
            if k == taps_w:
                k, j = 0, j + 1
                if j == taps_h:
                    j, i = 0, i + 1
        return part, i, j, k

    return ops.function(following)
