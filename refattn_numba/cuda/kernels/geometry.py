"""What kernels for convolution are told: one description of a convolution for its forward pass and both of its gradients.

Arrays are (batch, depth, height, width, channels) with contiguous channels, weights (channels of y, depth, height, width, channels of x in a
group), packed. Along each axis, with the same names for input and output whatever is computed::

    y[q] = sum over t of weight[t] * x[stride * q + dilation * t - pad]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refattn_numba.cuda import memory
from refattn_numba.cuda.fragments import bytes_of
from refattn_numba.cuda.kernel import Parameters
from refattn_numba.cuda.kernels.place import numbers, strides

AXES = "d", "h", "w"
GEOMETRY: Parameters = (
    ("batch", "int32"),
    *numbers("int32", *(f"{name}_{axis}" for name in ("in", "out", "kernel", "stride", "dilation", "pad") for axis in AXES)),
    *numbers("int32", "groups", "c_in", "c_out"),
    *strides("x", "y", axes=("batch", *AXES)),
)
"""Channels are those of one group; a pad is what stands before an axis, or is cut off where negative."""

TILES: Parameters = numbers("int32", "row_tiles", "column_tiles")


def blocks_work(ops: Any, config: Any) -> Callable[..., Any]:
    """The function that says what a block makes.

    Its group, its first channel and first position, how many positions there are, the phase that they are of; and for each axis the number of
    positions, place of the first in the array that is read, steps there from one position and from one tap to the next, number of taps, the
    first of them in the kernel and the step from one to the next there.
    """
    quotient, axis = ops(memory.quotient()), (_axis_of_input if config.is_input else _axis_of_output)(ops)
    rows, columns, is_input = config.rows, config.columns, config.is_input

    def work(
        block: Any, row_tiles: Any, column_tiles: Any, batch: Any, sizes: Any, out: Any, kernel: Any, stride: Any, dilation: Any, pad: Any
    ) -> tuple[Any, ...]:
        rest = quotient(block, column_tiles)
        above = quotient(rest, row_tiles)
        group, of_d, of_h, of_w = above, 0, 0, 0
        if is_input:
            above, of_width = quotient(above, stride[2]), above
            group, of_height = quotient(above, stride[1]), above
            of_w, of_h = of_width - above * stride[2], of_height - group * stride[1]
            group, of_depth = quotient(group, stride[0]), group
            of_d = of_depth - group * stride[0]
        d = axis(of_d, sizes[0], out[0], kernel[0], stride[0], dilation[0], pad[0])
        h = axis(of_h, sizes[1], out[1], kernel[1], stride[1], dilation[1], pad[1])
        w = axis(of_w, sizes[2], out[2], kernel[2], stride[2], dilation[2], pad[2])
        count = batch * d[0] * h[0] * w[0]
        places, start, scale, step = (d[0], h[0], w[0]), (d[1], h[1], w[1]), (d[2], h[2], w[2]), (d[3], h[3], w[3])
        taps, tap, apart = (d[4], h[4], w[4]), (d[5], h[5], w[5]), (d[6], h[6], w[6])
        first, channel = (rest - quotient(rest, row_tiles) * row_tiles) * rows, (block - rest * column_tiles) * columns
        return group, channel, first, count, (of_d, of_h, of_w), places, start, scale, step, taps, tap, apart

    return ops.function(work)


def sides(ops: Any, config: Any) -> Callable[..., Any]:
    """The function that says what is read and what is written.

    Of each its address, sizes, steps in bytes, and channels of a group; then how positions stand in what is written.
    """
    is_input, width = config.is_input, bytes_of(config.element)

    def read_and_written(
        x: Any, y: Any, sizes: Any, out: Any, x_steps: Any, y_steps: Any, c_in: Any, c_out: Any, stride: Any, phase: Any
    ) -> tuple[Any, ...]:
        of_x = x_steps[0] * width, x_steps[1] * width, x_steps[2] * width, x_steps[3] * width
        of_y = y_steps[0] * width, y_steps[1] * width, y_steps[2] * width, y_steps[3] * width
        if is_input:
            return y, out, of_y, c_out, x, sizes, of_x, c_in, stride, phase
        return x, sizes, of_x, c_in, y, out, of_y, c_out, (1, 1, 1), (0, 0, 0)

    return ops.function(read_and_written)


def _axis_of_output(ops: Any) -> Callable[..., Any]:
    """The function that says for one axis how positions of y read x, in the order of `blocks_work`."""

    def axis(_phase: Any, _size: Any, out: Any, kernel: Any, stride: Any, dilation: Any, pad: Any) -> tuple[Any, ...]:
        return out, -pad, stride, dilation, kernel, 0, 1

    return ops.function(axis)


def _axis_of_input(ops: Any) -> Callable[..., Any]:
    """The same for the positions of x that are ``phase`` modulo the stride and read y: all of them by the same taps.

    ``q = (p + pad - dilation t) / stride`` must be whole, so taps are some steps apart, and no product is made of those between.
    """
    quotient = ops(memory.quotient())

    def floor(a: Any, b: Any) -> Any:
        """In 32 bits, which takes no call."""
        return quotient(a, b) if a >= 0 else -1 - quotient(-1 - a, b)

    of_any = ops.function(floor)

    def axis(phase: Any, size: Any, _out: Any, kernel: Any, stride: Any, dilation: Any, pad: Any) -> tuple[Any, ...]:
        first, apart = 0, 1
        while first < kernel and of_any(phase + pad - first * dilation, stride) * stride != phase + pad - first * dilation:
            first += 1
        while quotient(apart * dilation, stride) * stride != apart * dilation:
            apart += 1
        start = of_any(phase + pad - first * dilation, stride)
        places, taps = quotient(size - phase + stride - 1, stride), quotient(kernel - first + apart - 1, apart)
        return places, start, 1, -quotient(apart * dilation, stride), taps, first, apart

    return ops.function(axis)
