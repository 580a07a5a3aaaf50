"""Convolution of each channel on its own, and the gradient of its input: lanes over channels, a few positions of a row for each thread.

Both are one kernel, which reads one array and writes the other: a position of what is written meets, for each tap, one position of what is
read or none. Nothing is held in shared memory: the rows that neighbours share come from the first-level cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from refattn_numba.cuda import activations, fragments, memory, vectors
from refattn_numba.cuda.fragments import Element, bytes_of
from refattn_numba.cuda.kernel import Parameters
from refattn_numba.cuda.kernels.place import numbers, strides

AXES = "d", "h", "w"
STEPS = ("batch", *AXES)


class Config(NamedTuple):
    """Sizes that are fixed when the kernel is compiled.

    Attributes
    ----------
    element : str
        Type of the arrays.
    vector : int
        Channels of a thread: those of 16 bytes, or 1 where several output channels share one of the input, or rows are not such.
    positions : int
        Of a thread, in a row.
    is_spread : bool
        Whether the input's gradient is made.
    threads : int
        In a block.
    """

    element: Element
    vector: int
    positions: int
    is_spread: bool
    threads: int = 128


PARAMETERS: Parameters = (
    *numbers("pointer", "source", "w", "bias", "target"),
    *numbers(
        "int32", "batch", *(f"{name}_{axis}" for name in ("target", "source", "kernel", "stride", "dilation", "pad") for axis in AXES)
    ),
    *numbers("int32", "target_channels", "source_channels", "multiplier", "activation"),
    *(("of_" + name, kind) for name, kind in strides("source", "target", axes=STEPS)),
)
"""Weights are (taps, output channels); steps along the axes of the arrays are ``of_source_batch`` and so on."""


def depthwise(ops: Any, config: Config) -> Callable[..., None]:
    """The kernel."""
    element, count, positions, is_spread, threads = config
    width = bytes_of(element)
    this_thread, this_block, quotient = ops(memory.thread()), ops(memory.block()), ops(memory.quotient())
    load, store = ops(vectors.load(element, count)), ops(vectors.store_run(element, count, positions))
    place, add_tap = ops(vectors.place(is_spread=is_spread)), ops(vectors.add_tap(element, count, positions, is_spread=False))
    spread_tap = ops(vectors.add_tap(element, count, positions, is_spread=True)) if is_spread else add_tap
    repeated, smaller, nothing = (
        ops(vectors.repeated(count, positions)),
        ops(vectors.smaller()),
        ops(fragments.zeros(vectors.kind_of(count))),
    )
    activate = activations.activated(ops, vectors.kind_of(count * positions))

    def kernel(
        source, w, bias, target, batch,
        target_d, target_h, target_w, source_d, source_h, source_w, kernel_d, kernel_h, kernel_w,
        stride_d, stride_h, stride_w, dilation_d, dilation_h, dilation_w, pad_d, pad_h, pad_w,
        target_channels, source_channels, multiplier, activation,
        of_source_batch, of_source_d, of_source_h, of_source_w, of_target_batch, of_target_d, of_target_h, of_target_w,
    ):  # fmt: skip
        chunks, runs = (target_channels + count - 1) // count, (target_w + positions - 1) // positions
        run = quotient(this_block() * threads + this_thread(), chunks)
        channel = (this_block() * threads + this_thread() - run * chunks) * count
        row = quotient(run, runs)
        first = (run - row * runs) * positions
        plane = quotient(row, target_h)
        b = quotient(plane, target_d)
        h, d = row - plane * target_h, plane - b * target_d
        there = batch - b
        sums = repeated(nothing())
        if bias != 0:
            sums = repeated(load(bias + channel * width, there))
        for j in range(multiplier if is_spread else 1):
            of_channel = channel * multiplier + j if is_spread else quotient(channel, multiplier)
            of_weight, weights = (of_channel, source_channels) if is_spread else (channel, target_channels)
            of_batch = source + (b * of_source_batch + of_channel) * width
            for i in range(kernel_d):
                at_d = place(d, i, stride_d, dilation_d, pad_d, source_d)
                for k in range(kernel_h):
                    at_h = place(h, k, stride_h, dilation_h, pad_h, source_h)
                    of_row = of_batch + (at_d * of_source_d + at_h * of_source_h) * width
                    is_there = smaller(smaller(at_d, at_h), there - 1)
                    for m in range(kernel_w):
                        weight = load(w + (((i * kernel_h + k) * kernel_w + m) * weights + of_weight) * width, there)
                        if is_spread:
                            at = first + pad_w - m * dilation_w
                            if stride_w == 1:
                                sums = add_tap(sums, weight, of_row, of_source_w * width, at, 1, source_w, is_there)
                            else:
                                sums = spread_tap(sums, weight, of_row, of_source_w * width, at, stride_w, source_w, is_there)
                        else:
                            at = first * stride_w + m * dilation_w - pad_w
                            sums = add_tap(sums, weight, of_row, of_source_w * width, at, stride_w, source_w, is_there)
        to = target + (b * of_target_batch + d * of_target_d + h * of_target_h + first * of_target_w + channel) * width
        store(to, of_target_w * width, activate(sums, activation), smaller(target_w - first, there * positions))

    return kernel
