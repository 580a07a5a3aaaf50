"""Depthwise convolution with lanes over channels: images are read and written where they lie, and taps on padding are left out."""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn._core import Array, Integers
from refattn_numba.cpu.conv.windows import ROWS, RUN, channel_window, line_products, pixel_window, row_products
from refattn_numba.cpu.jit import compiled, kernel
from refattn_numba.cpu.simd import between, filled, integers_at, lanes_of, load, next_of, pointer_to
from refattn_numba.cpu.sizes import larger, smaller

PixelsCall = np.dtype(
    [(name, np.int64) for name in ("x", "y", "weight", "bias", "ends0", "ends1", "taps0", "taps1", "phases", "groups")]
    + [(name, np.int64) for name in ("n_phases", "channels", "batch", "tasks", "taps", "memory_size")]
    + [(f"{name}{axis}", np.int64) for name in ("in", "out", "kernel", "step_in", "step_out") for axis in range(3)],
    align=True,
)
"""What the kernels are told: sizes, and the tables of `depthwise_axes.Pixels`. Weights are C-contiguous (tap, channel)."""

ROOM = 2 * RUN  # numbers of 32 bits for each run


@kernel
def pixels(calls: Any, options: Any, shared: Array, counters: Integers) -> None:
    """Fill y from x; a task is one row of one image."""
    call = calls[0]
    runs = integers_at(shared.ctypes.data + next_of(counters, 1) * call.memory_size * shared.itemsize)
    like = pointer_to(call.x, shared)
    while True:
        task = next_of(counters, 0)
        if task >= call.tasks:
            return
        image = pointer_to(call.x, like) + task // (call.out0 * call.out1) * (call.in0 * call.in1 * call.in2 * call.channels)
        row = pointer_to(call.y, like) + task * call.out2 * call.channels
        z, y = task // call.out1 % call.out0, task % call.out1
        for r in range(call.n_phases):
            phase, out = integers_at(call.phases) + r * 5, row + r * call.channels
            count = find_runs(call, z, y, phase[1], phase, runs)
            fill_inside(call, image, runs, count, phase[1], phase[2], out)
            for v in range(phase[0]):
                if v < phase[1] or v >= phase[2]:
                    count = find_runs(call, z, y, v, phase, runs)
                    fill_pixel(call, image, runs, count, v, out)


@compiled
def find_runs(call: Any, z: int, y: int, v: int, phase: Any, runs: Any) -> int:
    """The runs of pixel v of a row, without taps on padding, and how many there are."""
    count, groups, step = 0, integers_at(call.groups), call.step_in2
    ends0, ends1, taps0, taps1 = integers_at(call.ends0), integers_at(call.ends1), integers_at(call.taps0), integers_at(call.taps1)
    for a in range(ends0[z % call.step_out0], ends0[z % call.step_out0 + 1]):
        at0 = taps0[2 * a + 1] + z // call.step_out0 * call.step_in0
        if at0 < 0 or at0 >= call.in0:
            continue
        for b in range(ends1[y % call.step_out1], ends1[y % call.step_out1 + 1]):
            at1 = taps1[2 * b + 1] + y // call.step_out1 * call.step_in1
            if at1 < 0 or at1 >= call.in1:
                continue
            for g in range(phase[3], phase[4]):
                place, taps = groups[3 * g], groups[3 * g + 1]
                at2 = place + v * step
                first = larger(0, (step - 1 - at2) // step)
                end = smaller(taps, (call.in2 - at2 + step - 1) // step)
                if first < end:
                    runs[RUN * count] = ((at0 * call.in1 + at1) * call.in2 + place + first * step) * call.channels
                    runs[RUN * count + 1] = end - first
                    runs[RUN * count + 2] = (taps0[2 * a] * call.kernel1 + taps1[2 * b]) * call.kernel2 + groups[3 * g + 2] + first
                    count += 1
    return count


@compiled
def start_of(call: Any, like: Any, channel: int) -> Any:
    """The bias of a register of channels."""
    return load(pointer_to(call.bias, like), channel) if call.bias else filled(like, 0.0)


@compiled
def fill_inside(call: Any, image: Any, runs: Any, count: int, first: int, end: int, out: Any) -> None:
    """Pixels that have all taps of their row; the last ones are computed twice, rather than in smaller blocks."""
    lanes, channels, weights = lanes_of(out), call.channels, pointer_to(call.weight, out)
    step, out_step = call.step_in2 * channels, call.step_out2 * channels
    if end - first < ROWS:
        for v in range(first, end):
            fill_pixel(call, image, runs, count, v, out)
        return
    for pixel in range(first, end, ROWS):
        v = smaller(pixel, end - ROWS)
        for channel in range(0, channels, lanes):
            c = smaller(channel, channels - lanes)
            source, to = image + (v * step + c), out + (v * out_step + c)
            channel_window(source, step, runs, count, weights + c, channels, start_of(call, out, c), to, out_step)


@compiled
def fill_pixel(call: Any, image: Any, runs: Any, count: int, v: int, out: Any) -> None:
    """All channels of one pixel."""
    lanes, channels, weights = lanes_of(out), call.channels, pointer_to(call.weight, out)
    step, to = call.channels, out + v * call.step_out2 * channels
    source = image + v * call.step_in2 * channels
    for channel in range(0, channels, lanes):
        c = smaller(channel, channels - lanes)
        pixel_window(source + c, call.step_in2 * step, runs, count, weights + c, channels, start_of(call, out, c), to + c, 0)


@kernel
def pixel_gradients(calls: Any, options: Any, shared: Array, counters: Integers) -> None:
    """Add to `weight` (task, tap, channel); a task is some rows of the images, and y is the cotangent."""
    call = calls[0]
    runs = integers_at(shared.ctypes.data + next_of(counters, 1) * call.memory_size * shared.itemsize)
    like = pointer_to(call.x, shared)
    phase, rows = integers_at(call.phases), call.batch * call.out0 * call.out1
    while True:
        task = next_of(counters, 0)
        if task >= call.tasks:
            return
        sums = pointer_to(call.weight, like) + task * call.taps * call.channels
        for row in range(rows * task // call.tasks, rows * (task + 1) // call.tasks):
            image = pointer_to(call.x, like) + row // (call.out0 * call.out1) * (call.in0 * call.in1 * call.in2 * call.channels)
            dy = pointer_to(call.y, like) + row * call.out2 * call.channels
            z, y = row // call.out1 % call.out0, row % call.out1
            count = find_runs(call, z, y, phase[1], phase, runs)
            add_inside(call, image, runs, count, phase[1], phase[2], dy, sums)
            for v in range(phase[0]):
                if v < phase[1] or v >= phase[2]:
                    count = find_runs(call, z, y, v, phase, runs)
                    add_inside(call, image, runs, count, v, v + 1, dy, sums)


@compiled
def add_inside(call: Any, image: Any, runs: Any, count: int, first: int, end: int, dy: Any, sums: Any) -> None:
    """The products of pixels that have the same taps."""
    lanes, channels, step, nothing = lanes_of(dy), call.channels, call.step_in2 * call.channels, filled(dy, 0.0)
    v = first
    while v < end:
        rows = ROWS if v + ROWS <= end else 1
        for channel in range(0, channels, lanes):
            c = smaller(channel, channels - lanes)
            counted = between(nothing, channel - c, lanes - 1)
            source, given = image + (v * step + c), dy + (v * channels + c)
            if rows == 1:
                line_products(source, step, runs, count, given, channels, counted, sums + c, channels)
            else:
                row_products(source, step, runs, count, given, channels, counted, sums + c, channels)
        v += rows
