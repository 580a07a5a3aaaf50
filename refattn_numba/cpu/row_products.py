"""Products of a few rows with a block of rows, whose sums stay in registers; all rows are whole registers.

Other than in `products`, lanes are the features of a head, so that a row of keys or values is read once, in the order of memory.
Rows of the block may be codes, int8 or the bits of bfloat16, which become numbers in registers (`stored_numbers`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from refattn_numba.cpu.instructions import HOST
from refattn_numba.cpu.jit import compiled
from refattn_numba.cpu.simd import (
    I32,
    I64,
    Builder,
    Value,
    Vector,
    constant,
    fetch_line,
    fused,
    instruction,
    lanes_of,
    load_from,
    splat,
    store_to,
)
from refattn_numba.cpu.stored_numbers import CONVERTERS

REGISTERS, LINES = HOST.panel
SUMS = 16 if REGISTERS * LINES >= 16 else 8
"""Sums of a product; with their operands they fill the registers."""

ROWS = 4  # rows of queries that share what is loaded
LINE_BYTES = 64  # that are fetched at a time
AT_A_TIME = SUMS // 2  # rows of a block that one row is multiplied by at a time; the most


def _item(pointer: Any) -> int:
    return pointer.dtype.bitwidth // 8


def _numbers_at(builder: Builder, address: Value, pointer: Any, vector: Vector) -> Value:
    """As many as a register holds, from an address of what a pointer points to."""
    convert = CONVERTERS.get(pointer.dtype)
    if convert is None:
        return load_from(builder, address, vector.ir, _item(pointer))
    codes = load_from(builder, address, ir.VectorType(ir.IntType(pointer.dtype.bitwidth), vector.lanes), _item(pointer))
    return convert(builder, codes, vector)


def sums_of(builder: Builder, vectors: list[Value]) -> Value:
    """The sum of each vector's lanes, as one vector: they are added while they are put side by side.

    As many vectors as a power of two, and not more than each has lanes.
    """
    lanes, part = vectors[0].type.count, vectors[0].type.count

    def halves(a: Value, b: Value, count: int) -> Value:
        """Of each part of a, and then of b, the sum of its two halves."""
        starts = [*range(0, count, part)]
        order = [[s + i for s in starts for i in range(half, half + part // 2)] for half in (0, part // 2)]
        wide = [ir.Constant(ir.VectorType(I32, len(o)), o) for o in order]
        return builder.fadd(*(builder.shuffle_vector(a, b, o) for o in wide))

    while len(vectors) > 1:
        vectors = [halves(a, b, 2 * lanes) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
        part //= 2
    total = vectors[0]
    while part > 1:
        total = halves(total, ir.Constant(total.type, ir.Undefined), total.type.count)
        part //= 2
    return total


def _dots(rows: int) -> Callable[..., Any]:
    columns = SUMS // max(rows, 2)

    @instruction
    def dots(typing: Any, a: Any, a_step: Any, b: Any, b_step: Any, soon: Any, count: Any, depth: Any, out: Any, out_step: Any) -> Any:
        vector = Vector(out.dtype)
        size, lanes = out.dtype.bitwidth // 8, vector.lanes
        line_size = LINE_BYTES // _item(b)
        each = max(1, min(columns, line_size // lanes))  # registers of a row that one line fills

        def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
            pointer = sig.args[2]
            a, a_step, b, b_step, soon, count, depth, out, out_step = args
            lines = [builder.gep(a, [builder.mul(a_step, I64(r))]) for r in range(rows)]
            sums = [cgutils.alloca_once(builder, vector.ir) for _ in range(rows * columns)]
            with cgutils.for_range_slice(builder, I64(0), count, I64(columns), I64) as (first, _):
                here = [builder.add(first, I64(j)) for j in range(columns)]
                last = builder.sub(count, I64(1))
                here = [builder.select(builder.icmp_signed("<", i, last), i, last) for i in here]
                block = [builder.gep(b, [builder.mul(i, b_step)]) for i in here]
                for place in sums:
                    builder.store(constant(vector.ir, 0.0), place)
                with cgutils.for_range_slice(builder, I64(0), depth, I64(lanes), I64) as (d, _):
                    of_rows = [load_from(builder, builder.gep(line, [d]), vector.ir, size) for line in lines]
                    # the rows' lines in turn: the first of them with the first register, and so on
                    turn = builder.urem(builder.udiv(d, I64(lanes)), I64(each))
                    at = builder.mul(builder.udiv(d, I64(each * lanes)), I64(each * lanes))
                    for j in range(0, columns, each):
                        row = builder.add(builder.add(first, I64(j)), turn)
                        fetch_line(builder, builder.gep(soon, [builder.add(builder.mul(row, b_step), at)]))
                    for j, line in enumerate(block):
                        operand = _numbers_at(builder, builder.gep(line, [d]), pointer, vector)
                        for row, place in zip(of_rows, sums[j::columns], strict=True):
                            builder.store(fused(builder, row, operand, builder.load(place)), place)
                totals = [builder.load(place) for place in sums]
                at_once = min(lanes, columns)
                for i in range(0, rows * columns, at_once):
                    address = builder.gep(
                        out, [builder.add(builder.mul(out_step, I64(i // columns)), builder.add(first, I64(i % columns)))]
                    )
                    store_to(builder, sums_of(builder, totals[i : i + at_once]), address, size)
            return context.get_dummy_value()

        index = types.intp
        return types.void(a, index, b, index, b, index, index, out, index), build

    return dots


one_row_dots, four_row_dots = _dots(1), _dots(ROWS)


@compiled
def dots(rows: int, a: Any, a_step: int, b: Any, b_step: int, soon: Any, count: int, depth: int, out: Any, out_step: int) -> None:
    """``out[r, t] = sum over d of a[r, d] * b[t, d]``, for one row or a multiple of `ROWS`.

    Up to `AT_A_TIME` - 1 numbers behind the count of each row of out are overwritten.
    """
    if rows == 1:
        one_row_dots(a, a_step, b, b_step, soon, count, depth, out, out_step)
    else:
        for r in range(0, rows, ROWS):
            four_row_dots(a + r * a_step, a_step, b, b_step, soon, count, depth, out + r * out_step, out_step)


def _sums(rows: int, registers: int) -> Callable[..., Any]:
    @instruction
    def add(typing: Any, weights: Any, w_step: Any, b: Any, b_step: Any, soon: Any, first: Any, last: Any, out: Any, out_step: Any) -> Any:
        vector = Vector(out.dtype)
        size, lanes = out.dtype.bitwidth // 8, vector.lanes
        each = max(1, LINE_BYTES // _item(b) // lanes)

        def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
            pointer = sig.args[2]
            weights, w_step, b, b_step, soon, first, last, out, out_step = args
            lines = [builder.gep(weights, [builder.mul(w_step, I64(r))]) for r in range(rows)]
            sums = [[cgutils.alloca_once(builder, vector.ir) for _ in range(registers)] for _ in lines]
            for row in sums:
                for place in row:
                    builder.store(constant(vector.ir, 0.0), place)
            with cgutils.for_range_slice(builder, first, last, I64(1), I64) as (t, _):
                line = builder.gep(b, [builder.mul(t, b_step)])
                later = builder.gep(soon, [builder.mul(t, b_step)])
                for i in range(0, registers, each):
                    fetch_line(builder, builder.gep(later, [I64(i * lanes)]))
                numbers = [_numbers_at(builder, builder.gep(line, [I64(i * lanes)]), pointer, vector) for i in range(registers)]
                for of_row, row in zip(lines, sums, strict=True):
                    weight = splat(builder, vector.ir, builder.load(builder.gep(of_row, [t])))
                    for number, place in zip(numbers, row, strict=True):
                        builder.store(fused(builder, weight, number, builder.load(place)), place)
            for r, row in enumerate(sums):
                for i, place in enumerate(row):
                    address = builder.gep(out, [builder.add(builder.mul(out_step, I64(r)), I64(i * lanes))])
                    store_to(builder, builder.fadd(load_from(builder, address, vector.ir, size), builder.load(place)), address, size)
            return context.get_dummy_value()

        index = types.intp
        return types.void(weights, index, b, index, b, index, index, out, index), build

    return add


def _weighted(rows: int) -> Callable[..., None]:
    registers = SUMS // max(rows, 2)
    widest, one = _sums(rows, registers), _sums(rows, 1)

    @compiled
    def weighted(
        weights: Any, w_step: int, b: Any, b_step: int, soon: Any, first: int, last: int, out: Any, out_step: int, width: int
    ) -> None:
        """``out[r, d] += sum over t from first to last of weights[r, t] * b[t, d]``; meanwhile `soon` is fetched likewise."""
        lanes, d = lanes_of(out), 0
        while d < width:
            if width - d >= registers * lanes:
                widest(weights, w_step, b + d, b_step, soon + d, first, last, out + d, out_step)
                d += registers * lanes
            else:
                one(weights, w_step, b + d, b_step, soon + d, first, last, out + d, out_step)
                d += lanes

    return weighted


add_to_one_row, add_to_four_rows = _weighted(1), _weighted(ROWS)
