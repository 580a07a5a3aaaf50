"""Deformable convolution: some positions at a time are sampled, channels side by side, and multiplied with the weights.

Of a position that is no number every place is outside, and every weight NaN.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn._core import Array, Integers
from refattn_numba.cpu.deformable_call import FIELDS, Block
from refattn_numba.cpu.jit import compiled, kernel
from refattn_numba.cpu.products import add_product, product
from refattn_numba.cpu.simd import filled, integers_at, lanes_of, load, multiply_add, next_of, pointer_to, store, total_of
from refattn_numba.cpu.sizes import smaller
from refattn_numba.cpu.tiles import fill

ONE: Any = np.int64(1)


class Spot(NamedTuple):
    """A row and a column, how far beyond them a tap stands, and what it is multiplied by."""

    row: int
    column: int
    down: float
    right: float
    factor: float


@kernel
def forward(calls: Any, options: Any, shared: Array, counters: Integers) -> None:
    """Fill `output`; a task is some positions of one example."""
    call = calls[0]
    memory = pointer_to(shared.ctypes.data, shared) + next_of(counters, 1) * call.memory_size
    columns, total = memory + call.at_columns, memory + call.at_total
    fill(memory + call.at_zeros, call.memory_size - call.at_zeros, 0.0)
    while True:
        task = next_of(counters, 0)
        if task >= call.tasks:
            return
        example, first = task // call.tiles, task % call.tiles * call.tile
        count = smaller(call.tile, call.places - first)
        for i in range(call.num_blocks):
            block = block_at(call, i)
            gather(call, memory, block, example, first, count, columns)
            weights, depth = pointer_to(call.weights, memory) + block.weights, call.taps * block.channels
            if block.is_first:
                product(weights, block.step, columns, call.column_step, ONE, count, depth, total, call.out_step, call.out_group, total)
            else:
                add_product(weights, block.step, columns, call.column_step, ONE, count, depth, total, call.out_step, call.out_group, total)
            if block.is_last:
                write_group(call, total, block.group, example, first, count)


@kernel
def backward(calls: Any, options: Any, shared: Array, counters: Integers) -> None:
    """Fill the gradients; a task is some channels of some examples, to whose pixels and weights no other adds."""
    call = calls[0]
    memory = pointer_to(shared.ctypes.data, shared) + next_of(counters, 1) * call.memory_size
    columns, d_columns = memory + call.at_columns, memory + call.at_d_columns
    fill(memory + call.at_zeros, call.memory_size - call.at_zeros, 0.0)
    spans = integers_at(call.spans)
    while True:
        task = next_of(counters, 0)
        if task >= call.tasks:
            return
        span, chunk = task // call.chunks * 3, task % call.chunks
        for i in range(spans[span], spans[span + 1]):
            block, is_new = block_at(call, i), i == spans[span]
            matrix, depth = block.weights, call.taps * block.channels
            weights, d_weights = pointer_to(call.weights, memory), pointer_to(call.d_weights, memory) + chunk * call.weights_size
            for example in range(chunk * call.batch // call.chunks, (chunk + 1) * call.batch // call.chunks):
                given = pointer_to(call.d_output, memory) + (example * call.out_channels + block.group * call.out_group) * call.places
                for first in range(0, call.places, call.tile):
                    count, dy = smaller(call.tile, call.places - first), given + first
                    gather(call, memory, block, example, first, count, columns)
                    add_product(columns, call.column_step, dy, call.places, ONE, call.out_group, count,
                                d_weights + matrix, block.step, depth, columns)  # fmt: skip
                    product(weights + matrix, block.step, dy, ONE, call.places, count, call.out_group,
                            d_columns, call.column_step, depth, columns)  # fmt: skip
                    scatter(call, memory, block, example, first, count, d_columns, spans[span + 2], is_new)


@compiled
def block_at(call: Any, i: int) -> Block:
    """The block of this number."""
    b = integers_at(call.blocks + i * FIELDS * 8)
    return Block(b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7])


@compiled
def before(at: Any, size: int) -> tuple[Any, Any]:
    """The whole number before a position, and how far it is beyond; -2 for what is no number."""
    near = -2.0 if at < -2.0 else (size * 1.0 if at > size else at)
    if near != near:  # noqa: PLR0124
        return np.int64(-2), near
    whole = np.floor(near)
    return np.int64(whole), near - whole


@compiled
def spot_of(call: Any, memory: Any, offset_group: int, example: int, place: int, tap: int) -> Spot:
    """Where a tap stands: in float64, so that a small offset counts far from the origin too."""
    group = (example * call.offset_groups + offset_group) * call.taps + tap
    down, right = place // call.out_width, tap // call.kernel_width
    moves = pointer_to(call.offset, memory) + 2 * group * call.places
    row = down * call.stride_down - call.top + right * call.dilation_down
    column = (place - down * call.out_width) * call.stride_right - call.left + (tap - right * call.kernel_width) * call.dilation_right
    top, below = before(np.float64(row) + np.float64(moves[place]), call.height)
    left, beside = before(np.float64(column) + np.float64(moves[call.places + place]), call.width)
    factor = 1.0
    if call.modulation:
        factor = np.float64(pointer_to(call.modulation, memory)[group * call.places + place])
    return Spot(top, left, below, beside, factor)


@compiled
def pixel(call: Any, pixels: Any, row: int, column: int, outside: Any) -> Any:
    """The channels of a pixel; zeros outside of the image."""
    if row < 0 or row >= call.height or column < 0 or column >= call.width:
        return outside
    return pixels + (row * call.width + column) * call.channels


@compiled
def gather(call: Any, memory: Any, block: Block, example: int, first: int, count: int, columns: Any) -> None:
    """For each position and tap, the channels of the block between four pixels; a row for each position.

    What is written beyond the channels of a tap, the next one overwrites.
    """
    pixels = pointer_to(call.pixels, memory) + (example * call.height * call.width * call.channels + block.channel)
    outside, lanes = memory + call.at_zeros, lanes_of(memory)
    for i in range(count):
        for tap in range(call.taps):
            at = spot_of(call, memory, block.offset_group, example, first + i, tap)
            up, back = 1.0 - at.down, 1.0 - at.right
            w00, w01, w10, w11 = up * back, up * at.right, at.down * back, at.down * at.right
            p00 = outside if w00 == 0 else pixel(call, pixels, at.row, at.column, outside)
            p01 = outside if w01 == 0 else pixel(call, pixels, at.row, at.column + 1, outside)
            p10 = outside if w10 == 0 else pixel(call, pixels, at.row + 1, at.column, outside)
            p11 = outside if w11 == 0 else pixel(call, pixels, at.row + 1, at.column + 1, outside)
            v00, v01, v10, v11 = filled(memory, w00), filled(memory, w01), filled(memory, w10), filled(memory, w11)
            factor, line = filled(memory, at.factor), columns + (i * call.column_step + tap * block.channels)
            for c in range(0, block.channels, lanes):
                upper = multiply_add(load(p01, c), v01, load(p00, c) * v00)
                lower = multiply_add(load(p11, c), v11, load(p10, c) * v10)
                store(line, c, (upper + lower) * factor)


@compiled
def write_group(call: Any, total: Any, group: int, example: int, first: int, count: int) -> None:
    """Outputs of one group of channels, which lie a position after another, to their maps."""
    channel = group * call.out_group
    out = pointer_to(call.output, total) + ((example * call.out_channels + channel) * call.places + first)
    bias = pointer_to(call.bias, total)
    for o in range(call.out_group):
        more = np.float64(bias[channel + o]) if call.bias else 0.0
        for i in range(count):
            out[o * call.places + i] = total[i * call.out_step + o] + more


@compiled
def add_to(call: Any, pixels: Any, row: int, column: int, weight: float, factor: float, line: Any, channels: int) -> None:
    """The gradient of a sample, times weight and factor, to a pixel: to its own channels and no others."""
    if weight == 0 or row < 0 or row >= call.height or column < 0 or column >= call.width:
        return
    target, lanes = pixels + (row * call.width + column) * call.channels, lanes_of(pixels)
    scale = weight * factor
    by, whole = filled(pixels, scale), channels // lanes * lanes
    for c in range(0, whole, lanes):
        store(target, c, multiply_add(load(line, c), by, load(target, c)))
    for c in range(whole, channels):
        target[c] += line[c] * scale


@compiled
def along(p: Any, line: Any, channels: int) -> float:
    """The inner product of the channels of a pixel with a gradient."""
    lanes, total = lanes_of(p), filled(p, 0.0)
    whole, rest = channels // lanes * lanes, 0.0
    for c in range(0, whole, lanes):
        total = multiply_add(load(p, c), load(line, c), total)
    for c in range(whole, channels):
        rest += p[c] * line[c]
    return np.float64(total_of(total)) + rest


@compiled
def times(weight: float, x: float) -> float:
    """What has weight 0 counts nothing."""
    return 0.0 if weight == 0 else weight * x


@compiled
def scatter(call: Any, memory: Any, block: Block, example: int, first: int, count: int, d_columns: Any, part: int, is_new: bool) -> None:
    """From the gradients of samples to those of pixels, offsets and modulation."""
    image = example * call.height * call.width * call.channels + block.channel
    pixels, d_pixels = pointer_to(call.pixels, memory) + image, pointer_to(call.d_pixels, memory) + image
    outside, group = memory + call.at_zeros, ((part * call.batch + example) * call.offset_groups + block.offset_group) * call.taps
    for i in range(count):
        for tap in range(call.taps):
            at = spot_of(call, memory, block.offset_group, example, first + i, tap)
            line = d_columns + (i * call.column_step + tap * block.channels)
            d00 = along(pixel(call, pixels, at.row, at.column, outside), line, block.channels)
            d01 = along(pixel(call, pixels, at.row, at.column + 1, outside), line, block.channels)
            d10 = along(pixel(call, pixels, at.row + 1, at.column, outside), line, block.channels)
            d11 = along(pixel(call, pixels, at.row + 1, at.column + 1, outside), line, block.channels)
            up, back, by = 1.0 - at.down, 1.0 - at.right, at.factor
            w00, w01, w10, w11 = up * back, up * at.right, at.down * back, at.down * at.right
            add_to(call, d_pixels, at.row, at.column, w00, by, line, block.channels)
            add_to(call, d_pixels, at.row, at.column + 1, w01, by, line, block.channels)
            add_to(call, d_pixels, at.row + 1, at.column, w10, by, line, block.channels)
            add_to(call, d_pixels, at.row + 1, at.column + 1, w11, by, line, block.channels)
            place = (group + tap) * call.places + first + i
            moves = pointer_to(call.d_offset, memory) + ((group + tap) * call.places + place)
            set_or_add(moves, by * (times(back, d10 - d00) + times(at.right, d11 - d01)), is_new)
            set_or_add(moves + call.places, by * (times(up, d01 - d00) + times(at.down, d11 - d10)), is_new)
            if call.modulation:
                factor = times(w00, d00) + times(w01, d01) + times(w10, d10) + times(w11, d11)
                set_or_add(pointer_to(call.d_modulation, memory) + place, factor, is_new)


@compiled
def set_or_add(p: Any, number: float, is_new: bool) -> None:
    """The first number of a sum, or another."""
    p[0] = number if is_new else p[0] + number
