"""Products whose operands lie anywhere: the one micro-kernel of the direct method.

Every face of a convolution has the form ``c[line, lane] = before + sum over k of a[k, lane] * b[line, k]``, where a and c have lanes
side by side in memory. What makes it a convolution is where a and b lie. The sum over k is cut into *runs*, along which both advance by
a step of its own; run r has ``size[r]`` of them::

    a[r, i]        = a[a_begin[r] + WIDTH * i : ... + lanes]      rows of packed weights, or positions of d_output
    b[line, r, i]  = b[source[line] + b_begin[r] + b_step[r] * i] the channels that one tap reads at a position, read in place
    c[line]        = c[place[line] : place[line] + lanes]
    before         = given[step * place[line] : ... + lanes]      c itself, or with a step of 0 the same numbers for all lines

so that strides, dilations and borders are numbers in tables, and no input is padded or copied. A step loads no more than in
`products`, of which the rest is a copy: a block of sums stays in registers, begins with 0, and is added once.
"""

from __future__ import annotations

from typing import Any

from numba.core import cgutils, types

from refattn_numba.cpu.jit import compiled
from refattn_numba.cpu.products import LINES, REGISTERS, SPARE
from refattn_numba.cpu.simd import I64, Builder, Value, Vector, constant, fused, instruction, load_from, splat, store_to

RUN = 4  # numbers that tell of a run: where it begins in a and in b, its size, and its step in b
UNROLLED = 4


def _strip(registers: int) -> Any:
    """The product over `registers` registers of lanes; the tables of lines have room for `SPARE` more."""
    at_a_time = min(REGISTERS * LINES // registers, SPARE)

    @instruction
    def strip(typing: Any, a: Any, b: Any, runs: Any, count: Any, sources: Any, places: Any, lines: Any, c: Any,
              given: Any, step: Any) -> Any:  # fmt: skip
        vector = Vector(c.dtype)
        size, width = c.dtype.bitwidth // 8, vector.lanes

        def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
            a, b, runs, count, sources, places, lines, c, given, step = args
            lanes = [I64(i * width) for i in range(registers)]
            sums = [[cgutils.alloca_once(builder, vector.ir) for _ in lanes] for _ in range(at_a_time)]
            a_at, b_at = (cgutils.alloca_once(builder, I64) for _ in range(2))

            def entry(table: Value, at: Value, more: int) -> Value:
                return builder.load(builder.gep(table, [builder.add(at, I64(more))]))

            def add(rows: list[Value], step_at: Value, times: int) -> None:
                a_row, at = builder.gep(a, [builder.load(a_at)]), builder.load(b_at)
                b_step = builder.load_atomic(step_at, "monotonic", 8)  # each time: else LLVM makes an address of each line and step
                for _ in range(times):
                    operands = [load_from(builder, builder.gep(a_row, [lane]), vector.ir, size) for lane in lanes]
                    for row, line in zip(rows, sums, strict=True):
                        number = splat(builder, vector.ir, builder.load(builder.gep(row, [at]), align=size))
                        for operand, place in zip(operands, line, strict=True):
                            builder.store(fused(builder, operand, number, builder.load(place)), place)
                    a_row, at = builder.gep(a_row, [I64(REGISTERS * width)]), builder.add(at, b_step)
                builder.store(builder.add(builder.load(a_at), I64(times * REGISTERS * width)), a_at)
                builder.store(at, b_at)

            with cgutils.for_range_slice(builder, I64(0), lines, I64(at_a_time), I64) as (first, _):
                rows = [builder.gep(b, [entry(sources, first, j)]) for j in range(at_a_time)]
                for line in sums:
                    for place in line:
                        builder.store(constant(vector.ir, 0.0), place)
                with cgutils.for_range(builder, count) as loop:
                    run = builder.mul(loop.index, I64(RUN))
                    builder.store(entry(runs, run, 0), a_at)
                    builder.store(entry(runs, run, 1), b_at)
                    steps, step_at = entry(runs, run, 2), builder.gep(runs, [builder.add(run, I64(3))])
                    for many, times in ((builder.udiv(steps, I64(UNROLLED)), UNROLLED), (builder.urem(steps, I64(UNROLLED)), 1)):
                        with cgutils.for_range(builder, many):
                            add(rows, step_at, times)
                for j, line in enumerate(sums):
                    at = entry(places, first, j)
                    out, before = builder.gep(c, [at]), builder.gep(given, [builder.mul(at, step)])
                    for lane, place in zip(lanes, line, strict=True):
                        number = load_from(builder, builder.gep(before, [lane]), vector.ir, size)
                        store_to(builder, builder.fadd(number, builder.load(place)), builder.gep(out, [lane]), size)
            return context.get_dummy_value()

        index = types.intp
        return types.void(a, b, runs, index, sources, places, index, c, given, index), build

    return strip


_widest, _two, _one = (_strip(registers) for registers in (REGISTERS, 2, 1))


@compiled
def gathered_product(
    registers: int,
    a: Any,
    b: Any,
    runs: Any,
    count: int,
    sources: Any,
    places: Any,
    lines: int,
    c: Any,
    given: Any,
    step: int,
) -> None:
    """``c = given + b @ a`` for so many registers of lanes; lines beyond the last one are computed too, and their places written."""
    if registers > 2:
        _widest(a, b, runs, count, sources, places, lines, c, given, step)
    elif registers > 1:
        _two(a, b, runs, count, sources, places, lines, c, given, step)
    else:
        _one(a, b, runs, count, sources, places, lines, c, given, step)
