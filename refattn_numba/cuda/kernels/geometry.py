"""What kernels for convolution are told: one description of a convolution for its forward pass and both of its gradients.

Arrays are (batch, depth, height, width, channels) with contiguous channels, weights (channels of y, depth, height, width, channels of x in a
group), packed. Along each axis, with the same names for input and output whatever is computed::

    y[q] = sum over t of weight[t] * x[stride * q + dilation * t - pad]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refattn_numba.cuda import memory
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


def axis_of_output(ops: Any) -> Callable[..., Any]:
    """The function that says for one axis how positions of y read x: number of positions, position in x of the first, steps in x from one
    position and from one tap to the next, number of taps, and the first tap and step from tap to tap in the kernel."""

    def axis(_phase: Any, _size: Any, out: Any, kernel: Any, stride: Any, dilation: Any, pad: Any) -> tuple[Any, ...]:
        return out, -pad, stride, dilation, kernel, 0, 1

    return ops.function(axis)


def axis_of_input(ops: Any) -> Callable[..., Any]:
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
