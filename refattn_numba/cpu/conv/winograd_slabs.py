"""Slabs: some rows of tiles of one example and one register of channels, in the first cache.

A slab is ``[depth][height][width][lanes]``. Whatever the layout of memory, the border and the numbers of channels and positions, it is
whole: what does not exist is 0 when it is loaded, and is left out when it is stored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import types

from refattn_numba.cpu.conv.winograd_transforms import inputs_along, outputs_along, outputs_back, points_of
from refattn_numba.cpu.jit import compiled
from refattn_numba.cpu.simd import (
    I1,
    I32,
    I64,
    Builder,
    Value,
    Vector,
    call_llvm,
    constant,
    filled,
    instruction,
    lanes_of,
    load,
    maximum,
    pointer_to,
    splat,
    store,
)
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


@instruction
def doubles_at(typing: Any, p: Any) -> Any:
    """The memory that a pointer points to, for float64."""
    made = types.CPointer(types.float64)
    return made(p), lambda context, builder, sig, args: builder.bitcast(args[0], context.get_value_type(made))


def _mask(builder: Builder, vector: ir.VectorType, count: Value) -> Value:
    lanes = ir.VectorType(I32, vector.count)
    below = splat(builder, lanes, builder.trunc(count, I32))
    return builder.icmp_signed("<", ir.Constant(lanes, list(range(vector.count))), below)


def _suffix(vector: ir.VectorType) -> str:
    return f"v{vector.count}{'f32' if isinstance(vector.element, ir.FloatType) else 'f64'}.p0"


def _load_some(builder: Builder, address: Value, vector: ir.VectorType, mask: Value, size: int) -> Value:
    place = builder.bitcast(address, vector.as_pointer())
    return call_llvm(builder, f"llvm.masked.load.{_suffix(vector)}", vector, place, I32(size), mask, constant(vector, 0.0))


def _store_some(builder: Builder, value: Value, address: Value, mask: Value, size: int) -> None:
    place = builder.bitcast(address, value.type.as_pointer())
    call_llvm(builder, f"llvm.masked.store.{_suffix(value.type)}", ir.VoidType(), value, place, I32(size), mask)


@instruction
def load_some(typing: Any, p: Any, i: Any, count: Any) -> Any:
    """The first `count` lanes, and 0 in the others, which are not read."""
    made = Vector(p.dtype)

    def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        mask = _mask(builder, made.ir, args[2])
        return _load_some(builder, builder.gep(args[0], [args[1]]), made.ir, mask, p.dtype.bitwidth // 8)

    return made(p, types.intp, types.intp), build


@instruction
def store_some(typing: Any, p: Any, i: Any, vector: Any, count: Any) -> Any:
    """Write the first `count` lanes."""

    def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        mask = _mask(builder, vector.ir, args[3])
        _store_some(builder, args[2], builder.gep(args[0], [args[1]]), mask, p.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(p, types.intp, vector, types.intp), build


def _turned(builder: Builder, rows: list[Value]) -> list[Value]:
    """Rows of a square become columns."""
    lanes = len(rows)
    half = lanes // 2
    while half:  # exchange the off-diagonal quarters of all squares of 2 * half
        low = [lane + lanes - half if lane & half else lane for lane in range(lanes)]
        high = [lane + lanes if lane & half else lane + half for lane in range(lanes)]
        for i in (i for i in range(lanes) if not i & half):
            orders = (ir.Constant(ir.VectorType(I32, lanes), order) for order in (low, high))
            rows[i], rows[i + half] = [builder.shuffle_vector(rows[i], rows[i + half], order) for order in orders]
        half //= 2
    return rows


@instruction
def gather_square(typing: Any, source: Any, step: Any, rows: Any, columns: Any, out: Any) -> Any:
    """``out[i * lanes + j] = source[j * step + i]`` for the first rows j and columns i; the other numbers of the square are anything."""
    made, size = Vector(out.dtype), out.dtype.bitwidth // 8

    def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        source, step, rows, columns, out = args
        mask, last = _mask(builder, made.ir, columns), builder.sub(rows, I64(1))
        lines = []
        for j in range(made.lanes):
            row = builder.select(builder.icmp_signed("<", I64(j), last), I64(j), last)
            lines.append(_load_some(builder, builder.gep(source, [builder.mul(row, step)]), made.ir, mask, size))
        for i, line in enumerate(_turned(builder, lines)):
            address = builder.bitcast(builder.gep(out, [I64(i * made.lanes)]), made.ir.as_pointer())
            builder.store(line, address, align=size)
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, types.intp, out), build


@instruction
def scatter_square(typing: Any, source: Any, rows: Any, columns: Any, out: Any, step: Any) -> Any:
    """``out[j * step + i] = source[i * lanes + j]`` for the first rows j and columns i; all of the square is read."""
    made, size = Vector(out.dtype), out.dtype.bitwidth // 8

    def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        source, rows, columns, out, step = args
        mask, none = _mask(builder, made.ir, columns), ir.Constant(ir.VectorType(I1, made.lanes), [0] * made.lanes)
        lines = []
        for i in range(made.lanes):
            address = builder.bitcast(builder.gep(source, [I64(i * made.lanes)]), made.ir.as_pointer())
            lines.append(builder.load(address, align=size))
        for j, line in enumerate(_turned(builder, lines)):
            exists = builder.select(builder.icmp_signed("<", I64(j), rows), mask, none)
            _store_some(builder, line, builder.gep(out, [builder.mul(step, I64(j))]), exists, size)
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, out, types.intp), build


@compiled
def gather(source: Any, step: int, rows: int, columns: int, out: Any) -> None:
    """Some rows, as lanes, to a line for each column; one line less than a register has lanes is overwritten behind them."""
    lanes = lanes_of(out)
    for i in range(0, columns, lanes):
        gather_square(source + i, step, rows, smaller(columns - i, lanes), out + i * lanes)


@compiled
def scatter(source: Any, rows: int, columns: int, out: Any, step: int) -> None:
    """Back; what is behind the lines has to be memory."""
    lanes = lanes_of(out)
    for i in range(0, columns, lanes):
        scatter_square(source + i * lanes, rows, smaller(columns - i, lanes), out + i, step)


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
