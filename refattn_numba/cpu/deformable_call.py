"""What the kernels of deformable convolution are told of a call, and how its channels fall into blocks."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np

from refattn._core import Array, Integers
from refattn_numba.cpu.instructions import HOST
from refattn_numba.cpu.packing import packed
from refattn_numba.cpu.products import LINES, SPARE

POSITIONS = 96  # of the output at a time, at most
DEPTH_BYTES = 2304  # of one position's samples: 64 channels of 9 taps in float32
TASKS = 32  # of a backward pass, on any number of cores, so that results are the same
SHARED = 8  # tasks among which channels that share their offsets are divided at most: each has its own part of the gradient

ARRAYS = ("pixels", "offset", "modulation", "bias", "output", "blocks", "spans", "weights")
"""`pixels` are the input with its channels last; `modulation` and `bias` have the address 0 where there is none."""

MADE = ("d_output", "d_pixels", "d_offset", "d_modulation", "d_weights")
"""The gradients of offset and modulation have an array for each part, that of the weights one for each chunk of examples."""

SIZES = (
    "batch", "channels", "height", "width", "out_channels", "out_group", "offset_groups", "places", "out_width", "taps", "kernel_width",
    "stride_down", "stride_right", "dilation_down", "dilation_right", "top", "left",
    "num_blocks", "tile", "tiles", "tasks", "chunks", "weights_size", "out_step", "column_step", "memory_size",
)  # fmt: skip

PLACES = ("columns", "d_columns", "total", "zeros")
"""One thread's memory: a row for each position, of samples, of their gradients, and of outputs; and a pixel outside of the image."""

DeformCall = np.dtype([(name, np.int64) for name in (*ARRAYS, *MADE, *SIZES)] + [(f"at_{name}", np.int64) for name in PLACES], align=True)


class Block(NamedTuple):
    """Channels that are sampled at a time: of one group, with the same offsets.

    Attributes
    ----------
    channel, channels : int
        The first, and how many.
    offset_group, group : int
        To which they belong.
    is_first, is_last : int
        Whether no other block of the group comes before, or after.
    weights, step : int
        Where its weights begin, and the distance of their rows.
    """

    channel: int
    channels: int
    offset_group: int
    group: int
    is_first: int
    is_last: int
    weights: int
    step: int


FIELDS = len(Block._fields)


def whole(n: int, step: int) -> int:
    """The smallest multiple of `step` that holds n."""
    return -(-n // step) * step


def blocks_of(channels: int, groups: int, offset_groups: int, taps: int, itemsize: int) -> list[tuple[int, int]]:
    """First channel and number of channels of each block."""
    lanes, unit = HOST.register_bytes // itemsize, math.gcd(channels // groups, channels // offset_groups)
    most = max(DEPTH_BYTES // (itemsize * taps) // lanes * lanes, lanes)
    return [(first, min(most, start + unit - first)) for start in range(0, channels, unit) for first in range(start, start + unit, most)]


def spans_of(blocks: list[Block], offset_groups: int) -> Integers:
    """For each part of a backward pass: its first block, the one after its last, and its number among those with the same offsets."""
    spans, most = [], -(-SHARED // offset_groups)
    for group in range(offset_groups):
        own = [i for i, block in enumerate(blocks) if block.offset_group == group]
        bounds = np.linspace(own[0], own[-1] + 1, min(most, len(own)) + 1).astype(int)
        spans += [(int(first), int(end), part) for part, (first, end) in enumerate(itertools.pairwise(bounds))]
    return packed(spans, np.int64)


def forward_weights(weight: Array, given: list[tuple[int, int]], groups: int, offset_groups: int) -> tuple[list[Block], Array]:
    """A matrix for each block, with a row for each tap and channel, whose columns are the output channels of the group."""
    return _laid_out(weight, given, groups, offset_groups, rows_are_outputs=False)


def backward_weights(weight: Array, given: list[tuple[int, int]], groups: int, offset_groups: int) -> tuple[list[Block], Array]:
    """A matrix for each block, with a row for each output channel of the group, whose columns are the taps and channels."""
    return _laid_out(weight, given, groups, offset_groups, rows_are_outputs=True)


def weight_gradient(matrices: Array, blocks: list[Block], weight: Array) -> Array:
    """The weights out of the matrices of `backward_weights`."""
    out_group, taps = len(weight) // (blocks[-1].group + 1), math.prod(weight.shape[2:])
    made = np.empty((*weight.shape[:2], taps), matrices.dtype)
    for block in blocks:
        matrix = matrices[block.weights : block.weights + out_group * block.step].reshape(out_group, block.step)
        columns = matrix[:, : taps * block.channels].reshape(out_group, taps, block.channels)
        made[_rows(block, out_group), _own(block, weight)] = columns.swapaxes(1, 2)
    return made.reshape(weight.shape)


def _laid_out(
    weight: Array, given: list[tuple[int, int]], groups: int, offset_groups: int, *, rows_are_outputs: bool
) -> tuple[list[Block], Array]:
    """Rows of whole registers, which zeros fill, and behind each matrix what products write there."""
    lanes, taps = HOST.register_bytes // weight.itemsize, math.prod(weight.shape[2:])
    out_group, in_group = len(weight) // groups, weight.shape[1]
    channels = in_group * groups
    blocks, size = [], 0
    for first, count in given:
        rows, columns = (out_group, taps * count) if rows_are_outputs else (taps * count, out_group)
        group, place = divmod(first, in_group)
        is_first, is_last = int(place == 0), int(place + count == in_group)
        offset_group = first // (channels // offset_groups)
        blocks.append(Block(first, count, offset_group, group, is_first, is_last, size, whole(columns, lanes)))
        size += whole(rows, SPARE) * blocks[-1].step
    matrices, flat = np.zeros(size, weight.dtype), weight.reshape(*weight.shape[:2], taps)
    for block in blocks:
        own = flat[_rows(block, out_group), _own(block, weight)]  # output, channel, tap
        rows = own.swapaxes(1, 2).reshape(out_group, taps * block.channels)
        matrix = rows if rows_are_outputs else rows.T
        matrices[block.weights : block.weights + len(matrix) * block.step].reshape(len(matrix), block.step)[:, : matrix.shape[1]] = matrix
    return blocks, matrices


def _rows(block: Block, out_group: int) -> slice:
    return slice(block.group * out_group, (block.group + 1) * out_group)


def _own(block: Block, weight: Array) -> slice:
    first = block.channel - block.group * weight.shape[1]
    return slice(first, first + block.channels)


def tiles_of(places: int) -> dict[str, int]:
    """Positions at a time, as even as whole lines of products allow."""
    tile = whole(-(-places // -(-places // POSITIONS)), LINES) if places else LINES
    return {"tile": tile, "tiles": -(-places // tile)}


def memory_of(blocks: list[Block], tile: int, taps: int, out_group: int, itemsize: int) -> dict[str, int]:
    """Steps, places and size of one thread's memory."""
    lanes, most = HOST.register_bytes // itemsize, max(block.channels for block in blocks)
    steps = {"column_step": whole(taps * most, lanes) + lanes, "out_step": whole(out_group, lanes)}
    lines = whole(tile, SPARE)
    rows = dict.fromkeys(("columns", "d_columns"), lines * steps["column_step"])
    sizes = {**rows, "total": lines * steps["out_step"], "zeros": whole(most, lanes)}
    ends = np.cumsum([sizes[name] for name in PLACES])
    return {**steps, **{f"at_{n}": int(end) - sizes[n] for n, end in zip(PLACES, ends, strict=True)}, "memory_size": int(ends[-1])}
