"""Weights as the direct method reads them, and gradients of weights back from there.

A packed weight is ``(groups, blocks, taps * inner, width)``: for each tap and each channel that is summed over one row of lanes, which
are channels of the result, filled with zeros to a whole block. Where channels are fewer than the taps of a row, it is
``(groups, blocks, inner * taps, width)``.
"""

from __future__ import annotations

import math
from typing import Any

from refattn._core import Array, Integers
from refattn_numba.cpu.call import aligned
from refattn_numba.cpu.conv.direct_call import blocks_of, record, sides, width_of
from refattn_numba.cpu.conv.problem import Linear, Problem
from refattn_numba.cpu.jit import compiled, kernel
from refattn_numba.cpu.simd import get, lanes_of, load, next_of, pointer_to, put, store, transpose
from refattn_numba.cpu.sizes import smaller
from refattn_numba.cpu.threads import run_tasks

CHUNK = 16  # channels of one task


def runs_of_taps(problem: Problem, face: Linear) -> bool:
    """Whether taps follow one another in a packed weight, and not channels."""
    return face == "correlate" and problem.c < problem.kernel[2]


def packed(problem: Problem, face: Linear, weight: Array) -> Array:
    """For the output, or for the gradient of the input."""
    (inner, made, _), taps, width = sides(problem, face), math.prod(problem.kernel), width_of(problem.dtype)
    if runs_of_taps(problem, face):  # the same as if all were channels
        problem, inner, taps = problem._replace(c=problem.c * taps), inner * taps, 1
    blocks, chunks = blocks_of(made, problem.dtype), -(-inner // CHUNK)
    result = aligned(problem.groups * blocks * taps * inner * width, problem.dtype)
    steps = (problem.c * taps, taps) if face == "correlate" else (taps, problem.c * taps)
    fields = {
        "groups": problem.groups,
        "inner": inner,
        "made": made,
        "width": width,
        "blocks": blocks,
        "kernel": taps,
        "lane_step": steps[0],
        "step": steps[1],
        "chunks": chunks,
        "part": weight.size,
        "memory_size": (width * width),
    }
    run_tasks(pack, record(fields, source=weight, weight=result), False, problem.groups * blocks * chunks, 4 * weight.size, problem.dtype)
    return result


@kernel
def pack(calls: Any, options: Any, shared: Array, counters: Integers) -> None:
    """A task is some channels that are summed over, for one block of the result's."""
    call = calls[0]
    square = pointer_to(shared.ctypes.data + next_of(counters, 1) * call.memory_size * shared.itemsize, shared)
    lanes, width, taps = lanes_of(square), call.width, call.kernel
    while True:
        task = next_of(counters, 0)
        if task >= call.end_task:
            return
        block, first = task // call.chunks, task % call.chunks * CHUNK
        count, channel = smaller(CHUNK, call.inner - first), block % call.blocks * width
        valid = smaller(width, call.made - channel)
        group = block // call.blocks * call.made * call.inner * taps
        source = pointer_to(call.source, shared) + (group + channel * call.lane_step + first * call.step)
        out = pointer_to(call.weight, shared) + (block * taps * call.inner + first) * width
        for lane in range(0, width, lanes):
            some = smaller(lanes, valid - lane)
            from_lane = source + lane * call.lane_step
            if some == lanes and call.step == taps and count * taps >= lanes:
                _by_squares(call, from_lane, count * taps, out + lane, square)
            elif some == lanes and call.lane_step == taps:
                last = group + (channel + lane) * taps + (first + count - 1) * call.step + lanes * (taps + lanes)
                whole = count if last <= call.part else count - 1
                for c in range(whole):
                    _by_taps(call, from_lane + c * call.step, out + (c * width + lane), square)
                _by_number(call, from_lane, whole, count, lanes, out + lane)
            else:
                _by_number(call, from_lane, 0, count, some, out + lane)


@compiled
def _by_number(call: Any, source: Any, first: int, last: int, some: int, out: Any) -> None:
    """Any channels from first to last, and lanes of which some do not exist."""
    for c in range(first, last):
        for t in range(call.kernel):
            row = out + (t * call.inner + c) * call.width
            for i in range(lanes_of(out)):
                put(row, i, get(source, i * call.lane_step + c * call.step + t) if i < some else 0.0)


@compiled
def _by_taps(call: Any, source: Any, out: Any, square: Any) -> None:
    """Where the taps of all lanes lie one after another; numbers behind them are read too."""
    lanes = lanes_of(square)
    for first in range(0, call.kernel, lanes):
        transpose(source + first, call.kernel, square, lanes)
        for t in range(first, smaller(first + lanes, call.kernel)):
            store(out, t * call.inner * call.width, load(square, (t - first) * lanes))


@compiled
def _by_squares(call: Any, source: Any, size: int, out: Any, square: Any) -> None:
    """Where a lane's channels and taps lie one after another."""
    lanes = lanes_of(square)
    for first in range(0, size, lanes):
        at = smaller(first, size - lanes)
        transpose(source + at, call.lane_step, square, lanes)
        c, t = at // call.kernel, at % call.kernel
        for i in range(lanes):
            store(out, (t * call.inner + c) * call.width, load(square, i * lanes))
            t += 1
            if t == call.kernel:
                c, t = c + 1, 0


@kernel
def unpack(calls: Any, options: Any, shared: Array, counters: Integers) -> None:
    """The sum of all parts of a gradient, in their order; a task is a block of output channels and a chunk of input channels."""
    call = calls[0]
    square = pointer_to(shared.ctypes.data + next_of(counters, 1) * call.memory_size * shared.itemsize, shared)
    lanes, width, taps = lanes_of(square), call.width, call.kernel
    while True:
        task = next_of(counters, 0)
        if task >= call.end_task:
            return
        block, first = task // call.chunks, task % call.chunks * call.chunk
        count, channel = smaller(call.chunk, call.inner - first), block % call.blocks * width
        valid = smaller(width, call.made - channel)
        source = pointer_to(call.source, shared) + task * call.step
        out = pointer_to(call.output, shared) + (((block // call.blocks * call.made + channel) * call.inner + first) * taps)
        for lane in range(0, valid, lanes):
            some = smaller(lanes, valid - lane)
            for at in range(0, count * taps, lanes):
                columns = smaller(lanes, count * taps - at)
                c, t = at // taps, at % taps
                for i in range(columns):
                    row = (t * call.chunk + c) * width + lane
                    total = load(source, row)
                    for part in range(1, call.parts):
                        total = total + load(source, part * call.part + row)
                    store(square, i * lanes, total)
                    t += 1
                    if t == taps:
                        c, t = c + 1, 0
                _put_across(square, columns, some, out + (lane * call.lane_step + at), call.lane_step)


@compiled
def _put_across(square: Any, columns: int, some: int, out: Any, step: int) -> None:
    lanes = lanes_of(square)
    if columns == lanes and some == lanes:
        transpose(square, lanes, out, step)
        return
    for i in range(some):
        for j in range(columns):
            put(out, i * step + j, get(square, j * lanes + i))
