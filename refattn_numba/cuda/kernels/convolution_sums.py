"""Sums of a convolution's backward pass in a fixed order: over positions for the bias, and over what blocks have summed apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from refattn_numba.cuda import memory
from refattn_numba.cuda.fragments import Element, bytes_of
from refattn_numba.cuda.kernel import Parameters
from refattn_numba.cuda.kernels.place import numbers, strides


class Config(NamedTuple):
    """Sizes that are fixed when the kernel is compiled.

    Attributes
    ----------
    element : str
        Type of the cotangent and of the gradient.
    warps : int
        In a block.
    """

    element: Element
    warps: int = 4

    is_odd = True
    """Rows may begin at any number."""

    shared_bytes = 0

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.warps

    @property
    def tile(self) -> int:
        """Numbers of a block."""
        return self.threads


BIAS: Parameters = (
    *numbers("pointer", "y", "workspace"),
    *numbers("int32", "batch", "out_d", "out_h", "out_w", "channels", "splits"),
    *strides("y", axes=("batch", "d", "h", "w")),
)


def bias_gradient(ops: Any, config: Config) -> Callable[..., None]:
    """Sums of each channel over each part of the positions: one warp for 32 channels of a part."""
    element, warps, width, zero = config.element, config.warps, bytes_of(config.element), np.float32(0)
    this_thread, this_block, quotient = ops(memory.thread()), ops(memory.block()), ops(memory.quotient())
    warp_of, lane_of = ops(memory.warp_of()), ops(memory.lane_of())
    load, store = ops(memory.load_where(element)), ops(memory.store_number("float32"))

    def kernel(y, workspace, batch, out_d, out_h, out_w, channels, splits, y_batch, y_d, y_h, y_w):
        thread = this_thread()
        index, parts = this_block() * warps + warp_of(thread), quotient(channels + 31, 32)
        split = quotient(index, parts)
        if split >= splits:
            return
        channel = (index - split * parts) * 32 + lane_of(thread)
        left, count = channels - channel, batch * out_d * out_h * out_w
        in_split = quotient(count + splits - 1, splits)
        first = min(split * in_split, count)
        rows = quotient(first, out_w)
        planes = quotient(rows, out_h)
        w, h, b = first - rows * out_w, rows - planes * out_h, quotient(planes, out_d)
        d, total = planes - b * out_d, zero
        for _ in range(min(first + in_split, count) - first):
            total = total + load(y + (b * y_batch + d * y_d + h * y_h + w * y_w + channel) * width, left)
            w += 1
            if w == out_w:
                w, h = 0, h + 1
                if h == out_h:
                    h, d = 0, d + 1
                    if d == out_d:
                        d, b = 0, b + 1
        store(workspace + (split * channels + channel) * 4, total, left)

    return kernel


SUM: Parameters = (*numbers("pointer", "workspace", "output"), ("splits", "int32"), ("count", "int64"))


def sum_splits(ops: Any, config: Config) -> Callable[..., None]:
    """Sum of the parts, first to last. One thread a number."""
    element, threads, width, zero = config.element, config.threads, bytes_of(config.element), np.float32(0)
    this_thread, this_block, before = ops(memory.thread()), ops(memory.block()), ops(memory.before())
    load, store = ops(memory.load_where("float32")), ops(memory.store_number(element))

    def kernel(workspace, output, splits, count):
        index = this_block() * threads + this_thread()
        is_there, total = before(index, count), zero
        for split in range(splits):
            total = total + load(workspace + (split * count + index) * 4, is_there)
        store(output + index * width, total, is_there)

    return kernel
