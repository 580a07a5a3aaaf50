"""Depthwise convolution with lanes over channels: one register of channels of some rows is copied with its padding, as planes are.

Copies stay near while they are used, and their pixels lie next to one another, whatever the number of channels. Small images that lie
channels first are transposed on their way to a copy and back.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn._core import Array, Integers
from refattn_numba.cpu.conv.depthwise_axes import COUNTS, PHASE
from refattn_numba.cpu.conv.depthwise_there import fill_there
from refattn_numba.cpu.conv.layouts import turn_tile
from refattn_numba.cpu.conv.windows import (
    PAIR,
    ROWS,
    RUN,
    channel_block,
    channel_products,
    channel_window,
    pixel_products,
    pixel_window,
)
from refattn_numba.cpu.jit import compiled, kernel
from refattn_numba.cpu.simd import filled, integers_at, lanes_of, load, next_of, pointer_to, store
from refattn_numba.cpu.sizes import larger, smaller
from refattn_numba.cpu.tiles import fill

LONG = 4  # pixels of `channel_window`

PixelsCall = np.dtype(
    [(name, np.int64) for name in ("x", "y", "weight", "bias", "runs", "phases", "n_phases", "channels", "batch", "tasks", "memory_size")]
    + [(name, np.int64) for name in ("taps", "plane", "band", "bands", "registers", "parts", "turned", "blocks", "together", "patch")]
    + [(f"{name}{axis}", np.int64) for name in ("in", "out", "grid", "step_in", "step_out", "lowest") for axis in range(3)],
    align=True,
)
"""What the kernels are told.

