"""The gradient of a kernel of one tap: sums of products over the positions of all examples.

Lanes are channels of one of the two arrays, and lines those of the other. Where positions lie next to one another, a block of the
first is transposed on its way into a thread's memory.
"""

from __future__ import annotations

from typing import Any

from refattn._core import Array, Integers
from refattn_numba.cpu.conv.blocks import copy, gather, turn
from refattn_numba.cpu.conv.winograd_products import multiply_lines
from refattn_numba.cpu.jit import compiled, kernel
from refattn_numba.cpu.simd import next_of, pointer_to
from refattn_numba.cpu.sizes import smaller


@kernel
def weights(calls: Any, options: Any, shared: Array, counters: Integers) -> None:
    """A task is some lines and lanes of a group, and a share of the positions, whose sum has its own place."""
    call = calls[0]
    memory = pointer_to(shared.ctypes.data, shared) + next_of(counters, 1) * call.memory_size
    while True:
        task = next_of(counters, 0)
        if task >= call.tasks:
            return
        lane, rest = task % call.lane_blocks * call.lane_block, task // call.lane_blocks
        line, rest = rest % call.line_blocks * call.line_block, rest // call.line_blocks
        _sum(call, memory, rest % call.groups, rest // call.groups, line, lane)


@compiled
def _sum(call: Any, memory: Any, group: int, share: int, line: int, lane: int) -> None:
    """The share of a block of the gradient."""
    lines, lanes = smaller(call.line_block, call.lines - line), smaller(call.lane_block, call.lanes - lane)
    sums, a, b = memory + call.at_sums, memory + call.at_lanes, memory + call.at_lines
    first = share * call.share
    for q in range(first, smaller(first + call.share, call.total), call.part):
        count = smaller(call.part, smaller(first + call.share, call.total) - q)
        _load(call, memory, call.of_lanes, group * call.lanes + lane, call.groups * call.lanes, q, count, lanes, a, True)
        _load(call, memory, call.of_lines, group * call.lines + line, call.groups * call.lines, q, count, lines, b, False)
        b_line, b_step = (1, call.line_block) if call.by_rows else (call.part, 1)
        multiply_lines(a, call.lane_step, b, b_line, b_step, lines, count, sums, call.lane_step, lanes, q > first)
    out = pointer_to(call.out, memory) + (share * call.groups + group) * call.lines * call.lanes
    if call.turned:
        turn(sums, call.lane_step, lines, lanes, memory, call.turned)
        copy(memory, call.turned, lanes, lines, out + (lane * call.lines + line), call.lines)
    else:
        copy(sums, call.lane_step, lines, lanes, out + (line * call.lanes + lane), call.lanes)


@compiled
def _load(call: Any, memory: Any, array: int, channel: int, channels: int, q: int, count: int, size: int, out: Any, is_lanes: bool) -> None:
    """Some channels at some positions: lanes have a row for each position, and lines too where the array has."""
    source = pointer_to(array, memory)
    if call.by_rows:
        copy(source + (q * channels + channel), channels, count, size, out, call.lane_step if is_lanes else call.line_block)
        return
    positions = call.positions
    block = memory if is_lanes else out
    gather(source + channel * positions, channels * positions, positions, q, count, size, block, call.part)
    if is_lanes:
        turn(block, call.part, size, count, out, call.lane_step)
