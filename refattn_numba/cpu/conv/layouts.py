"""From one layout of memory to another: tiles are transposed in registers, on all cores."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refattn._core import Array, Integers
from refattn_numba.cpu.call import Record, aligned
from refattn_numba.cpu.conv.problem import Problem
from refattn_numba.cpu.jit import compiled, kernel
from refattn_numba.cpu.simd import get, lanes_of, load, next_of, pointer_to, put, store, transpose
from refattn_numba.cpu.sizes import smaller
from refattn_numba.cpu.threads import run_tasks

COLUMNS = 256  # of one task

Move = np.dtype(
    [(name, np.int64) for name in ("source", "output", "batch", "groups", "rows", "columns", "width", "blocks", "in_rows")]
    + [(name, np.int64) for name in ("source_n", "source_step", "memory_size", "end_task")],
    align=True,
)
"""From matrices to blocks of rows of their transposes.

batch, groups : there is one matrix for each, and those of an example lie one after another.
rows, columns : of each.
width, blocks : rows of a block, with the zeros that fill the last one, and how many blocks a matrix has.
in_rows : whether the source is transposed already, so that blocks of its columns are copied.
source_step : from one row, or column, to the next.
"""


def panels(problem: Problem, x: Array, width: int) -> Array:
    """Blocks of channels of each group (groups * blocks, batch * positions, width) of x (batch, channels, d, h, w), filled with zeros."""
    batch, channels, *size = x.shape
    rows, columns = channels // problem.groups, math.prod(size)
    blocks = -(-rows // width)
    made = aligned(problem.groups * blocks * batch * columns * width, x.dtype).reshape(problem.groups * blocks, batch * columns, width)
    fields = {
        "memory_size": 0,
        "batch": batch,
        "groups": problem.groups,
        "rows": rows,
        "columns": columns,
        "width": width,
        "blocks": blocks,
        "in_rows": problem.channels_last,
        "source_n": channels * columns,
        "source_step": channels if problem.channels_last else columns,
    }
    call = Record(fields, layout=Move)
    call.add(source=x, output=made)
    run_tasks(turn, call, False, batch * problem.groups * blocks * -(-columns // COLUMNS), 4 * x.size, x.dtype)
    return made


@kernel
def turn(calls: Any, options: Any, shared: Array, counters: Integers) -> None:
    """A task is some columns of a block of rows."""
    call = calls[0]
    source, output = pointer_to(call.source, shared), pointer_to(call.output, shared)
    parts = (call.columns + COLUMNS - 1) // COLUMNS
    while True:
        task = next_of(counters, 0)
        if task >= call.end_task:
            return
        part, task = task % parts, task // parts
        block, task = task % call.blocks, task // call.blocks
        group, n = task % call.groups, task // call.groups
        first, row = part * COLUMNS, block * call.width
        columns, rows = smaller(COLUMNS, call.columns - first), smaller(call.width, call.rows - row)
        out = output + (((group * call.blocks + block) * call.batch + n) * call.columns + first) * call.width
        row += group * call.rows
        if call.in_rows:
            at = source + (n * call.source_n + first * call.source_step + row)
            copy_rows(at, call.source_step, columns, rows, out, call.width)
        else:
            at = source + (n * call.source_n + row * call.source_step + first)
            turn_tile(at, call.source_step, rows, columns, out, call.width)
        for column in range(columns):
            for i in range(rows, call.width):
                put(out, column * call.width + i, 0.0)


@compiled
def turn_tile(source: Any, step: int, rows: int, columns: int, out: Any, out_step: int) -> None:
    """``out[j, i] = source[i, j]``; the last square of an axis repeats some of the one before."""
    lanes = lanes_of(out)
    if rows < lanes or columns < lanes:
        for j in range(columns):
            for i in range(rows):
                put(out, j * out_step + i, get(source, i * step + j))
        return
    for first in range(0, rows, lanes):
        i = smaller(first, rows - lanes)
        for second in range(0, columns, lanes):
            j = smaller(second, columns - lanes)
            transpose(source + (i * step + j), step, out + (j * out_step + i), out_step)


@compiled
def copy_rows(source: Any, step: int, rows: int, size: int, out: Any, out_step: int) -> None:
    """The first numbers of each row."""
    lanes = lanes_of(out)
    whole = size // lanes * lanes
    for r in range(rows):
        for i in range(0, whole, lanes):
            store(out, r * out_step + i, load(source, r * step + i))
        for i in range(whole, size):
            put(out, r * out_step + i, get(source, r * step + i))
