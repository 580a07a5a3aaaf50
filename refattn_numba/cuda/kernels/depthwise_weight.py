"""Gradient of the weights of a convolution of each channel on its own, in parts whose sum another kernel makes.

A thread has some channels of one tap, and walks over its part of the rows; `conv_sum` then adds the parts in their order, so that
results repeat.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from refattn_numba.cuda import fragments, memory, vectors
from refattn_numba.cuda.fragments import Element, bytes_of
from refattn_numba.cuda.kernel import Parameters
from refattn_numba.cuda.kernels.depthwise import AXES, STEPS
from refattn_numba.cuda.kernels.place import numbers, strides


class Config(NamedTuple):
    """Sizes that are fixed when the kernel is compiled.

    Attributes
    ----------
    element : str
        Type of the arrays.
    vector : int
        Channels of a thread: those of 16 bytes, or 1.
    positions : int
        Whose products are added at a time.
    segment : int
        Positions of a row that one part takes before it looks for the next.
    threads : int
        In a block.
    """

    element: Element
    vector: int
    positions: int
    segment: int
    threads: int = 128


PARAMETERS: Parameters = (
    *numbers("pointer", "x", "y", "workspace"),
    *numbers("int32", "batch", *(f"{name}_{axis}" for name in ("in", "out", "kernel", "stride", "dilation", "pad") for axis in AXES)),
    *numbers("int32", "c_out", "multiplier", "splits"),
    *strides("x", "y", axes=STEPS),
)
"""`workspace` is float32 (splits, taps, output channels); y is the cotangent of the output."""


def depthwise_weight(ops: Any, config: Config) -> Callable[..., None]:
    """The kernel."""
    element, count, positions, segment, threads = config
    width = bytes_of(element)
    this_thread, this_block, quotient = ops(memory.thread()), ops(memory.block()), ops(memory.quotient())
    place, smaller, nothing = ops(vectors.place(is_spread=False)), ops(vectors.smaller()), ops(fragments.zeros(vectors.kind_of(count)))
    add_products, store = ops(vectors.add_products(element, count, positions)), ops(vectors.store_apart("float32", count))

    def kernel(
        x, y, workspace, batch,
        in_d, in_h, in_w, out_d, out_h, out_w, kernel_d, kernel_h, kernel_w,
        stride_d, stride_h, stride_w, dilation_d, dilation_h, dilation_w, pad_d, pad_h, pad_w,
        c_out, multiplier, splits, x_batch, x_d, x_h, x_w, y_batch, y_d, y_h, y_w,
    ):  # fmt: skip
        chunks, segments = (c_out + count - 1) // count, (out_w + segment - 1) // segment
        index = this_block() * threads + this_thread()
        rest = quotient(index, chunks)
        channel, taps = (index - rest * chunks) * count, kernel_d * kernel_h * kernel_w
        split = quotient(rest, taps)
        tap = rest - split * taps
        of_plane = quotient(tap, kernel_w)
        i = quotient(of_plane, kernel_h)
        k, m = of_plane - i * kernel_h, tap - of_plane * kernel_w
        from_channel, whole = quotient(channel, multiplier), batch * out_d * out_h * segments
        sums = nothing()
        for turn in range(quotient(whole + splits - 1, splits)):
            here = split + turn * splits
            row = quotient(here, segments)
            first = (here - row * segments) * segment
            plane = quotient(row, out_h)
            b = quotient(plane, out_d)
            h, d = row - plane * out_h, plane - b * out_d
            at_d = place(d, i, stride_d, dilation_d, pad_d, in_d)
            at_h = place(h, k, stride_h, dilation_h, pad_h, in_h)
            is_there = smaller(smaller(smaller(at_d, at_h) + 1, whole - here), splits - split)
            of_x = x + (b * x_batch + at_d * x_d + at_h * x_h + from_channel) * width
            for step in range(0, segment, positions):
                p = first + step
                left = smaller(out_w - p, is_there * positions)
                of_y = y + (b * y_batch + d * y_d + h * y_h + p * y_w + channel) * width
                at = p * stride_w + m * dilation_w - pad_w
                sums = add_products(sums, of_y, y_w * width, left, of_x, x_w * width, at, stride_w, in_w)
        store(workspace + (rest * c_out + channel) * 4, 4, sums, smaller(c_out - channel, (splits - split) * count))

    return kernel
