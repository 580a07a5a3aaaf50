"""The gradient of a convolution's weights: for each tap a product of matrices whose depth is all positions.

Positions are shared out among blocks, each of which writes its own sum; `convolution_sums` adds these in their order, so that results
repeat. Both operands lie in memory with their depth first, and are turned as they go from shared memory into registers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from refattn_numba.cuda import fragments, memory, pixels, products
from refattn_numba.cuda.fragments import Element, Tile, bytes_of
from refattn_numba.cuda.kernel import Parameters
from refattn_numba.cuda.kernels.geometry import GEOMETRY, TILES
from refattn_numba.cuda.kernels.place import numbers


class Config(NamedTuple):
    """Sizes that are fixed when the kernel is compiled.

    Attributes
    ----------
    element : str
        Type of the operands.
    size : int
        Channels of y, and columns, of a block: channels of x, or taps times these.
    depth : int
        Positions in a tile of operands.
    stages : int
        Pairs of such tiles in shared memory, of which one is used while the others are filled.
    row_warps, column_warps : int
        Warps that share the channels of y, and the columns.
    is_odd : bool
        Whether rows may begin at any number, and not at multiples of 16 bytes alone.
    """

    element: Element
    size: int
    depth: int
    stages: int
    row_warps: int = 2
    column_warps: int = 2
    is_odd: bool = False

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.row_warps * self.column_warps

    @property
    def tile(self) -> int:
        """Channels of y of a block."""
        return self.size

    @property
    def columns(self) -> int:
        """Columns of a block."""
        return self.size

    @property
    def stride(self) -> int:
        """Bytes from one position to the next in shared memory."""
        return products.deep_stride_of(self.element, self.size)

    @property
    def shared_bytes(self) -> int:
        """The ring."""
        return self.stages * 2 * self.depth * self.stride


PARAMETERS: Parameters = (*numbers("pointer", "x", "y", "workspace"), *GEOMETRY, *TILES, ("splits", "int32"))


def weight_gradient(ops: Any, config: Config) -> Callable[..., None]:
    """The kernel."""
    element, size, depth, stages, threads, stride = config.element, config.size, config.depth, config.stages, config.threads, config.stride
    width, tile_bytes, column_warps = bytes_of(element), config.depth * config.stride, config.column_warps
    tile = Tile(size // config.row_warps, size // column_warps)
    warp_rows, warp_columns = tile
    chunks = pixels.Chunks(element, depth, size, threads)

    this_thread, this_block, shared = ops(memory.thread()), ops(memory.block()), ops(memory.shared())
    warp_of, first_row, first_column = ops(memory.warp_of()), ops(memory.first_row()), ops(memory.first_column())
    barrier, commit, wait, wait_all = ops(memory.barrier()), ops(memory.commit()), ops(memory.wait(stages - 2)), ops(memory.wait(0))
    quotient, row_of, digits = ops(memory.quotient()), ops(pixels.row_of(chunks)), ops(pixels.digits())
    first_positions, later_positions = ops(pixels.first_positions(chunks)), ops(pixels.later_positions(chunks))
    copy_tile, no_sums = ops(pixels.copy_summed(element, stride, chunks)), ops(fragments.zeros(tile.kind))
    multiply = ops(products.product(element, tile, depth, stride, stride, is_left_deep=True, is_right_deep=True))
    store, work = ops(memory.store_rows("float32", tile)), weights_work(ops, size, size, depth)

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
        in_chunks = 16 // width
        x_steps = (x_batch // in_chunks, x_d // in_chunks, x_h // in_chunks, x_w // in_chunks)
        y_steps = (y_batch // in_chunks, y_d // in_chunks, y_h // in_chunks, y_w // in_chunks)
        x_at, y_at = x + (group * c_in + first_in) * width, y + (group * c_out + first_out) * width
        scale, same, nothing = (stride_d, stride_h, stride_w), (1, 1, 1), (0, 0, 0)
        ring, more = shared(), digits(depth, out_sizes)

        def fetch(step, at):
            """Cotangents, and what this tap saw at their positions."""
            if step < steps:
                to = ring + step % stages * (2 * tile_bytes)
                copy_tile(to, y_at, at, batch, same, nothing, out_sizes, y_steps, c_out - first_out, thread)
                copy_tile(to + tile_bytes, x_at, at, batch, scale, start, in_sizes, x_steps, c_in - first_in, thread)
            commit()

        at = first_positions(begin * depth + row_of(thread), out_sizes)
        for step in range(stages - 1):
            fetch(step, at)
            at = later_positions(at, more, out_sizes)

        warp = warp_of(thread)
        row_warp = quotient(warp, column_warps)
        row, column = row_warp * warp_rows, (warp - row_warp * column_warps) * warp_columns
        left, right = ring + row * width, ring + tile_bytes + column * width
        sums = no_sums()
        for step in range(steps):
            wait()
            barrier()
            fetch(step + stages - 1, at)
            at = later_positions(at, more, out_sizes)
            slot = step % stages * (2 * tile_bytes)
            sums = multiply(sums, left + slot, right + slot, thread)
        wait_all()

        to = workspace + (((split * groups + group) * c_out + first_out) * taps * c_in + tap * c_in + first_in) * 4
        row, column = row + first_row(thread), column + first_column(thread)
        store(sums, to, taps * c_in * 4, row, column, c_out - first_out, c_in - first_in)

    return kernel


def weights_work(ops: Any, rows: int, columns: int, depth: int) -> Callable[..., Any]:
    """The function that says what a block makes.

    Its split, group and tap; its first channels of y and of x; the first step of its positions, how many steps they are, and where this tap
    meets x for the first position along each axis.
    """
    quotient = ops(memory.quotient())

    def work(
        block: Any, row_tiles: Any, column_tiles: Any, groups: Any, splits: Any, batch: Any, out: Any, kernel: Any, dilation: Any, pad: Any
    ) -> tuple[Any, ...]:
        rest = quotient(block, column_tiles)
        above = quotient(rest, row_tiles)
        of_taps = quotient(above, kernel[0] * kernel[1] * kernel[2])
        split = quotient(of_taps, groups)
        first_in, first_out = (block - rest * column_tiles) * columns, (rest - above * row_tiles) * rows
        tap, group = above - of_taps * (kernel[0] * kernel[1] * kernel[2]), of_taps - split * groups
        of_plane = quotient(tap, kernel[2])
        tap_d = quotient(of_plane, kernel[1])
        tap_h, tap_w = of_plane - tap_d * kernel[1], tap - of_plane * kernel[2]

        all_steps = (batch * out[0] * out[1] * out[2] + depth - 1) // depth
        in_split = quotient(all_steps + splits - 1, splits)
        begin = min(split * in_split, all_steps)
        steps = min(begin + in_split, all_steps) - begin
        start = tap_d * dilation[0] - pad[0], tap_h * dilation[1] - pad[1], tap_w * dilation[2] - pad[2]
        return split, group, tap, first_out, first_in, begin, steps, start

    return ops.function(work)
