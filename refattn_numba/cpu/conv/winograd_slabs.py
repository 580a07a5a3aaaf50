"""Slabs: some rows of tiles of one example and one register of channels, in the first cache.

A slab is ``[depth][height][width][lanes]``. Whatever the layout of memory, the border and the numbers of channels and positions, it is
whole: what does not exist is 0 when it is loaded, and is left out when it is stored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from refattn_numba.cpu.conv.winograd_squares import gather, load_some, scatter, store_some
from refattn_numba.cpu.conv.winograd_transforms import inputs_along, outputs_along, outputs_back, points_of
from refattn_numba.cpu.jit import compiled
from refattn_numba.cpu.simd import filled, lanes_of, load, maximum, pointer_to, store
from refattn_numba.cpu.sizes import larger, smaller
from refattn_numba.cpu.tiles import fill


class Image(NamedTuple):
    """Where the channels and positions of an array lie.

    Attributes
    ----------
    first : pointer
        The first number.
    batch, channel, position : int
        From one example, channel or position to the next.
    depth, height, width : int
        Positions.
    before_d, before_h, before_w : int
        Where the first tile begins before the first position.
    """

    first: Any
    batch: int
    channel: int
    position: int
    depth: int
    height: int
    width: int
    before_d: int
    before_h: int
    before_w: int


class Place(NamedTuple):
    """An example, and the first tile and the number of tiles along each axis; depth has one."""

    example: int
    depth: int
    row: int
    rows: int
    column: int
    columns: int


@compiled
def place_of_slab(call: Any, slab: int) -> Place:
    """By its number."""
    column = slab % call.slabs_w * call.columns
    rest = slab // call.slabs_w
    row = rest % call.slabs_h * call.rows
    rest //= call.slabs_h
    rows, columns = smaller(call.rows, call.tiles_h - row), smaller(call.columns, call.tiles_w - column)
    return Place(rest // call.tiles_d, rest % call.tiles_d, row, rows, column, columns)


@compiled
def x_image(call: Any, like: Any) -> Image:
    """What is convolved."""
    return Image(
        pointer_to(call.x, like), call.x_batch, call.x_channel, call.x_position, call.x_d, call.x_h, call.x_w,
        call.before_d, call.before_h, call.before_w,
    )  # fmt: skip


@compiled
def y_image(call: Any, like: Any) -> Image:
    """What the convolution makes, or its cotangent."""
    return Image(
        pointer_to(call.y, like), call.y_batch, call.y_channel, call.y_position, call.y_d, call.y_h, call.y_w, 0, 0, 0
    )  # fmt: skip


@compiled
def load_slab(image: Image, m: Any, wide: Any, at: Place, channel: int, count: int, dense: Any, slab: Any) -> None:
    """Channels from `channel` on, of which there are `count`; `wide` is the extent of the slab, `dense` memory for a plane of it."""
    lanes = lanes_of(slab)
    d0, h0, w0 = at.depth * m[0] - image.before_d, at.row * m[1] - image.before_h, at.column * m[2] - image.before_w
    first_h, end_h = smaller(larger(0, -h0), wide[1]), smaller(wide[1], image.height - h0)
    first_w, end_w = smaller(larger(0, -w0), wide[2]), smaller(wide[2], image.width - w0)
    columns, line, count = end_w - first_w, wide[2] * lanes, smaller(count, lanes)
    for d in range(wide[0]):
        plane = slab + d * wide[1] * line
        if d0 + d < 0 or d0 + d >= image.depth or end_h <= first_h or columns <= 0:
            fill(plane, wide[1] * line, 0.0)
            continue
        fill(plane, first_h * line, 0.0)
        fill(plane + end_h * line, (wide[1] - end_h) * line, 0.0)
        start = ((d0 + d) * image.height + h0 + first_h) * image.width + w0 + first_w
        source = image.first + (at.example * image.batch + channel * image.channel + start * image.position)
        step, pitch = image.position, image.width * image.position
        if step == 1:
            if columns == image.width:
                gather(source, image.channel, count, (end_h - first_h) * columns, dense)
            else:
                for h in range(end_h - first_h):
                    gather(source + h * image.width, image.channel, count, columns, dense + h * columns * lanes)
            source, step, pitch = dense, lanes, columns * lanes
        for h in range(first_h, end_h):
            row, out = source + (h - first_h) * pitch, plane + h * line
            fill(out, first_w * lanes, 0.0)
            fill(out + end_w * lanes, (wide[2] - end_w) * lanes, 0.0)
            if count == lanes or image.position == 1:
                for i in range(columns):
                    store(out, (first_w + i) * lanes, load(row, i * step))
            else:
                for i in range(columns):
                    store(out, (first_w + i) * lanes, load_some(row, i * step, count))


@compiled
def store_slab(image: Image, m: Any, at: Place, channel: int, count: int, slab: Any, bias: Any, is_relu: bool, dense: Any) -> None:
    """Likewise, with a bias of each channel, and zeros for negative numbers where it `is_relu`."""
    lanes, d0, h0, w0 = lanes_of(slab), at.depth * m[0], at.row * m[1], at.column * m[2]
    rows, columns = smaller(at.rows * m[1], image.height - h0), smaller(at.columns * m[2], image.width - w0)
    line, added, zero, count = at.columns * m[2] * lanes, load(bias, 0), filled(slab, 0.0), smaller(count, lanes)
    for d in range(smaller(m[0], image.depth - d0)):
        start = ((d0 + d) * image.height + h0) * image.width + w0
        target = image.first + (at.example * image.batch + channel * image.channel + start * image.position)
        out, step, pitch = target, image.position, image.width * image.position
        if image.position == 1:
            out, step, pitch = dense, lanes, columns * lanes
        for h in range(rows):
            row, to = slab + (d * at.rows * m[1] + h) * line, out + h * pitch
            for i in range(columns):
                numbers = load(row, i * lanes) + added
                if is_relu:
                    numbers = maximum(zero, numbers)
                if count == lanes or image.position == 1:
                    store(to, i * step, numbers)
                else:
                    store_some(to, i * step, numbers, count)
        if image.position == 1:
            if columns == image.width:
                scatter(dense, count, rows * columns, target, image.channel)
            else:
                for h in range(rows):
                    scatter(dense + h * columns * lanes, count, columns, target + h * image.width, image.channel)


@compiled
def to_points(of_inputs: bool, m: Any, wide: Any, at: Place, slab: Any, one: Any, two: Any, out: Any, point: int, tile: int) -> None:
    """All tiles of a slab, transformed as inputs, or else as the cotangents of outputs; `one` and `two` are memory for what is between.

    A point of a tile stands at ``out + number of the tile * tile + number of the point * point``.
    """
    lanes, m_d, m_h, m_w = lanes_of(slab), m[0], m[1], m[2]
    p_d, p_h, p_w = points_of(m_d), points_of(m_h), points_of(m_w)
    line = wide[2] * lanes
    plane = wide[1] * line
    planes = slab
    if m_d > 1:
        planes = one
        if of_inputs:
            inputs_along(m_d, slab, slab, plane, lanes, one, plane, lanes, wide[1] * wide[2])
        else:
            outputs_back(m_d, slab, slab, plane, lanes, one, plane, lanes, wide[1] * wide[2])
    for r in range(at.rows):
        for d in range(p_d):
            rows, lines = planes + (d * plane + r * m_h * line), two + d * p_h * line
            if of_inputs:
                inputs_along(m_h, slab, rows, line, lanes, lines, line, lanes, wide[2])
            else:
                outputs_back(m_h, slab, rows, line, lanes, lines, line, lanes, wide[2])
        for c in range(at.columns):
            of_tile, to = two + c * m_w * lanes, out + (r * at.columns + c) * tile
            if of_inputs:
                inputs_along(m_w, slab, of_tile, lanes, line, to, point, p_w * point, p_d * p_h)
            else:
                outputs_back(m_w, slab, of_tile, lanes, line, to, point, p_w * point, p_d * p_h)


@compiled
def from_points(m: Any, at: Place, points: Any, point: int, tile: int, one: Any, two: Any, slab: Any) -> None:
    """The outputs of all tiles of a slab."""
    lanes, m_d, m_h, m_w = lanes_of(slab), m[0], m[1], m[2]
    p_d, p_h, p_w = points_of(m_d), points_of(m_h), points_of(m_w)
    line = at.columns * m_w * lanes
    plane = at.rows * m_h * line
    for r in range(at.rows):
        for c in range(at.columns):
            out = slab + (r * m_h * line + c * m_w * lanes)
            outputs_along(m_w, slab, points + (r * at.columns + c) * tile, point, p_w * point, one, lanes, m_w * lanes, p_d * p_h)
            if m_d == 1:
                outputs_along(m_h, slab, one, m_w * lanes, lanes, out, line, lanes, m_w)
                continue
            for d in range(p_d):
                of_plane, to = one + d * p_h * m_w * lanes, two + d * m_h * m_w * lanes
                outputs_along(m_h, slab, of_plane, m_w * lanes, lanes, to, m_w * lanes, lanes, m_w)
            for h in range(m_h):
                outputs_along(m_d, slab, two + h * m_w * lanes, m_h * m_w * lanes, lanes, out + h * line, plane, lanes, m_w)
