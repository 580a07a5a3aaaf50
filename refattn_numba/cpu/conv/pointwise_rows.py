"""One tap, where the channels of a position lie next to one another: lanes are output channels, and positions are lines.

The matrix comes in strips, which are a tile of output channels wide; the input is read where it lies.
"""

from __future__ import annotations

from typing import Any

from refattn._core import Array, Integers
from refattn_numba.cpu.conv.activation import activate_rows, bias_lanes
from refattn_numba.cpu.conv.ahead import product_ahead
from refattn_numba.cpu.conv.blocks import copy
from refattn_numba.cpu.jit import compiled, kernel
from refattn_numba.cpu.simd import lanes_of, next_of, pointer_to, tile_of
from refattn_numba.cpu.sizes import smaller


@kernel
def rows(calls: Any, options: Any, shared: Array, counters: Integers) -> None:
    """A task is some positions and some strips of a group."""
    call = calls[0]
    memory = pointer_to(shared.ctypes.data, shared) + next_of(counters, 1) * call.memory_size
    while True:
        task = next_of(counters, 0)
        if task >= call.tasks:
            return
        line, rest = task % call.line_blocks * call.line_block, task // call.line_blocks
        begin = rest % call.tasks_each * call.task
        for first in range(begin, smaller(begin + call.task, call.total), call.block):
            _block(call, memory, rest // call.tasks_each, first, line)


@compiled
def _block(call: Any, memory: Any, group: int, first: int, line: int) -> None:
    """All positions of a block, and its output channels; each strip's sums have their own place, where there are several parts."""
    width, count = tile_of(memory), smaller(call.block, call.total - first)
    end, across, out_across = smaller(line + call.line_block, call.lines), call.groups * call.depth, call.groups * call.lines
    source = pointer_to(call.source, memory) + (first * across + group * call.depth)
    at = first * out_across + group * call.lines
    for k in range(0, call.depth, call.part):
        depth, is_last = smaller(call.part, call.depth - k), k + call.part >= call.depth
        soon = source + (call.block * across if is_last else k + call.part)
        for o in range(line, end, width):
            size, sums = smaller(width, end - o), memory + (o - line) * call.step
            strip = pointer_to(call.weight, memory) + (group * call.weight_line + o // width * call.weight_step + k * width)
            if k == 0 and call.bias != 0:
                bias_lanes(pointer_to(call.bias, memory) + (group * call.lines + o), count, size, sums, width)
            direct, to, to_step = is_last and call.direct != 0 and size % lanes_of(memory) == 0, sums, width
            if direct:
                to, to_step = pointer_to(call.out, memory) + (at + o), out_across
            product_ahead(
                strip, width, source + k, across, 1, count, depth, sums, width, size, call.bias != 0 or k > 0,
                to, to_step, direct, direct and call.stream != 0, soon + (o - line) % call.part, across,
            )  # fmt: skip
            if is_last and not direct:
                if call.before != 0:
                    copy(sums, width, count, size, pointer_to(call.before, memory) + (at + o), out_across)
                activate_rows(call.activation, sums, width, count, size)
                copy(sums, width, count, size, pointer_to(call.out, memory) + (at + o), out_across)
