"""Winograd's convolution: the output, or the gradient of the input, which is the output of a convolution with mirrored weights.

There are two orders. Where there are many tiles, a task is a block of them: it transforms its inputs, and the transformed weights, which
all tasks read, stream through (`by_tiles`). Where there are few, and the weights are the larger part, a task is a panel of output
channels: it transforms its weights, a few input channels at a time, and uses them at once for all tiles (`by_panels`).
"""

from __future__ import annotations

from typing import Any

from refattn._core import Array, Integers
from refattn_numba.cpu.conv.winograd_products import multiply_lines
from refattn_numba.cpu.conv.winograd_slabs import (
    from_points,
    load_slab,
    place_of_slab,
    store_slab,
    to_points,
    x_image,
    y_image,
)
from refattn_numba.cpu.conv.winograd_squares import doubles_at, gather
from refattn_numba.cpu.conv.winograd_transforms import points_of, transform_weight
from refattn_numba.cpu.jit import compiled, kernel
from refattn_numba.cpu.simd import lanes_of, next_of, pointer_to, prefetch, tile_of
from refattn_numba.cpu.sizes import smaller

DEPTH = 128
"""Input channels whose products are summed before they are added to memory: their panel of weights stays in the first cache."""

NEAR = 8
"""Input channels whose weights are read at once: of each output channel some cache lines, which then stay there."""


@compiled
def tile_of_call(call: Any) -> tuple[int, int, int]:
    """Outputs of a tile along each axis."""
    return call.m_d, call.m_h, call.m_w


@compiled
def x_extent(call: Any, rows: int, columns: int) -> tuple[int, int, int]:
    """Positions of x that tiles read."""
    m_h, m_w = call.m_h, call.m_w
    return points_of(call.m_d), (rows - 1) * m_h + points_of(m_h), (columns - 1) * m_w + points_of(m_w)


@compiled
def load_x(call: Any, memory: Any, slab: int, channel: int, count: int, out: Any, point: int, tile: int) -> int:
    """The tiles of a slab, transformed; how many there are."""
    at, m = place_of_slab(call, slab), tile_of_call(call)
    wide = x_extent(call, at.rows, at.columns)
    loaded, one, two = memory + call.at_slab, memory + call.at_one, memory + call.at_two
    load_slab(x_image(call, memory), m, wide, at, channel, count, memory + call.at_dense, loaded)
    to_points(True, m, wide, at, loaded, one, two, out, point, tile)
    return at.rows * at.columns


@compiled
def store_panel(call: Any, memory: Any, slab: int, group: int, panel: int, points: Any) -> int:
    """The outputs of the tiles of a slab, for one panel of channels; how many tiles there are."""
    lanes, width = lanes_of(memory), call.panel
    at, m, image = place_of_slab(call, slab), tile_of_call(call), y_image(call, memory)
    made, one, two = memory + call.at_slab, memory + call.at_one, memory + call.at_two
    bias = pointer_to(call.bias, memory) + (group * call.panels + panel) * width
    for i in range(0, smaller(width, call.o - panel * width), lanes):
        from_points(m, at, points + i, call.m_point, call.m_tile, one, two, made)
        channel = panel * width + i
        store_slab(
            image, m, at, group * call.o + channel, call.o - channel, made, bias + i, call.is_relu != 0, memory + call.at_dense
        )  # fmt: skip
    return at.rows * at.columns


