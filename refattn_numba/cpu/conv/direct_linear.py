"""The direct method, for the output and for the gradient of the input: positions are lines, channels of the result are lanes."""

from __future__ import annotations

from typing import Any

from refattn._core import Array, Integers
from refattn_numba.cpu.conv.direct_call import load_taps
from refattn_numba.cpu.conv.gathered import RUN, gathered_product
from refattn_numba.cpu.conv.layouts import copy_rows, turn_tile
from refattn_numba.cpu.jit import compiled, kernel
from refattn_numba.cpu.products import SPARE
from refattn_numba.cpu.simd import filled, integers_at, lanes_of, load, next_of, pointer_to, select, store
from refattn_numba.cpu.sizes import larger, smaller


@kernel
def convolve(calls: Any, options: Any, shared: Array, counters: Integers) -> None:
    """A task is a box of positions and a block of channels: it begins with the bias, adds class after class, and is stored."""
    call = calls[0]
    first = shared.ctypes.data + next_of(counters, 1) * call.memory_size * shared.itemsize
    tile = pointer_to(first, shared)
    boxes_w, boxes_h, boxes_d = _ceil(call.out_w, call.box_w), _ceil(call.out_h, call.box_h), _ceil(call.out_d, call.box_d)
    blocks = call.groups * call.blocks
    while True:
        task = next_of(counters, 0)
        if task >= call.end_task:
            return
        box, block = (task // blocks, task % blocks) if call.positions_first else (task % call.boxes, task // call.boxes)
        w, box = box % boxes_w * call.box_w, box // boxes_w
        h, box = box % boxes_h * call.box_h, box // boxes_h
        d, n = box % boxes_d * call.box_d, box // boxes_d * call.box_n
        begin = (n, d, h, w)
        end = (
            smaller(n + call.box_n, call.batch),
            smaller(d + call.box_d, call.out_d),
            smaller(h + call.box_h, call.out_h),
            smaller(w + call.box_w, call.out_w),
        )
        _fill(call, tile, block, begin, end)
        _add_classes(call, first, tile, block, begin, end)
        _store(call, tile, block, begin, end)


@compiled
def _ceil(n: int, step: int) -> int:
    return (n + step - 1) // step


@compiled
def _valid(call: Any, block: int) -> int:
    """How many channels of the result a block has."""
    return smaller(call.width, call.made - block % call.blocks * call.width)


@compiled
def _channel(call: Any, block: int) -> int:
    return block // call.blocks * call.made + block % call.blocks * call.width


@compiled
def _rows(begin: Any, end: Any) -> int:
    return (end[0] - begin[0]) * (end[1] - begin[1]) * (end[2] - begin[2]) * (end[3] - begin[3])


@compiled
def _fill(call: Any, tile: Any, block: int, begin: Any, end: Any) -> None:
    """The bias, or zeros, behind the spare row; and in all rows where some have no tap."""
    width, valid, rows = call.width, _valid(call, block), _rows(begin, end)
    given, bias = pointer_to(call.bias, tile), tile + (rows + 1) * width
    for lane in range(width):
        bias[lane] = given[_channel(call, block) + lane] if call.bias != 0 and lane < valid else 0
    if call.holes:
        copy_rows(bias, 0, rows, width, tile, width)


@compiled
def _inside(row: Any, low: int, high: int) -> tuple[int, int]:
    """The part of a class whose positions lie between two."""
    return (
        larger(0, -((row[0] - low) // row[1])),
        smaller(row[2], -((row[0] - high) // row[1])),
    )


@compiled
def _add_classes(call: Any, memory: int, tile: Any, block: int, begin: Any, end: Any) -> None:
    classes, taps = integers_at(call.classes), integers_at(call.taps)
    found = integers_at(memory + call.at_taps)
    runs, sources, places = (
        integers_at(memory + call.at_runs),
        integers_at(memory + call.at_sources),
        integers_at(memory + call.at_places),
    )
    rows, lanes = _rows(begin, end), lanes_of(tile)
    registers = _ceil(_valid(call, block), lanes)
    size = call.kernel * call.inner * call.width
    packed = pointer_to(call.weight, tile) + block * size
    source = pointer_to(call.source, tile) + block // call.blocks * call.inner * call.source_c
    for i in range(call.classes_d, call.classes_h):
        d = classes + 7 * i
        d_low, d_high = _inside(d, begin[1], end[1])
        if d_low >= d_high:
            continue
        for j in range(call.classes_h, call.classes_w):
            h = classes + 7 * j
            h_low, h_high = _inside(h, begin[2], end[2])
            if h_low >= h_high:
                continue
            for k in range(call.classes_w, call.classes_end):
                w = classes + 7 * k
                w_low, w_high = _inside(w, begin[3], end[3])
                if w_low >= w_high:
                    continue
                lines = 0
                for n in range(begin[0], end[0]):
                    for at_d in range(d_low, d_high):
                        row_d = (n - begin[0]) * (end[1] - begin[1]) + d[0] + d[1] * at_d - begin[1]
                        place_d = n * call.source_n + (d[3] + d[4] * at_d) * call.source_d
                        for at_h in range(h_low, h_high):
                            row_h = row_d * (end[2] - begin[2]) + h[0] + h[1] * at_h - begin[2]
                            place_h = place_d + (h[3] + h[4] * at_h) * call.source_h
                            row = (row_h * (end[3] - begin[3]) + w[0] - begin[3]) * call.width
                            place = place_h + w[3] * call.source_w
                            for at_w in range(w_low, w_high):
                                sources[lines] = place + w[4] * call.source_w * at_w
                                places[lines] = row + w[1] * call.width * at_w
                                lines += 1
                for line in range(lines, lines + SPARE):
                    sources[line], places[line] = sources[lines - 1], rows * call.width
                count = load_taps(call, classes, taps, d, h, w, found)
                _add_class(
                    call,
                    registers,
                    packed,
                    source,
                    found,
                    count,
                    w[6] - w[5],
                    runs,
                    sources,
                    places,
                    lines,
                    tile,
                    tile + (rows + 1) * call.width,
                )


@compiled
def _add_class(
    call: Any,
    registers: int,
    packed: Any,
    source: Any,
    found: Any,
    count: int,
    row: int,
    runs: Any,
    sources: Any,
    places: Any,
    lines: int,
    tile: Any,
    bias: Any,
) -> None:
    """Blocks of depth, of nearly the same size, as runs: of channels that one tap reads, or of `row` taps that read one channel."""
    rows = count // row
    length, whole = (row, count * call.inner) if call.by_taps else (call.inner, count * call.inner)
    depth = _ceil(whole, _ceil(whole, call.depth))
    for first in range(0, whole, depth):
        size, k, made = smaller(depth, whole - first), 0, 0
        run, i = first // length, first % length
        while k < size:
            tap, channel = (run % rows * row, run // rows) if call.by_taps else (run, 0)
            begin = channel * call.kernel + found[2 * tap] if call.by_taps else found[2 * tap] * call.inner
            some = smaller(length - i, size - k)
            runs[RUN * made] = (begin + i) * call.width
            runs[RUN * made + 1] = found[2 * tap + 1] + channel * call.source_c + i * call.run_step
            runs[RUN * made + 2] = some
            k, run, i, made = k + some, run + 1, 0, made + 1
        before, step = (bias, 0) if first == 0 else (tile, 1)
        gathered_product(registers, packed, source, runs, made, call.run_step, sources, places, lines, tile, before, step)


@compiled
def _store(call: Any, tile: Any, block: int, begin: Any, end: Any) -> None:
    """To the output, in its layout."""
    width, valid, channel, lanes = call.width, _valid(call, block), _channel(call, block), lanes_of(tile)
    image, channels = call.out_d * call.out_h * call.out_w, call.groups * call.made
    rows, zero = _rows(begin, end), filled(tile, 0.0)
    if call.relu:
        for i in range(0, rows * width, lanes):
            numbers = load(tile, i)
            store(tile, i, select(numbers < zero, zero, numbers))
    position = (begin[1] * call.out_h + begin[2]) * call.out_w + begin[3]
    count = rows // (end[0] - begin[0])
    output = pointer_to(call.output, tile)
    for n in range(begin[0], end[0]):
        source = tile + (n - begin[0]) * count * width
        if call.channels_first:
            turn_tile(source, width, count, valid, output + ((n * channels + channel) * image + position), image)
        else:
            copy_rows(source, width, count, valid, output + ((n * image + position) * channels + channel), channels)
