"""Deformable convolution on CPU cores, in float32 or float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refattn._core import Array, Grads, Pullback
from refattn.convolution.deformable import deformed, geometry
from refattn.convolution.rule import bias_gradient
from refattn_numba.cpu.call import Record
from refattn_numba.cpu.deformable_call import (
    TASKS,
    DeformCall,
    backward_weights,
    blocks_of,
    forward_weights,
    memory_of,
    spans_of,
    tiles_of,
    weight_gradient,
)
from refattn_numba.cpu.deformable_kernels import backward, forward
from refattn_numba.cpu.instructions import HOST
from refattn_numba.cpu.packing import packed
from refattn_numba.cpu.threads import run_tasks


def convolve_deformed(
    x: Array, offset: Array, modulation: Array | None, weight: Array, bias: Array | None, **options: Any
) -> tuple[Array, Pullback]:
    """`refattn.convolution.deformable.deformed`, with all its options."""
    if not min(x.size, weight.size):
        return deformed(x, offset, modulation, weight, bias, **options)
    groups, offset_groups = options["groups"], options["offset_groups"]
    steps, gaps, pairs = geometry(x, offset, weight, options["stride"], options["padding"], options["dilation"], offset_groups)
    dtype, (batch, channels, height, width) = x.dtype.newbyteorder("="), x.shape
    places, taps, out_group = math.prod(offset.shape[2:]), math.prod(weight.shape[2:]), len(weight) // groups
    given = blocks_of(channels, groups, offset_groups, taps, dtype.itemsize)
    blocks, weights = forward_weights(packed(weight, dtype), given, groups, offset_groups)
    fields = {"batch": batch, "channels": channels, "height": height, "width": width, "out_channels": len(weight)}
    fields |= {"out_group": out_group, "offset_groups": offset_groups, "places": places, "out_width": offset.shape[3]}
    fields |= {"taps": taps, "kernel_width": weight.shape[3], "num_blocks": len(blocks), **tiles_of(places)}
    fields |= {f"stride_{way}": s for way, s in zip(("down", "right"), steps, strict=True)}
    fields |= {f"dilation_{way}": d for way, d in zip(("down", "right"), gaps, strict=True)}
    fields |= {"top": pairs[0][0], "left": pairs[1][0]}
    call = Record({**fields, **memory_of(blocks, fields["tile"], taps, out_group, dtype.itemsize)}, layout=DeformCall)
    call.add(pixels=channels_last(x, dtype), offset=packed(offset, dtype))
    call.add(**{name: packed(a, dtype) for name, a in (("modulation", modulation), ("bias", bias)) if a is not None})
    output = np.empty((batch, len(weight), *offset.shape[2:]), dtype)
    cost = batch * places * weight.size
    made = call.more(tasks=batch * fields["tiles"])
    made.add(output=output, weights=weights, blocks=packed(blocks, np.int64))
    run_tasks(forward, made, False, batch * fields["tiles"], cost, dtype)

    def pullback(dy: Array) -> Grads:
        rows, matrices = backward_weights(packed(weight, dtype), given, groups, offset_groups)
        spans = spans_of(rows, offset_groups)
        parts, chunks = int(spans[:, 2].max()) + 1, min(batch, -(-TASKS // len(spans)))
        d_pixels = np.zeros((batch, height * width, channels), dtype)
        d_weights, d_offset = np.zeros((chunks, matrices.size), dtype), np.zeros((parts, *offset.shape), dtype)
        sizes = {"num_spans": len(spans), "chunks": chunks, "tasks": len(spans) * chunks, "weights_size": matrices.size}
        made = call.more(**sizes)
        made.add(weights=matrices, blocks=packed(rows, np.int64), spans=spans, d_output=packed(dy, dtype))
        made.add(d_pixels=d_pixels, d_weights=d_weights, d_offset=d_offset)
        d_modulation = None if modulation is None else np.zeros((parts, *modulation.shape), dtype)
        if d_modulation is not None:
            made.add(d_modulation=d_modulation)
        run_tasks(backward, made, False, sizes["tasks"], 2 * cost, dtype)
        return {
            "x": np.ascontiguousarray(d_pixels.swapaxes(1, 2)).reshape(x.shape),
            "offset": summed(d_offset),
            "modulation": None if d_modulation is None else summed(d_modulation),
            "weight": weight_gradient(summed(d_weights), rows, weight),
            "bias": bias_gradient(dy),
        }

    return output, pullback


def channels_last(x: Array, dtype: np.dtype[Any]) -> Array:
    """The channels of a pixel side by side, and behind the last one what a register reads besides."""
    batch, channels, height, width = x.shape
    whole = np.empty(x.size + HOST.register_bytes // dtype.itemsize, dtype)
    whole[x.size :] = 0
    pixels = whole[: x.size].reshape(batch, height, width, channels)
    pixels[...] = x.transpose(0, 2, 3, 1)
    return pixels


def summed(parts: Array) -> Array:
    """What each task gives."""
    return parts[0] if len(parts) == 1 else parts.sum(axis=0)
