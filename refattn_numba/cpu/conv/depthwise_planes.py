"""Depthwise convolution with lanes along the last axis: each plane is copied once, with its padding, to memory that stays near.

Where a stride leaves inputs out, the copy puts those side by side that one tap reads: all loads are whole registers. Rows shorter than
a register are computed as one long row of the copy, with what lies between them, which is left behind when they are stored.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn._core import Array, Integers
from refattn_numba.cpu.conv.depthwise_axes import COUNTS, PHASE
from refattn_numba.cpu.conv.windows import PAIR, ROWS, RUN, line_products, line_window, plane_block, row_products, short_window
from refattn_numba.cpu.jit import compiled, kernel
from refattn_numba.cpu.simd import between, filled, integers_at, lanes_of, load, next_of, pointer_to, prefetch, select, store, total_of
from refattn_numba.cpu.sizes import larger, smaller
from refattn_numba.cpu.tiles import fill

LONG = 4  # registers of `line_window`
LINE = 16  # numbers of float32 in a cache line

PlanesCall = np.dtype(
    [(name, np.int64) for name in ("x", "y", "weight", "bias", "runs", "phases", "n_phases")]
    + [(name, np.int64) for name in ("groups", "tasks", "count", "together", "memory_size")]
    + [(name, np.int64) for name in ("inputs", "outputs", "taps", "plane", "room", "batch", "parts")]
    + [(f"{name}{axis}", np.int64) for name in ("in", "out", "grid", "step_in", "step_out", "lowest") for axis in range(3)],
    align=True,
)
"""What the kernels are told. `inputs` and `outputs` are planes of one group; `taps` are numbers of an output's weight."""


@kernel
def planes(calls: Any, options: Any, shared: Array, counters: Integers) -> None:
    """Fill y from x; a task is some groups of examples, one after another."""
    call = calls[0]
    memory = pointer_to(shared.ctypes.data, shared) + next_of(counters, 1) * call.memory_size
    fill(memory, call.memory_size, 0.0)
    size_in, size_out = call.in0 * call.in1 * call.in2, call.out0 * call.out1 * call.out2
    while True:
        task = next_of(counters, 0)
        if task >= call.tasks:
            return
        for group in range(task * call.together, smaller((task + 1) * call.together, call.count)):
            for j in range(call.inputs):
                load_plane(call, pointer_to(call.x, memory) + (group * call.inputs + j) * size_in, memory + j * call.plane)
            for j in range(call.outputs):
                channel = group % call.groups * call.outputs + j
                start = filled(memory, pointer_to(call.bias, memory)[channel] if call.bias else 0.0)
                weight = pointer_to(call.weight, memory) + channel * call.taps
                out = pointer_to(call.y, memory) + (group * call.outputs + j) * size_out
                for phase in range(call.n_phases):
                    fill_phase(call, memory, weight, start, out, integers_at(call.phases) + phase * PHASE)


@compiled
def copy_row(source: Any, count: int, left: int, out: Any) -> None:
    """By whole registers, of which the last two may overlap; a short one ends with zeros, where `left` numbers can be read."""
    lanes = lanes_of(out)
    if count < lanes:
        if left >= lanes:
            store(out, 0, select(between(load(source, 0), 0, count - 1), load(source, 0), filled(out, 0.0)))
            return
        for i in range(count):
            out[i] = source[i]
        return
    for i in range(0, count, lanes):
        at = smaller(i, count - lanes)
        store(out, at, load(source, at))


@compiled
def load_plane(call: Any, source: Any, out: Any) -> None:
    """The part of a plane that is read, in its padding, which is there already."""
    line = out
    for r0 in range(call.step_in0):
        for r1 in range(call.step_in1):
            for z in range(call.grid0):
                i = call.lowest0 + z * call.step_in0 + r0
                if 0 <= i < call.in0:
                    load_rows(call, source, i, r1, line + z * call.grid1 * call.grid2)
            line = line + call.grid0 * call.grid1 * call.grid2 * call.step_in2


