"""The gradient of the weight by Winograd's transforms: for each point a product over all tiles, summed in blocks of them."""

from __future__ import annotations

from typing import Any

from refattn._core import Array, Integers
from refattn_numba.cpu.conv.winograd_kernels import fetch_part, load_x, tile_of_call
from refattn_numba.cpu.conv.winograd_products import multiply_lines
from refattn_numba.cpu.conv.winograd_slabs import load_slab, place_of_slab, to_points, y_image
from refattn_numba.cpu.conv.winograd_squares import scatter
from refattn_numba.cpu.conv.winograd_transforms import gradient_of_weight
from refattn_numba.cpu.jit import compiled, kernel
from refattn_numba.cpu.products import SPARE
from refattn_numba.cpu.simd import lanes_of, load, next_of, pointer_to, store
from refattn_numba.cpu.sizes import smaller


@compiled
def load_dy(call: Any, memory: Any, slab: int, channel: int, count: int, out: Any) -> None:
    """The cotangents of the tiles of a slab, transformed."""
    at, m = place_of_slab(call, slab), tile_of_call(call)
    wide = call.m_d, at.rows * call.m_h, at.columns * call.m_w
    loaded, one, two = memory + call.at_slab, memory + call.at_one, memory + call.at_two
    load_slab(y_image(call, memory), m, wide, at, channel, count, memory + call.at_dense, loaded)
    to_points(False, m, wide, at, loaded, one, two, out, call.m_point, call.m_tile)


@compiled
def store_weight(call: Any, memory: Any, group: int, c: int, o: int, sums: Any, first: int, end: int) -> None:
    """Channels ``c + first`` to before ``c + end`` of one block: all slices are added, and what is made of them is stored."""
    lanes, taps, width = lanes_of(memory), call.taps, call.panel
    total = memory + call.at_m
    for i in range(0, smaller(width, call.o - o), lanes):
        for k in range(first, end):
            at = sums + (k * width + i)
            for p in range(call.points):
                found = load(at, p * call.s_point)
                for s in range(1, call.slices):
                    found = found + load(at, s * call.slice_step + p * call.s_point)
                store(total, p * lanes, found)
            out = memory + (call.at_dense + (k - first) * taps * lanes)
            gradient_of_weight(call.m_d, call.m_h, call.m_w, total, lanes, memory + call.at_one, memory + call.at_two, out, lanes)
        rows, step = smaller(lanes, call.o - o - i), call.c * taps
        out = pointer_to(call.weight, memory) + ((group * call.o + o + i) * step + (c + first) * taps)
        scatter(memory + call.at_dense, rows, (end - first) * taps, out, step)


@compiled
def multiply_tiles(call: Any, x: Any, y: Any, sums: Any, tiles: int, channels: int, width: int, is_first: bool) -> None:
    """For each point, the products of all c with all o, summed over tiles; what is not first is added."""
    parts = (channels + SPARE - 1) // SPARE
    for point in range(call.points):
        a, b, to = y + point * call.m_point, x + point * call.v_point, sums + point * call.s_point
        for part in range(parts):
            c = part * SPARE
            lines = smaller(SPARE, channels - c)
            fetch_part(a + call.m_point, tiles * call.m_tile, part, parts)
            fetch_part(b + call.v_point, tiles * call.v_tile, part, parts)
            out = to + c * call.panel
            if not is_first:
                fetch_part(sums + (point + 1) * call.s_point if part + 1 == parts else out + SPARE * call.panel, SPARE * call.panel, 0, 1)
            multiply_lines(a, call.m_tile, b + c, 1, call.v_tile, lines, tiles, out, call.panel, width, not is_first)


@kernel
def add_tiles(calls: Any, options: Any, shared: Array, counters: Integers) -> None:
    """Sums over the tiles of a slice; a task is a slice, a group, and a block of c and of o, whose weights it stores if no slice is left."""
    call = calls[0]
    memory = pointer_to(shared.ctypes.data, shared) + next_of(counters, 1) * call.memory_size
    lanes, width, x_points, y_points = lanes_of(memory), call.panel, memory + call.at_v, memory + call.at_m
    while True:
        task = next_of(counters, 0)
        if task >= call.end_task:
            return
        part, panel = task // call.panels // call.c_blocks, task % call.panels
        of_c, group, slice_ = task // call.panels % call.c_blocks, part % call.groups, part // call.groups
        sums = memory + call.at_sums
        if call.slices > 1:
            sums = pointer_to(call.sums, memory) + task * call.sums_size
        c, o = of_c * call.c_block, panel * width
        channels, outputs = smaller(call.c_block, call.c - c), smaller(width, call.o - o)
        end = smaller((slice_ + 1) * call.slice_slabs, call.slabs)
        for begin in range(slice_ * call.slice_slabs, end, call.block):
            tiles = 0
            for slab in range(begin, smaller(begin + call.block, end)):
                found = 0
                for i in range(0, channels, lanes):
                    out = x_points + (tiles * call.v_tile + i)
                    found = load_x(call, memory, slab, group * call.c + c + i, channels - i, out, call.v_point, call.v_tile)
                for i in range(0, outputs, lanes):
                    load_dy(call, memory, slab, group * call.o + o + i, outputs - i, y_points + (tiles * call.m_tile + i))
                tiles += found
            multiply_tiles(call, x_points, y_points, sums, tiles, channels, outputs, begin == slice_ * call.slice_slabs)
        if call.slices == 1:
            for first in range(0, channels, call.store_block):
                store_weight(call, memory, group, c, o, sums, first, smaller(first + call.store_block, channels))


@kernel
def add_slices(calls: Any, options: Any, shared: Array, counters: Integers) -> None:
    """The weights' gradient from the sums of all slices; a task is a few channels c of a block."""
    call = calls[0]
    memory = pointer_to(shared.ctypes.data, shared) + next_of(counters, 1) * call.memory_size
    parts = (call.c_block + call.store_block - 1) // call.store_block
    while True:
        task = next_of(counters, 0)
        if task >= call.end_task:
            return
        block, first = task // parts, task % parts * call.store_block
        c, o = block // call.panels % call.c_blocks * call.c_block, block % call.panels * call.panel
        end = smaller(smaller(first + call.store_block, call.c_block), call.c - c)
        if first < end:
            sums = pointer_to(call.sums, memory) + block * call.sums_size
            store_weight(call, memory, block // call.panels // call.c_blocks, c, o, sums, first, end)
