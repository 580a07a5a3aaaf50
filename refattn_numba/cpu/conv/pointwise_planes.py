"""One tap, where the positions of a channel lie next to one another: lanes are positions.

A thread copies a tile of positions, a part of the channels at a time, so that it lies in its first cache whatever the size of the image;
where an example ends within a block, the next one goes on. So do the sums; the last part's go to the result, where nothing follows.
"""

from __future__ import annotations

from typing import Any

from refattn._core import Array, Integers
from refattn_numba.cpu.conv.activation import activate_rows, bias_rows
from refattn_numba.cpu.conv.ahead import product_ahead
from refattn_numba.cpu.conv.blocks import gather, place_of, scatter
from refattn_numba.cpu.jit import compiled, kernel
from refattn_numba.cpu.simd import lanes_of, next_of, pointer_to, tile_of
from refattn_numba.cpu.sizes import smaller


@kernel
def planes(calls: Any, options: Any, shared: Array, counters: Integers) -> None:
    """A task is some positions and some lines of a group."""
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
    """Some lines at the positions of a block."""
    step, sums, width, positions = call.step, memory + call.at_sums, tile_of(memory), call.positions
    lines, count = smaller(call.line_block, call.lines - line), smaller(call.block, call.total - first)
    source = pointer_to(call.source, memory) + group * call.depth * positions
    weight = pointer_to(call.weight, memory) + (group * call.lines * call.depth + line * call.weight_line)
    of_example = call.groups * call.depth * positions
    at, example = (group * call.lines + line) * positions, call.groups * call.lines * positions
    out, begun = pointer_to(call.out, memory) + at, call.bias != 0
    if begun:
        bias_rows(pointer_to(call.bias, memory) + (group * call.lines + line), lines, count, sums, step)
    for k in range(0, call.depth, call.part):
        depth, b = smaller(call.part, call.depth - k), weight + k * call.weight_step
        is_last = k + depth == call.depth
        for q in range(0, count, width):
            size, to, to_step = smaller(width, count - q), sums + q, step
            direct = is_last and call.direct != 0 and size % lanes_of(memory) == 0 and (first + q) % positions + size <= positions
            if direct:
                to, to_step = out + place_of(first + q, example, positions), positions
            next_k, next_at = k, first + q + width
            if q + width >= count:
                next_k, next_at = (0, first + call.block) if is_last else (k + depth, first)
            soon = source + (next_k * positions + place_of(next_at, of_example, positions))
            gather(source + k * positions, of_example, positions, first + q, size, depth, memory, width)
            product_ahead(
                memory, width, b, call.weight_line, call.weight_step, lines, depth, sums + q, step, size, begun or k > 0,
                to, to_step, direct, direct and call.stream != 0, soon, positions,
            )  # fmt: skip
            if is_last and call.direct != 0 and not direct:
                scatter(sums + q, step, lines, first + q, size, out, example, positions)
    if call.direct == 0:
        if call.before != 0:
            scatter(sums, step, lines, first, count, pointer_to(call.before, memory) + at, example, positions)
        activate_rows(call.activation, sums, step, lines, count)
        scatter(sums, step, lines, first, count, out, example, positions)