@compiled
def fetch_part(p: Any, numbers: int, part: int, parts: int) -> None:
    """Begin to read one of the parts of what is needed next."""
    line = tile_of(p) // 4  # a cache line is a quarter of a tile's
    lines = (numbers + line - 1) // line
    for i in range(part * lines // parts, (part + 1) * lines // parts):
        prefetch(p, i * line)


@compiled
def load_weights(call: Any, source: Any, rows: int, channels: int, out: Any) -> None:
    """One register of o and a few channels c, as ``[c][taps][lanes]``."""
    taps, lanes = call.taps, lanes_of(out)
    if call.is_flipped == 0:
        gather(source, call.o_step, rows, channels * taps, out)
        return
    for c in range(channels):
        gather(source + c * call.c_step, call.o_step, rows, taps, out + c * taps * lanes)


@compiled
def transform_panel(call: Any, memory: Any, group: int, panel: int, first: int, count: int, out: Any, point: int) -> None:
    """Some input channels of a panel of weights, flipped for the gradient of the input: ``out[point][channel][panel]``."""
    lanes, width, taps = lanes_of(memory), call.panel, call.taps
    one, two, loaded = doubles_at(memory + call.at_one), doubles_at(memory + call.at_two), memory + call.at_dense
    tap, step = loaded, lanes
    if call.is_flipped != 0:
        tap, step = loaded + (taps - 1) * lanes, -lanes
    group_of_weights = pointer_to(call.weight, memory) + group * call.c * call.o * taps
    rows = smaller(width, call.o - panel * width)
    for near in range(0, count, NEAR):
        channels = smaller(NEAR, count - near)
        source = group_of_weights + ((first + near) * call.c_step + panel * width * call.o_step)
        for i in range(0, rows, lanes):
            here = source + i * call.o_step
            soon = here + lanes * call.o_step if i + lanes < rows else source + NEAR * call.c_step
            if call.is_flipped == 0:
                for row in range(lanes):
                    fetch_part(soon + row * call.o_step, channels * taps, 0, 1)
            else:
                for c in range(channels):
                    fetch_part(soon + c * call.c_step, lanes * taps, 0, 1)
            load_weights(call, here, smaller(lanes, rows - i), channels, loaded)
            for c in range(channels):
                to = out + ((near + c) * width + i)
                transform_weight(call.m_d, call.m_h, call.m_w, tap + c * taps * lanes, step, one, two, to, point)


@kernel
def transform_weights(calls: Any, options: Any, shared: Array, counters: Integers) -> None:
    """All weights, as ``[group][panel][point][c][panel of o]``; a task has `NEAR` channels c."""
    call = calls[0]
    memory = pointer_to(shared.ctypes.data, shared) + next_of(counters, 1) * call.memory_size
    blocks = (call.c + NEAR - 1) // NEAR
    while True:
        task = next_of(counters, 0)
        if task >= call.end_task:
            return
        group, panel, first = task // blocks // call.panels, task // blocks % call.panels, task % blocks * NEAR
        point = call.c * call.panel
        out = pointer_to(call.u, memory) + ((group * call.panels + panel) * call.points * point + first * call.panel)
        transform_panel(call, memory, group, panel, first, smaller(NEAR, call.c - first), out, point)


@compiled
def multiply(call: Any, u: Any, u_point: int, v: Any, tiles: int, first: int, count: int, width: int, products: Any) -> None:
    """For each point, tiles by some input channels times these by a panel; what is not first is added.

    All three lie in the order in which they are read and written, which the processor foresees.
    """
    for point in range(call.points):
        for k in range(0, count, DEPTH):
            a, b, c = u + (point * u_point + k * call.panel), v + (point * call.v_point + k), products + point * call.m_point
            depth = smaller(DEPTH, count - k)
            multiply_lines(a, call.panel, b, call.v_tile, 1, tiles, depth, c, call.m_tile, width, first + k > 0)


@kernel
def by_tiles(calls: Any, options: Any, shared: Array, counters: Integers) -> None:
    """Blocks of slabs, from transformed weights; a task is one of them and one group."""
    call = calls[0]
    memory = pointer_to(shared.ctypes.data, shared) + next_of(counters, 1) * call.memory_size
    v, products, lanes = memory + call.at_v, memory + call.at_m, lanes_of(memory)
    while True:
        task = next_of(counters, 0)
        if task >= call.end_task:
            return
        group, begin = task % call.groups, task // call.groups * call.block
        end, tiles = smaller(begin + call.block, call.slabs), 0
        for slab in range(begin, end):
            found = 0
            for c in range(0, call.c, lanes):
                out = v + (tiles * call.v_tile + c)
                found = load_x(call, memory, slab, group * call.c + c, call.c - c, out, call.v_point, call.v_tile)
            tiles += found
        for panel in range(call.panels):
            u_point, width = call.c * call.panel, smaller(call.panel, call.o - panel * call.panel)
            u = pointer_to(call.u, memory) + (group * call.panels + panel) * call.points * u_point
            multiply(call, u, u_point, v, tiles, 0, call.c, width, products)
            tile = 0
            for slab in range(begin, end):
                tile += store_panel(call, memory, slab, group, panel, products + tile * call.m_tile)


@kernel
def transform_inputs(calls: Any, options: Any, shared: Array, counters: Integers) -> None:
    """All tiles, as ``[group][tile][point][c]``; a task is one slab and a register of channels."""
    call = calls[0]
    memory = pointer_to(shared.ctypes.data, shared) + next_of(counters, 1) * call.memory_size
    lanes = lanes_of(memory)
    registers = (call.c + lanes - 1) // lanes
    while True:
        task = next_of(counters, 0)
        if task >= call.end_task:
            return
        slab, group, c = task // registers // call.groups, task // registers % call.groups, task % registers * lanes
        out = pointer_to(call.v, memory) + (group * call.points * call.v_point + first_tile(call, slab) * call.v_tile + c)
        load_x(call, memory, slab, group * call.c + c, call.c - c, out, call.v_point, call.v_tile)


@compiled
def first_tile(call: Any, slab: int) -> int:
    """How many tiles stand in the slabs before this one."""
    at = place_of_slab(call, slab)
    above = (at.example * call.tiles_d + at.depth) * call.tiles_h + at.row
    return above * call.tiles_w + at.rows * at.column


@kernel
def by_panels(calls: Any, options: Any, shared: Array, counters: Integers) -> None:
    """All slabs, from transformed inputs; a task is one panel of one group."""
    call = calls[0]
    memory = pointer_to(shared.ctypes.data, shared) + next_of(counters, 1) * call.memory_size
    u, products = memory + call.at_u, memory + call.at_m
    while True:
        task = next_of(counters, 0)
        if task >= call.end_task:
            return
        group, panel = task // call.panels, task % call.panels
        width = smaller(call.panel, call.o - panel * call.panel)
        v = pointer_to(call.v, memory) + group * call.points * call.v_point
        for c in range(0, call.c, call.chunk):
            count, u_point = smaller(call.chunk, call.c - c), call.chunk * call.panel
            transform_panel(call, memory, group, panel, c, count, u, u_point)
            multiply(call, u, u_point, v + c, call.tiles, c, count, width, products)
        tile = 0
        for slab in range(call.slabs):
            tile += store_panel(call, memory, slab, group, panel, products + tile * call.m_tile)
