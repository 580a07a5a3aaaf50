"""All kernels of convolution, and the types that each is compiled for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numba
import numpy as np

from refattn_numba.cpu import deformable_kernels
from refattn_numba.cpu.conv import (
    causal_lines,
    depthwise_pixels,
    depthwise_planes,
    direct_few,
    direct_linear,
    direct_pack,
    direct_weight,
    epilogue,
    layouts,
    pointwise_planes,
    pointwise_rows,
    pointwise_weights,
    strided,
    winograd_kernels,
    winograd_weight,
)
from refattn_numba.cpu.conv.direct_call import DirectCall
from refattn_numba.cpu.conv.pointwise_call import GradientCall, PointwiseCall
from refattn_numba.cpu.conv.winograd_tiles import WinogradCall
from refattn_numba.cpu.deformable_call import DeformCall
from refattn_numba.cpu.threads import kernel_types

OF_RECORDS: tuple[tuple[Any, tuple[Any, ...]], ...] = (
    (layouts.Move, (layouts.turn,)),
    (DirectCall, (direct_pack.pack, direct_linear.convolve, direct_few.scatter, direct_weight.correlate_weight, direct_pack.unpack)),
    (PointwiseCall, (pointwise_planes.planes, pointwise_rows.rows)),
    (GradientCall, (pointwise_weights.weights,)),
    (strided.StridedCall, (strided.move,)),
    (depthwise_planes.PlanesCall, (depthwise_planes.planes, depthwise_planes.plane_gradients)),
    (depthwise_pixels.PixelsCall, (depthwise_pixels.pixels, depthwise_pixels.pixel_gradients)),
    (causal_lines.LinesCall, (causal_lines.lines, causal_lines.line_gradients)),
    (
        WinogradCall,
        (
            winograd_kernels.transform_weights,
            winograd_kernels.by_tiles,
            winograd_kernels.transform_inputs,
            winograd_kernels.by_panels,
            winograd_weight.add_tiles,
            winograd_weight.add_slices,
        ),
    ),
    (DeformCall, (deformable_kernels.forward, deformable_kernels.backward)),
)
"""Those that take tasks, by what they are told of a call."""


def kernels(dtype: np.dtype[Any]) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Each with its types for numbers of one precision."""
    for layout, group in OF_RECORDS:
        for kernel in group:
            yield kernel, kernel_types(dtype, has_options=False, layout=layout)
    number = numba.from_dtype(dtype)
    read, written = (numba.types.Array(number, 1, "C", readonly=readonly) for readonly in (True, False))
    integer = numba.types.int64
    yield epilogue.finish_rows, (written, written, read, numba.types.boolean, *(integer,) * 4)
    yield epilogue.pull_back, (read, read, written, *(integer,) * 3)
    yield epilogue.sum_rows, (read, written, *(integer,) * 3)
    yield epilogue.sum_columns, (read, written, *(integer,) * 3)