band, bands : rows of outputs of each phase that are computed from one copy, and how many such bands an image has.
registers, blocks : registers of channels of a task, and the tasks of a band.
together, parts : bands of a task, and in how many parts the sums over all bands are made.
turned : whether x and y lie channels first.
patch : where x is read where it lies (`depthwise_there`), pixels in a row of a patch; 0 elsewhere.
"""


@kernel
def pixels(calls: Any, options: Any, shared: Array, counters: Integers) -> None:
    """Fill y from x; a task is some registers of channels of some bands. In memory are a copy, the weights, and one more image."""
    call = calls[0]
    memory = pointer_to(shared.ctypes.data, shared) + next_of(counters, 1) * call.memory_size
    lanes = lanes_of(memory)
    fill(memory, call.memory_size, 0.0)
    weights = memory + call.plane
    more = weights + (call.channels + lanes - 1) // lanes * lanes * call.taps
    for channel in range(0, call.channels, lanes):
        c = smaller(channel, call.channels - lanes)
        turn_tile(pointer_to(call.weight, memory) + c * call.taps, call.taps, lanes, call.taps, weights + channel * call.taps, lanes)
    while True:
        task = next_of(counters, 0)
        if task >= call.tasks:
            return
        first = task // call.blocks * call.together
        for unit in range(first, smaller(first + call.together, call.batch * call.bands)):
            if call.patch:
                fill_there(call, unit, memory, weights)
                continue
            for register in range(task % call.blocks * call.registers, (task % call.blocks + 1) * call.registers):
                channel = register * lanes
                if channel < call.channels:
                    c = smaller(channel, call.channels - lanes)
                    fill_band(call, unit, c, memory, weights + channel * call.taps, more)


@compiled
def place_of(call: Any, address: int, like: Any, image: int, size: int, c: int) -> Any:
    """Where the numbers of a channel of an image begin."""
    return pointer_to(address, like) + image * size * call.channels + c * (size if call.turned else 1)


@compiled
def fill_band(call: Any, unit: int, c: int, memory: Any, weights: Any, more: Any) -> None:
    """One register of channels of one band."""
    lanes, image, first = lanes_of(memory), unit // call.bands, unit % call.bands * call.band
    load_band(call, image, c, first, memory, more)
    size = call.out0 * call.out1 * call.out2
    to, step = place_of(call, call.y, memory, image, size, c), call.channels
    out = more if call.turned else to
    step = lanes if call.turned else call.channels
    start = load(pointer_to(call.bias, memory), c) if call.bias else filled(memory, 0.0)
    for r in range(call.n_phases):
        phase = integers_at(call.phases) + r * PHASE
        rows = smaller(call.band, phase[3] - first)
        runs, count = integers_at(call.runs) + phase[6] * RUN, phase[7] - phase[6]
        for z in range(phase[1]):
            source = memory + z * call.grid1 * call.grid2 * lanes
            at = ((phase[0] + call.step_out0 * z) * call.out1 + phase[2] + call.step_out1 * first) * call.out2 + phase[4]
            down, right = call.step_out1 * call.out2 * step, call.step_out2 * step
            if rows >= ROWS:
                fill_rows(source, call.grid2, runs, phase + COUNTS, weights, start, out + at * step, down, right, rows, phase[5])
            else:
                fill_few(source, call.grid2, runs, count, weights, start, out + at * step, down, right, rows, phase[5])
    if call.turned:
        turn_tile(more, lanes, size, lanes, to, size)


@compiled
def load_band(call: Any, image: int, c: int, first: int, memory: Any, more: Any) -> None:
    """The rows that the outputs from row `first` on read, in their padding, of which columns and planes are there already."""
    lanes, size = lanes_of(memory), call.in0 * call.in1 * call.in2
    source, step = place_of(call, call.x, memory, image, size, c), call.channels
    if call.turned:
        turn_tile(source, size, lanes, size, more, lanes)
        source, step = more, lanes
    line = memory
    for r0 in range(call.step_in0):
        for r1 in range(call.step_in1):
            for r2 in range(call.step_in2):
                for z in range(call.grid0):
                    i = call.lowest0 + z * call.step_in0 + r0
                    if 0 <= i < call.in0:
                        at = call.lowest1 + first * call.step_in1 + r1
                        load_rows(call, source + i * call.in1 * call.in2 * step, step, at, call.lowest2 + r2, line)
                    line = line + call.grid1 * call.grid2 * lanes


@compiled
def load_rows(call: Any, source: Any, step: int, first: int, offset: int, out: Any) -> None:
    """Every `step_in1`-th row from the first, and its every `step_in2`-th pixel; zeros where there is no such row."""
    lanes, every, zero = lanes_of(out), call.step_in2, filled(out, 0.0)
    begin = larger(0, (every - 1 - offset) // every)
    end = smaller(call.grid2, (call.in2 - offset + every - 1) // every)
    for y in range(call.grid1):
        j, line = first + y * call.step_in1, out + y * call.grid2 * lanes
        if 0 <= j < call.in1:
            row, by = source + (j * call.in2 + offset) * step, every * step
            for k in range(begin, end):
                store(line, k * lanes, load(row, k * by))
        else:
            for k in range(begin, end):
                store(line, k * lanes, zero)


@compiled
def fill_rows(
    source: Any, width: int, runs: Any, counts: Any, weights: Any, start: Any, out: Any, down: int, right: int, rows: int, columns: int
) -> None:
    """Blocks of rows and pairs of pixels; the last ones are computed twice, rather than in smaller blocks."""
    lanes = lanes_of(out)
    step = width * lanes
    for row in range(0, rows, ROWS):
        h = smaller(row, rows - ROWS)
        for column in range(0, columns - 1, PAIR):
            at = smaller(column, columns - PAIR)
            place = source + (h * step + at * lanes)
            channel_block(place, step, lanes, runs, counts, weights, start, out + (h * down + at * right), down, right)
    if columns % PAIR:
        place, to = source + (columns - 1) * lanes, out + (columns - 1) * right
        for row in range(0, rows, PAIR * ROWS):
            h = smaller(row, rows - ROWS)
            gap = larger(0, smaller(ROWS, rows - ROWS - h))
            channel_block(place + h * step, step, gap * step, runs, counts, weights, start, to + h * down, down, gap * down)


@compiled
def fill_few(
    source: Any, width: int, runs: Any, count: int, weights: Any, start: Any, out: Any, down: int, right: int, rows: int, columns: int
) -> None:
    """Fewer rows than a block has."""
    lanes = lanes_of(out)
    step = width * lanes
    for h in range(rows):
        for column in range(0, columns, LONG):
            if columns >= LONG:
                at = smaller(column, columns - LONG)
                channel_window(source + (h * step + at * lanes), step, runs, count, weights, start, out + (h * down + at * right), right)
            else:
                for at in range(column, columns):
                    pixel_window(source + (h * step + at * lanes), step, runs, count, weights, start, out + (h * down + at * right), right)


@kernel
def pixel_gradients(calls: Any, options: Any, shared: Array, counters: Integers) -> None:
    """Fill `weight` (part, channel, tap); a task is some registers of channels of some bands, and y is the cotangent."""
    call = calls[0]
    memory = pointer_to(shared.ctypes.data, shared) + next_of(counters, 1) * call.memory_size
    lanes = lanes_of(memory)
    fill(memory, call.memory_size, 0.0)
    sums = memory + call.plane
    more, units = sums + call.registers * lanes * call.taps, call.batch * call.bands
    while True:
        task = next_of(counters, 0)
        if task >= call.tasks:
            return
        block, part = task % call.blocks, task // call.blocks
        fill(sums, call.registers * lanes * call.taps, 0.0)
        begin, end = block * call.registers * lanes, smaller((block + 1) * call.registers * lanes, call.channels)
        for unit in range(units * part // call.parts, units * (part + 1) // call.parts):
            for channel in range(begin, end, lanes):
                c = smaller(channel, call.channels - lanes)
                add_band(call, unit, c, memory, sums + (channel - begin) * call.taps, more)
        for channel in range(begin, end, lanes):
            c = smaller(channel, call.channels - lanes)
            made = pointer_to(call.weight, memory) + (part * call.channels + channel) * call.taps
            turn_tile(sums + ((channel - begin) * call.taps + channel - c), lanes, call.taps, lanes - (channel - c), made, call.taps)


@compiled
def add_band(call: Any, unit: int, c: int, memory: Any, sums: Any, more: Any) -> None:
    """The products of one register of channels of one band."""
    lanes, image, first = lanes_of(memory), unit // call.bands, unit % call.bands * call.band
    load_band(call, image, c, first, memory, more)
    size = call.out0 * call.out1 * call.out2
    given, step = place_of(call, call.y, memory, image, size, c), call.channels
    if call.turned:
        turn_tile(given, size, lanes, size, more, lanes)
        given, step = more, lanes
    rows, down, width = smaller(call.band, call.out1 - first), call.out2 * step, call.grid2 * lanes
    runs, counts, nothing = integers_at(call.runs), integers_at(call.phases) + COUNTS, filled(memory, 0.0) < filled(memory, 0.0)
    for z in range(call.out0):
        source, dy = memory + z * call.grid1 * width, given + (z * call.out1 + first) * down
        for row in range(0, rows - ROWS + 1, ROWS):
            for column in range(call.out2):
                place = source + (row * width + column * lanes)
                channel_products(place, width, runs, counts, dy + (row * down + column * step), down, nothing, sums)
        for row in range(rows // ROWS * ROWS, rows):
            for column in range(call.out2):
                place = source + (row * width + column * lanes)
                pixel_products(place, width, runs, counts, dy + (row * down + column * step), down, nothing, sums)
