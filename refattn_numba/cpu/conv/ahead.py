"""Products as in `products`, beside which memory is read and written.

A convolution of one tap multiplies each number that it reads a few dozen times only: a core would wait as long for memory as it
multiplies. So with every other step of a sum, a cache line of the block that comes next begins to be read; it need not exist. And results that
no cache could hold go from registers to memory: their lines then are not read before they are overwritten.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from numba.core import cgutils, types

from refattn_numba.cpu.call import CACHE_LINE
from refattn_numba.cpu.conv.steps import add_steps
from refattn_numba.cpu.jit import compiled
from refattn_numba.cpu.products import LINES, REGISTERS, SPARE
from refattn_numba.cpu.simd import (
    I64,
    Builder,
    Value,
    Vector,
    constant,
    fetch_line,
    instruction,
    lanes_of,
    load_from,
    store_past_caches,
    store_to,
)

TURNS = 8  # of lines, in which all rows of the next block are fetched: cores have few reads under way at a time


def _fetch_two(builder: Builder, soon: Value, step: Value, turn: Value, size: int) -> None:
    """Half of the four cache lines of a row, in every other turn of `AT_ONCE` steps; the first cache is full of operands."""
    line = CACHE_LINE // size
    row, half = builder.ashr(turn, I64(1)), builder.and_(turn, I64(1))
    place = builder.gep(soon, [builder.add(builder.mul(row, step), builder.mul(half, I64(2 * line)))])
    for i in range(2):
        fetch_line(builder, builder.gep(place, [I64(i * line)]), cache=2)


def _strip(registers: int) -> Any:
    at_a_time = min(REGISTERS * LINES // registers, SPARE)

    @instruction
    def strip(typing: Any, a: Any, a_step: Any, b: Any, b_line: Any, b_step: Any, lines: Any, depth: Any, c: Any, c_step: Any, add: Any,
              out: Any, out_step: Any, direct: Any, past: Any, soon: Any, soon_step: Any) -> Any:  # fmt: skip
        vector = Vector(c.dtype)
        size, width = c.dtype.bitwidth // 8, vector.lanes

        def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
            a, a_step, b, b_line, b_step, lines, depth, c, c_step, add, out, out_step, direct, past, soon, soon_step = args
            lanes, zero, last = [I64(i * width) for i in range(registers)], constant(vector.ir, 0.0), builder.sub(lines, I64(1))
            sums = [[cgutils.alloca_once(builder, vector.ir) for _ in lanes] for _ in range(at_a_time)]
            to, to_step = builder.select(direct, out, c), builder.select(direct, out_step, c_step)
            rows_a_turn = builder.sdiv(builder.add(depth, I64(TURNS - 1)), I64(TURNS))
            with cgutils.for_range_slice(builder, I64(0), lines, I64(at_a_time), I64) as (first, _):
                at = [builder.add(first, I64(j)) for j in range(at_a_time)]
                here = [builder.select(builder.icmp_signed("<", i, lines), i, last) for i in at]
                rows = [builder.mul(line, b_line) for line in here]
                turn = builder.sdiv(first, I64(at_a_time))
                turn = builder.select(builder.icmp_signed("<", turn, I64(TURNS)), turn, I64(TURNS - 1))
                later = builder.gep(soon, [builder.mul(builder.mul(turn, rows_a_turn), soon_step)])
                for place in (place for line in sums for place in line):
                    builder.store(zero, place)
                fetch = partial(_fetch_two, builder, later, soon_step, size=size)
                add_steps(builder, sums, vector.ir, size, a, a_step, b, rows, b_step, depth, fetch)
                made = []
                for i, j, line in zip(at, here, sums, strict=True):
                    row = builder.select(direct, j, i)  # repeated lines may only be written where they are not added to
                    of_c, of_out = builder.gep(c, [builder.mul(row, c_step)]), builder.gep(to, [builder.mul(row, to_step)])
                    for lane, place in zip(lanes, line, strict=True):
                        before = builder.select(add, load_from(builder, builder.gep(of_c, [lane]), vector.ir, size), zero)
                        made.append((builder.fadd(before, builder.load(place)), builder.gep(of_out, [lane])))
                with builder.if_else(past) as (past_caches, to_caches):
                    with past_caches:
                        for value, address in made:
                            store_past_caches(builder, value, address)
                    with to_caches:
                        for value, address in made:
                            store_to(builder, value, address, size)
            return context.get_dummy_value()

        index, yes = types.intp, types.boolean
        return types.void(a, index, b, index, index, index, index, c, index, yes, c, index, yes, yes, b, index), build

    return strip


_widest, _two, _one = (_strip(registers) for registers in (REGISTERS, 2, 1))


@compiled
def product_ahead(
    a: Any, a_step: int, b: Any, b_line: int, b_step: int, lines: int, depth: int, c: Any, c_step: int, width: int, add: bool,
    out: Any, out_step: int, direct: bool, past: bool, soon: Any, soon_step: int,
) -> None:  # fmt: skip
    """``c = b @ a``, or with `add` ``c += b @ a``; if `direct`, that goes to `out`, and c stays as it is.

    The width is rounded up to whole registers. Behind the last line c is overwritten, as by `products`, but nothing of `out`; where
    this is written `past` the caches, it has to be aligned, with a step of whole registers.
    Meanwhile four cache lines of each of `depth` rows at `soon` are fetched.
    """
    lanes, at = lanes_of(c), 0
    while at < width:
        left = width - at
        if left > (REGISTERS - 1) * lanes:
            _widest(a + at, a_step, b, b_line, b_step, lines, depth, c + at, c_step, add, out + at, out_step, direct, past, soon, soon_step)
            at += REGISTERS * lanes
        elif left > lanes:
            _two(a + at, a_step, b, b_line, b_step, lines, depth, c + at, c_step, add, out + at, out_step, direct, past, soon, soon_step)
            at += 2 * lanes
        else:
            _one(a + at, a_step, b, b_line, b_step, lines, depth, c + at, c_step, add, out + at, out_step, direct, past, soon, soon_step)
            at += lanes
