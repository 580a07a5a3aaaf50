"""The direct method, for the output and for the gradient of the input: positions are lines, channels of the result are lanes."""

from __future__ import annotations

from typing import Any

from refattn._core import Array, Integers
from refattn_numba.cpu.conv.direct_call import load_taps
from refattn_numba.cpu.conv.direct_source import inside, source_of
from refattn_numba.cpu.conv.gathered import RUN, gathered_product
from refattn_numba.cpu.conv.layouts import copy_rows, turn_tile
from refattn_numba.cpu.jit import compiled, kernel
from refattn_numba.cpu.products import SPARE
from refattn_numba.cpu.simd import filled, integers_at, lanes_of, load, next_of, pointer_to, prefetch_to_write, select, store
from refattn_numba.cpu.sizes import smaller


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
        _add_groups(call, first, tile, block, begin, end, source_of(call, first, tile, block, begin, end))
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
    """The bias, or zeros."""
    width, valid = call.width, _valid(call, block)
    given = pointer_to(call.bias, tile)
    for lane in range(width):
        tile[lane] = given[_channel(call, block) + lane] if call.bias != 0 and lane < valid else 0
    for at in range(0, width, lanes_of(tile)):
        numbers = load(tile, at)
        for row in range(1, _rows(begin, end)):
            store(tile, row * width + at, numbers)


@compiled
def _add_groups(call: Any, memory: int, tile: Any, block: int, begin: Any, end: Any, source: Any) -> None:
    """Group after group of taps, so that each part of the weight is read once; the output is fetched meanwhile."""
    cuts, left = integers_at(call.cuts), call.groups_d * call.groups_h * call.groups_w
    for i in range(call.groups_d):
        for j in range(call.groups_d, call.groups_d + call.groups_h):
            for k in range(call.groups_d + call.groups_h, call.groups_d + call.groups_h + call.groups_w):
                left -= 1
                cut = (cuts[i], cuts[i + 1], cuts[j], cuts[j + 1], cuts[k], cuts[k + 1])
                _add_group(call, memory, tile, block, begin, end, source, cut, left)


@compiled
def _add_group(call: Any, memory: int, tile: Any, block: int, begin: Any, end: Any, source: Any, cut: Any, left: int) -> None:
    classes, taps = integers_at(call.classes), integers_at(call.taps)
    found = integers_at(memory + call.at_taps)
    done = 0
    for i in range(cut[0], cut[1]):
        d = classes + 7 * i
        some_d = inside(d, begin[1], end[1])
        for j in range(cut[2], cut[3]):
            h = classes + 7 * j
            some_h = inside(h, begin[2], end[2])
            for k in range(cut[4], cut[5]):
                w = classes + 7 * k
                some_w = inside(w, begin[3], end[3])
                lines = _find_lines(call, memory, begin, end, source, (d, h, w), (some_d, some_h, some_w))
                if lines > 0:
                    count = load_taps(call, taps, source, d, h, w, found)
                    _add_class(call, memory, tile, block, begin, end, source, count, w[6] - w[5], lines, done, left)
                    done += lines


@compiled
def _find_lines(call: Any, memory: int, begin: Any, end: Any, source: Any, rows: Any, some: Any) -> int:
    """Where the positions of a class read, and where their sums stand; how many there are."""
    sources, places = integers_at(memory + call.at_sources), integers_at(memory + call.at_places)
    (d, h, w), (some_d, some_h, some_w) = rows, some
    _, step_n, step_d, step_h, step_w, _ = source
    lines = 0
    for n in range(begin[0], end[0]):
        for at_d in range(some_d[0], some_d[1]):
            row_d = (n - begin[0]) * (end[1] - begin[1]) + d[0] + d[1] * at_d - begin[1]
            place_d = n * step_n + (d[3] + d[4] * at_d) * step_d
            for at_h in range(some_h[0], some_h[1]):
                row_h = row_d * (end[2] - begin[2]) + h[0] + h[1] * at_h - begin[2]
                place_h = place_d + (h[3] + h[4] * at_h) * step_h
                row = (row_h * (end[3] - begin[3]) + w[0] - begin[3]) * call.width
                place = place_h + w[3] * step_w
                for at_w in range(some_w[0], some_w[1]):
                    sources[lines] = place + w[4] * step_w * at_w
                    places[lines] = row + w[1] * call.width * at_w
                    lines += 1
    if lines > 0:
        for line in range(lines, lines + SPARE):
            sources[line], places[line] = sources[lines - 1], _rows(begin, end) * call.width
    return lines


@compiled
def _add_class(
    call: Any,
    memory: int,
    tile: Any,
    block: int,
    begin: Any,
    end: Any,
    source: Any,
    count: int,
    row: int,
    lines: int,
    done: int,
    left: int,
) -> None:
    """Blocks of depth, of nearly the same size, as runs: of channels that one tap reads, or of `row` taps that read one channel."""
    runs, sources, places = (
        integers_at(memory + call.at_runs),
        integers_at(memory + call.at_sources),
        integers_at(memory + call.at_places),
    )
    found = integers_at(memory + call.at_taps)
    registers = _ceil(_valid(call, block), lanes_of(tile))
    packed = pointer_to(call.weight, tile) + block * call.kernel * call.inner * call.width
    numbers, channel_step = source[0], source[5]
    step = call.run_step if call.by_taps else channel_step
    length, whole, rows = row if call.by_taps else call.inner, count * call.inner, count // row
    depth = _ceil(whole, _ceil(whole, call.depth))
    for first in range(0, whole, depth):
        size, k, made = smaller(depth, whole - first), 0, 0
        run, i = first // length, first % length
        while k < size:
            tap, channel = (run % rows * row, run // rows) if call.by_taps else (run, 0)
            at = channel * call.kernel + found[2 * tap] if call.by_taps else found[2 * tap] * call.inner
            some = smaller(length - i, size - k)
            runs[RUN * made] = (at + i) * call.width
            runs[RUN * made + 1] = found[2 * tap + 1] + channel * channel_step + i * step
            runs[RUN * made + 2], runs[RUN * made + 3] = some, step
            k, run, i, made = k + some, run + 1, 0, made + 1
        if left > 0 or first + depth < whole or not call.channels_first:
            gathered_product(registers, packed, numbers, runs, made, sources, places, lines, tile, tile, 1)
            continue
        for line in range(0, lines, SPARE):
            some = smaller(SPARE, lines - line)
            _fetch(call, tile, block, begin, end, done + line, done + line + some)
            gathered_product(registers, packed, numbers, runs, made, sources + line, places + line, some, tile, tile, 1)


@compiled
def _fetch(call: Any, tile: Any, block: int, begin: Any, end: Any, low: int, high: int) -> None:
    """Begin to fetch a part of the output, as the positions from low to high are of all, for the stores that follow soon."""
    rows, images, channels = _rows(begin, end), end[0] - begin[0], call.groups * call.made
    image, units = call.out_d * call.out_h * call.out_w, images * _valid(call, block)
    position = (begin[1] * call.out_h + begin[2]) * call.out_w + begin[3]
    output = pointer_to(call.output, tile)
    for unit in range(units * low // rows, units * high // rows):
        n, channel = begin[0] + unit % images, _channel(call, block) + unit // images
        at = (n * channels + channel) * image + position
        for i in range(0, rows // images, lanes_of(tile)):
            prefetch_to_write(output, at + i)


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