@compiled
def load_rows(call: Any, source: Any, i: int, remainder: int, out: Any) -> None:
    """Every `step_in1`-th row of position i of the first axis."""
    step, size = call.step_in2, call.grid0 * call.grid1 * call.grid2
    first, end = larger(0, call.lowest2), smaller(call.in2, call.lowest2 + call.grid2)
    packed = call.step_in0 * call.step_in1 == 1
    for y in range(call.grid1):
        j = call.lowest1 + y * call.step_in1 + remainder
        if 0 <= j < call.in1:
            row, line = source + (i * call.in1 + j) * call.in2, out + y * call.grid2
            if step == 1:
                left = ((call.in0 - i) * call.in1 - j) * call.in2 - first if packed else 0
                copy_row(row + first, larger(end - first, 0), left, line + (first - call.lowest2))
                for ahead in range(0, call.in2, LINE):
                    prefetch(row + call.in0 * call.in1 * call.in2, ahead)
            else:
                for phase in range(step):
                    take_every(row, call.in2, step, phase + call.lowest2, call.grid2, line + phase * size)


@compiled
def take_every(row: Any, size: int, step: int, offset: int, count: int, out: Any) -> None:
    """``out[i] = row[i * step + offset]``, where that exists."""
    first = larger(0, (step - 1 - offset) // step)
    end = smaller(count, (size - offset + step - 1) // step)
    if step == 2:
        for i in range(first, end):
            out[i] = row[2 * i + offset]
    else:
        for i in range(first, end):
            out[i] = row[i * step + offset]


@compiled
def fill_phase(call: Any, memory: Any, weight: Any, start: Any, out: Any, phase: Any) -> None:
    """The outputs of one phase of one plane."""
    lanes, rows, columns = lanes_of(memory), phase[3], phase[5]
    runs, count, counts = integers_at(call.runs) + phase[6] * RUN, phase[7] - phase[6], phase + COUNTS
    for z in range(phase[1]):
        source = memory + z * call.grid1 * call.grid2
        to = out + (((phase[0] + call.step_out0 * z) * call.out1 + phase[2]) * call.out2 + phase[4])
        if rows >= ROWS and call.step_out2 == 1 and columns >= lanes:
            fill_blocks(source, call.grid2, runs, counts, weight, start, to, call.step_out1 * call.out2, rows, columns)
        elif call.step_out2 == 1 and columns >= lanes:
            fill_rows(source, call.grid2, runs, count, weight, start, to, call.step_out1 * call.out2, rows, columns)
        else:
            flat = memory + call.inputs * call.plane
            if rows >= ROWS and lanes // 2 < columns < lanes:
                fill_column(source, call.grid2, runs, counts, weight, start, flat, lanes, rows)
                scatter_rows(call, flat, lanes, rows, columns, to)
            else:
                fill_line(source, call.grid2, runs, count, weight, start, flat, (rows - 1) * call.grid2 + columns)
                scatter_rows(call, flat, call.grid2, rows, columns, to)


@compiled
def scatter_rows(call: Any, source: Any, step: int, rows: int, columns: int, out: Any) -> None:
    """Store the rows of a phase; others may lie between them."""
    for h in range(rows):
        to_come = rows - h if call.step_out1 == 1 else 0
        scatter(source + h * step, columns, to_come, out + h * call.step_out1 * call.out2, call.step_out2)


@compiled
def scatter(source: Any, count: int, rows: int, out: Any, step: int) -> None:
    """A row with gaps. Where `rows` of this size are still to come, what is written behind it is overwritten by them."""
    if step == 1 and count * (rows - 1) >= lanes_of(out) > count:
        store(out, 0, load(source, 0))
    elif step == 1:
        for i in range(count):
            out[i] = source[i]
    elif step == 2:
        for i in range(count):
            out[2 * i] = source[i]
    else:
        for i in range(count):
            out[step * i] = source[i]


@compiled
def fill_blocks(
    source: Any, step: int, runs: Any, counts: Any, weight: Any, start: Any, out: Any, out_step: int, rows: int, columns: int
) -> None:
    """Blocks of rows and pairs of registers; the last ones of a plane are computed twice, rather than in smaller blocks."""
    lanes = lanes_of(out)
    pairs = (columns + lanes - 1) // lanes // PAIR
    for row in range(0, rows, ROWS):
        h = smaller(row, rows - ROWS)
        for pair in range(pairs):
            at = pair * PAIR * lanes
            gap = smaller(lanes, columns - lanes - at)
            plane_block(source + (h * step + at), step, gap, runs, counts, weight, start, out + (h * out_step + at), out_step, gap)
    if pairs * PAIR * lanes < columns:
        fill_column(source + (columns - lanes), step, runs, counts, weight, start, out + (columns - lanes), out_step, rows)


@compiled
def fill_column(source: Any, step: int, runs: Any, counts: Any, weight: Any, start: Any, out: Any, out_step: int, rows: int) -> None:
    """Blocks of one register, two of which lie one above the other."""
    for row in range(0, rows, PAIR * ROWS):
        h = smaller(row, rows - ROWS)
        gap = larger(0, smaller(ROWS, rows - ROWS - h))
        plane_block(source + h * step, step, gap * step, runs, counts, weight, start, out + h * out_step, out_step, gap * out_step)


@compiled
def fill_rows(
    source: Any, step: int, runs: Any, count: int, weight: Any, start: Any, out: Any, out_step: int, rows: int, columns: int
) -> None:
    """Rows of at least a register, fewer than a block has."""
    lanes = lanes_of(out)
    for h in range(rows):
        at = 0
        while at + LONG * lanes <= columns:
            line_window(source + (h * step + at), step, runs, count, weight, start, out + (h * out_step + at), lanes)
            at += LONG * lanes
        for column in range(at, columns, lanes):
            at = smaller(column, columns - lanes)
            short_window(source + (h * step + at), step, runs, count, weight, start, out + (h * out_step + at), lanes)


@compiled
def fill_line(source: Any, step: int, runs: Any, count: int, weight: Any, start: Any, out: Any, length: int) -> None:
    """A line, rounded up to registers."""
    lanes, at = lanes_of(out), 0
    while at < length:
        if length - at > (LONG - 1) * lanes:
            line_window(source + at, step, runs, count, weight, start, out + at, lanes)
            at += LONG * lanes
        else:
            short_window(source + at, step, runs, count, weight, start, out + at, lanes)
            at += lanes


@kernel
def plane_gradients(calls: Any, options: Any, shared: Array, counters: Integers) -> None:
    """Add to `weight` (part, channel, tap); a task is one group of some examples, and y is the cotangent."""
    call = calls[0]
    memory = pointer_to(shared.ctypes.data, shared) + next_of(counters, 1) * call.memory_size
    fill(memory, call.memory_size, 0.0)
    sums = memory + (call.plane + call.room)
    size_in, size_out = call.in0 * call.in1 * call.in2, call.out0 * call.out1 * call.out2
    while True:
        task = next_of(counters, 0)
        if task >= call.tasks:
            return
        group, part = task // call.parts, task % call.parts
        for example in range(call.batch * part // call.parts, call.batch * (part + 1) // call.parts):
            at = example * call.groups + group
            load_plane(call, pointer_to(call.x, memory) + at * size_in, memory)
            for j in range(call.outputs):
                fill(sums, call.taps * lanes_of(memory), 0.0)
                add_products(call, memory, pointer_to(call.y, memory) + (at * call.outputs + j) * size_out, sums)
                made = pointer_to(call.weight, memory) + ((part * call.groups + group) * call.outputs + j) * call.taps
                for tap in range(call.taps):
                    made[tap] += total_of(load(sums, tap * lanes_of(memory)))


@compiled
def add_products(call: Any, memory: Any, dy: Any, sums: Any) -> None:
    """To the sums of all taps those over one plane."""
    lanes, step, nothing = lanes_of(memory), call.out2, filled(memory, 0.0)
    runs, counts = integers_at(call.runs), integers_at(call.phases) + COUNTS
    for z in range(call.out0):
        source, given = memory + z * call.grid1 * call.grid2, dy + z * call.out1 * call.out2
        if call.out2 < lanes:
            step, flat = lanes, memory + call.plane
            for h in range(call.out1):
                copy_row(given + h * call.out2, call.out2, call.out2 * (call.out1 * (call.out0 - z) - h), flat + h * lanes)
            given = flat
        for column in range(0, call.out2, lanes):
            at = larger(0, smaller(column, call.out2 - lanes))
            counted = between(nothing, column - at, smaller(lanes, call.out2) - 1)
            h = 0
            while h + ROWS <= call.out1:
                place = source + (h * call.grid2 + at)
                row_products(place, call.grid2, runs, counts, given + (h * step + at), step, counted, sums)
                h += ROWS
            for row in range(h, call.out1):
                place = source + (row * call.grid2 + at)
                line_products(place, call.grid2, runs, counts, given + (row * step + at), step, counted, sums)
