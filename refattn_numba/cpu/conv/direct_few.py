"""The gradient of an input with few channels, whose lanes would be mostly empty: here positions of d_output are lanes.

One product makes what each position gives to each pair of channel and tap, and these are added where they belong. Along the last
axis an image is kept as `stride` planes, one for each residue, so that neighbours in d_output give to neighbours in a plane::

    x[stride * j + dilation * tap - before] = plane[residue][j + shift],    (dilation * tap - before) = stride * shift + residue
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from refattn._core import Array, Integers
from refattn_numba.cpu.conv.direct_call import AXIS, record, width_of
from refattn_numba.cpu.conv.gathered import RUN, gathered_product
from refattn_numba.cpu.conv.problem import Epilogue, Problem
from refattn_numba.cpu.instructions import HOST
from refattn_numba.cpu.jit import compiled, kernel
from refattn_numba.cpu.products import REGISTERS, SPARE
from refattn_numba.cpu.simd import filled, get, integers_at, lanes_of, load, next_of, pointer_to, put, store, transpose
from refattn_numba.cpu.sizes import larger, smaller
from refattn_numba.cpu.threads import run_tasks

LINES = 1024  # pairs of channel and tap, at most
DEPTH = 128  # channels of one sum


def suits(problem: Problem) -> bool:
    """Whether the channels of a group fill less than half a register, and what they take fits the caches."""
    lanes = HOST.register_bytes // problem.dtype.itemsize
    lines = problem.c * math.prod(problem.kernel)
    return 2 * problem.c <= lanes and lines <= LINES and problem.o >= lanes and 2 * lines >= lanes


def spread_few(problem: Problem, dy: Array, weight: Array, epilogue: Epilogue) -> Array:
    """The gradient of the input, with its bias; the weight is not packed."""
    made = problem.empty(problem.groups * problem.c, problem.size)
    taps, lanes, width = math.prod(problem.kernel), HOST.register_bytes // problem.dtype.itemsize, width_of(problem.dtype)
    lines, (*_, stride), (*_, before) = problem.c * taps, problem.stride, problem.before
    low, high = (-before) // stride, (problem.dilation[2] * (problem.kernel[2] - 1) - before) // stride
    length = -(-problem.out[2] // lanes) * lanes + high - low + lanes
    bands, (band_d, band_h) = _bands(problem)
    item = problem.dtype.itemsize
    sizes = (DEPTH * width * item, (lines + 1) * width * item, problem.c * band_d * band_h * stride * length * item)
    tables = (8 * RUN, 8 * (lines + SPARE), 8 * (lines + SPARE), 24 * REGISTERS)
    places = np.cumsum([0, *(-(-n // 64) * 64 for n in (*sizes, *tables))])
    names = ("at_panel", "at_tile", "at_planes", "at_runs", "at_sources", "at_places", "at_slots")
    n, c, *axes = (step // item for step in dy.strides)
    fields = {
        **dict(zip(names, map(int, places), strict=False)),
        "memory_size": int(places[-1]) // item,
        "source_n": n,
        "source_c": c,
        **{f"source_{axis}": step for axis, step in zip(AXIS, axes, strict=True)},
        **{f"out_{axis}": x for axis, x in zip(AXIS, problem.out, strict=True)},
        **{f"size_{axis}": x for axis, x in zip(AXIS, problem.size, strict=True)},
        **{f"kernel_{axis}": x for axis, x in zip(AXIS, problem.kernel, strict=True)},
        **{f"stride_{axis}": x for axis, x in zip(AXIS, problem.stride, strict=True)},
        **{f"gap_{axis}": x for axis, x in zip(AXIS, problem.dilation, strict=True)},
        **{f"before_{axis}": x for axis, x in zip(AXIS, problem.before, strict=True)},
        "batch": problem.batch,
        "groups": problem.groups,
        "inner": problem.o,
        "made": problem.c,
        "width": width,
        "kernel": taps,
        "box_d": band_d,
        "box_h": band_h,
        "boxes": bands,
        "low": low,
        "length": length,
        "depth": DEPTH,
        "channels_first": not problem.channels_last,
        "relu": epilogue.activation == "relu",
    }
    call = record(fields, source=dy, weight=weight, output=made)
    if epilogue.bias is not None:
        call.add(bias=epilogue.bias)
    tasks = problem.batch * problem.groups * bands if made.size else 0
    run_tasks(scatter, call, False, tasks, int(problem.operations), problem.dtype)
    return made


def _bands(problem: Problem) -> tuple[int, tuple[int, int]]:
    """Parts of an image where there are fewer images than threads want; parts repeat what they have in common."""
    d, h, _ = problem.size
    wanted = -(-2 * numba.get_num_threads() // max(1, problem.batch * problem.groups))
    if d > 1:
        band = -(-d // min(wanted, d))
        return -(-d // band), (band, h)
    band = max(-(-h // wanted), min(h, 4 * problem.dilation[1] * problem.kernel[1]))
    return -(-h // band), (1, band)


@kernel
def scatter(calls: Any, options: Any, shared: Array, counters: Integers) -> None:
    """A task is a band of one image of one group."""
    call = calls[0]
    memory = shared.ctypes.data + next_of(counters, 1) * call.memory_size * shared.itemsize
    planes = pointer_to(memory + call.at_planes, shared)
    slots = integers_at(memory + call.at_slots)
    lanes, lines = lanes_of(planes), call.made * call.kernel
    _fill_tables(call, memory, lines)
    while True:
        task = next_of(counters, 0)
        if task >= call.end_task:
            return
        band, group, n = task % call.boxes, task // call.boxes % call.groups, task // call.boxes // call.groups
        d = band * call.box_d if call.size_d > 1 else 0
        h = band * call.box_h if call.size_d == 1 else 0
        d_end, h_end = smaller(d + call.box_d, call.size_d), smaller(h + call.box_h, call.size_h)
        for i in range(0, call.made * call.box_d * call.box_h * call.stride_w * call.length, lanes):
            store(planes, i, filled(planes, 0.0))
        source = pointer_to(call.source, planes) + (n * call.source_n + group * call.inner * call.source_c)
        weight = pointer_to(call.weight, planes) + group * call.inner * lines
        d_first, d_last = _reach(d, d_end, call.before_d, call.gap_d, call.kernel_d, call.stride_d, call.out_d)
        h_first, h_last = _reach(h, h_end, call.before_h, call.gap_h, call.kernel_h, call.stride_h, call.out_h)
        count = 0
        for at_d in range(d_first, d_last):
            for at_h in range(h_first, h_last):
                for at_w in range(0, call.out_w, lanes):
                    slots[3 * count], slots[3 * count + 1], slots[3 * count + 2] = at_d, at_h, at_w
                    count += 1
                    if count * lanes == call.width:
                        _give(call, memory, source, weight, planes, count, d, d_end, h, h_end)
                        count = 0
        if count:
            _give(call, memory, source, weight, planes, count, d, d_end, h, h_end)
        _store(call, planes, n, group, d, d_end, h, h_end)


@compiled
def _reach(low: int, high: int, before: int, gap: int, taps: int, stride: int, size: int) -> tuple[int, int]:
    """The positions of d_output that give to positions low to high along an axis."""
    first = low + before - gap * (taps - 1)
    return larger(0, -(-first // stride)), smaller(size, (high - 1 + before) // stride + 1)


@compiled
def _fill_tables(call: Any, memory: int, lines: int) -> None:
    runs, sources, places = (
        integers_at(memory + call.at_runs),
        integers_at(memory + call.at_sources),
        integers_at(memory + call.at_places),
    )
    runs[0], runs[1], runs[3] = 0, 0, lines
    for line in range(lines + SPARE):
        sources[line], places[line] = smaller(line, lines - 1), smaller(line, lines) * call.width


@compiled
def _give(call: Any, memory: int, source: Any, weight: Any, planes: Any, count: int, d: int, d_end: int, h: int, h_end: int) -> None:
    """The product for some registers of positions, and its sums to the planes."""
    panel, tile = pointer_to(memory + call.at_panel, planes), pointer_to(memory + call.at_tile, planes)
    runs, sources, places = (
        integers_at(memory + call.at_runs),
        integers_at(memory + call.at_sources),
        integers_at(memory + call.at_places),
    )
    slots = integers_at(memory + call.at_slots)
    lanes, lines = lanes_of(planes), call.made * call.kernel
    for i in range(0, lines * call.width, lanes):
        store(tile, i, filled(tile, 0.0))
    for first in range(0, call.inner, call.depth):
        depth = smaller(call.depth, call.inner - first)
        for r in range(count):
            at = slots[3 * r] * call.source_d + slots[3 * r + 1] * call.source_h + slots[3 * r + 2] * call.source_w
            columns = smaller(lanes, call.out_w - slots[3 * r + 2])
            _load(call, source + (at + first * call.source_c), depth, columns, panel + r * lanes)
        runs[2] = depth
        gathered_product(count, panel, weight + first * lines, runs, 1, sources, places, lines, tile, tile, 1)
    for r in range(count):
        for c in range(call.made):
            line = c * call.kernel
            for t_d in range(call.kernel_d):
                at_d = slots[3 * r] * call.stride_d + t_d * call.gap_d - call.before_d
                for t_h in range(call.kernel_h):
                    at_h = slots[3 * r + 1] * call.stride_h + t_h * call.gap_h - call.before_h
                    if d <= at_d < d_end and h <= at_h < h_end:
                        row = planes + ((c * call.box_d + at_d - d) * call.box_h + at_h - h) * call.stride_w * call.length
                        for t_w in range(call.kernel_w):
                            offset = t_w * call.gap_w - call.before_w
                            shift = offset // call.stride_w
                            place = (offset - shift * call.stride_w) * call.length + slots[3 * r + 2] + shift - call.low
                            store(row, place, load(row, place) + load(tile, (line + t_w) * call.width + r * lanes))
                    line += call.kernel_w


@compiled
def _load(call: Any, source: Any, depth: int, columns: int, panel: Any) -> None:
    """A register of positions for each channel; those that do not exist are 0."""
    lanes, width = lanes_of(panel), call.width
    whole = 0
    if columns == lanes:
        if call.source_w == 1:
            for k in range(depth):
                store(panel, k * width, load(source, k * call.source_c))
            return
        if call.source_c == 1:
            whole = depth // lanes * lanes
            for k in range(0, whole, lanes):
                transpose(source + k, call.source_w, panel + k * width, width)
    for k in range(whole, depth):
        for i in range(lanes):
            put(panel, k * width + i, get(source, k * call.source_c + i * call.source_w) if i < columns else 0.0)


@compiled
def _store(call: Any, planes: Any, n: int, group: int, d: int, d_end: int, h: int, h_end: int) -> None:
    """The planes of a row side by side, with the bias."""
    bias, output = pointer_to(call.bias, planes), pointer_to(call.output, planes)
    channels = call.groups * call.made
    for c in range(call.made):
        channel = group * call.made + c
        more = bias[channel] if call.bias != 0 else 0
        for at_d in range(d, d_end):
            for at_h in range(h, h_end):
                row = planes + (((c * call.box_d + at_d - d) * call.box_h + at_h - h) * call.stride_w * call.length - call.low)
                if call.channels_first:
                    out, step = output + (((n * channels + channel) * call.size_d + at_d) * call.size_h + at_h) * call.size_w, 1
                else:
                    out, step = output + (((n * call.size_d + at_d) * call.size_h + at_h) * call.size_w * channels + channel), channels
                for residue in range(smaller(call.stride_w, call.size_w)):
                    plane, at = row + residue * call.length, out + residue * step
                    for i in range((call.size_w - residue + call.stride_w - 1) // call.stride_w):
                        number = get(plane, i) + more
                        put(at, i * call.stride_w * step, 0 if call.relu and number < 0 else number)
