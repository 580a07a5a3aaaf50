"""The direct method, for the gradient of the weight: pairs of tap and input channel are lines, output channels are lanes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refattn._core import Array, Integers
from refattn_numba.cpu.call import aligned, empty
from refattn_numba.cpu.conv.direct_call import blocks_of, described, load_taps, record, width_of
from refattn_numba.cpu.conv.direct_pack import unpack
from refattn_numba.cpu.conv.direct_tables import tables
from refattn_numba.cpu.conv.gathered import RUN, gathered_product
from refattn_numba.cpu.conv.layouts import panels
from refattn_numba.cpu.conv.problem import Problem
from refattn_numba.cpu.jit import compiled, kernel
from refattn_numba.cpu.products import SPARE
from refattn_numba.cpu.simd import filled, integers_at, lanes_of, next_of, pointer_to, store
from refattn_numba.cpu.sizes import smaller
from refattn_numba.cpu.threads import run_tasks

DEPTH = 256  # positions of one sum before it is added to the result
LINES = 640  # of one task, at most: with a block of channels they fit the second cache
TASKS = 16  # at least, on any number of threads, as their number decides how sums are rounded
PART = 512  # positions of one of several parts, at least


def weight_gradient(problem: Problem, x: Array, dy: Array) -> Array:
    """Parts of the positions are summed apart, where few blocks of channels meet many positions."""
    taps, width, blocks = math.prod(problem.kernel), width_of(problem.dtype), blocks_of(problem.o, problem.dtype)
    chunk = -(-problem.c // -(-problem.c // max(1, LINES // taps)))
    chunks, positions = -(-problem.c // chunk), problem.batch * math.prod(problem.out)
    tasks = problem.groups * blocks * chunks
    parts = max(1, min(-(-TASKS // tasks), positions // PART))
    region = (taps * chunk + 1) * width
    sums = aligned(parts * tasks * region, problem.dtype)
    found, gathered = tables(problem, "correlate"), panels(problem, dy, width)
    lines = taps * chunk + SPARE
    places = np.cumsum([0, 16 * taps, 8 * RUN * DEPTH, 8 * lines, 8 * lines])
    fields = {
        **described(problem, found, x),
        "inner": problem.c,
        "made": problem.o,
        "blocks": blocks,
        "chunk": chunk,
        "chunks": chunks,
        "parts": parts,
        "part": tasks * region,
        "step": region,
        "lane_step": problem.c * taps,
        "depth": DEPTH,
        **{f"out_{axis}": n for axis, n in zip("dhw", problem.out, strict=True)},
        **dict(zip(("at_taps", "at_runs", "at_sources", "at_places"), map(int, places), strict=False)),
    }
    memory = {"memory_size": -(-int(places[-1]) // 64) * 64 // problem.dtype.itemsize}
    call = record({**fields, **memory}, source=x, d_output=gathered, output=sums, classes=found.classes, taps=found.taps)
    run_tasks(correlate_weight, call, False, tasks * parts, int(problem.operations), problem.dtype)
    made = empty((problem.groups * problem.o, problem.c, *problem.kernel), problem.dtype)
    call = record({**fields, "memory_size": width * width}, source=sums, output=made)
    run_tasks(unpack, call, False, tasks, 4 * sums.size, problem.dtype)
    return made


@kernel
def correlate_weight(calls: Any, options: Any, shared: Array, counters: Integers) -> None:
    """A task is a block of output channels, a chunk of input channels, and a part of the positions of each class."""
    call = calls[0]
    first = shared.ctypes.data + next_of(counters, 1) * call.memory_size * shared.itemsize
    like = pointer_to(first, shared)
    while True:
        task = next_of(counters, 0)
        if task >= call.end_task:
            return
        part, region = task % call.parts, task // call.parts
        block, channel = region // call.chunks, region % call.chunks * call.chunk
        sums = pointer_to(call.output, like) + (part * call.part + region * call.step)
        for i in range(0, call.step, lanes_of(sums)):
            store(sums, i, filled(sums, 0.0))
        _add_classes(call, first, sums, block, channel, part)


@compiled
def _add_classes(call: Any, memory: int, sums: Any, block: int, channel: int, part: int) -> None:
    classes, taps = integers_at(call.classes), integers_at(call.taps)
    found = integers_at(memory + call.at_taps)
    runs, sources, places = (
        integers_at(memory + call.at_runs),
        integers_at(memory + call.at_sources),
        integers_at(memory + call.at_places),
    )
    image = call.out_d * call.out_h * call.out_w
    d_output = pointer_to(call.d_output, sums) + block * call.batch * image * call.width
    source = pointer_to(call.source, sums) + (block // call.blocks * call.inner + channel) * call.source_c
    steps = source, call.source_n, call.source_d, call.source_h, call.source_w, call.source_c
    channels, lanes = smaller(call.chunk, call.inner - channel), lanes_of(sums)
    registers = (smaller(call.width, call.made - block % call.blocks * call.width) + lanes - 1) // lanes
    for i in range(call.classes_d, call.classes_h):
        for j in range(call.classes_h, call.classes_w):
            for k in range(call.classes_w, call.classes_end):
                d, h, w = classes + 7 * i, classes + 7 * j, classes + 7 * k
                count = load_taps(call, taps, steps, d, h, w, found)
                lines = 0
                for t in range(count):
                    for c in range(channels):
                        sources[lines] = found[2 * t + 1] + c * call.source_c
                        places[lines] = (found[2 * t] * call.chunk + c) * call.width
                        lines += 1
                for line in range(lines, lines + SPARE):
                    sources[line], places[line] = sources[lines - 1], call.step - call.width
                whole = call.batch * d[2] * h[2] * w[2]
                begin, end = whole * part // call.parts, whole * (part + 1) // call.parts
                at_w, rest = begin % w[2], begin // w[2]
                at_h, rest = rest % h[2], rest // h[2]
                at_d, n = rest % d[2], rest // d[2]
                while begin < end:
                    depth, made, summed = smaller(call.depth, end - begin), 0, 0
                    while summed < depth:
                        some = smaller(w[2] - at_w, depth - summed)
                        at = n * image + ((d[0] + at_d) * call.out_h + h[0] + at_h) * call.out_w + w[0] + at_w
                        runs[RUN * made] = at * call.width
                        runs[RUN * made + 1] = (
                            n * call.source_n
                            + (d[3] + d[4] * at_d) * call.source_d
                            + (h[3] + h[4] * at_h) * call.source_h
                            + (w[3] + w[4] * at_w) * call.source_w
                        )
                        runs[RUN * made + 2], runs[RUN * made + 3] = some, w[4] * call.source_w
                        summed, at_w, made = summed + some, at_w + some, made + 1
                        if at_w == w[2]:
                            at_w, at_h = 0, at_h + 1
                            if at_h == h[2]:
                                at_h, at_d = 0, at_d + 1
                                if at_d == d[2]:
                                    at_d, n = 0, n + 1
                    gathered_product(registers, d_output, source, runs, made, sources, places, lines, sums, sums, 1)
                    begin += depth
