"""Products of a few tiles by a panel of channels: as in `products`, but blocks of fewer lines take those that are left over.

A block's sums start from nothing, and are added once to what the output holds, or set it, as a number says when it runs, so that each
size of block is compiled once.
"""

from __future__ import annotations

from typing import Any

from numba.core import cgutils, types

from refattn_numba.cpu.conv.steps import add_steps
from refattn_numba.cpu.jit import compiled
from refattn_numba.cpu.products import LINES, REGISTERS, SPARE
from refattn_numba.cpu.simd import I64, Builder, Value, Vector, constant, instruction, lanes_of, load_from, store_to


def _block(registers: int, at_a_time: int) -> Any:
    """The product of `at_a_time` lines, the last of which are the last that exists, and `registers` registers of lanes."""

    @instruction
    def block(
        typing: Any, a: Any, a_step: Any, b: Any, b_line: Any, b_step: Any, lines: Any, depth: Any, c: Any, c_step: Any, add: Any
    ) -> Any:
        vector = Vector(c.dtype)
        size = c.dtype.bitwidth // 8

        def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
            a, a_step, b, b_line, b_step, lines, depth, c, c_step, add = args
            lanes, last = [I64(i * vector.lanes) for i in range(registers)], builder.sub(lines, I64(1))
            here = [builder.select(builder.icmp_signed("<", I64(j), last), I64(j), last) for j in range(at_a_time)]
            rows = [builder.mul(line, b_line) for line in here]
            sums = [[cgutils.alloca_once(builder, vector.ir) for _ in lanes] for _ in rows]
            for place in (place for line in sums for place in line):
                builder.store(constant(vector.ir, 0.0), place)
            add_steps(builder, sums, vector.ir, size, a, a_step, b, rows, b_step, depth)
            with builder.if_else(add) as (more, first):
                for branch, adds in ((more, True), (first, False)):
                    with branch:
                        for j, line in enumerate(sums):
                            out = builder.gep(c, [builder.mul(I64(j), c_step)])
                            for lane, place in zip(lanes, line, strict=True):
                                address, value = builder.gep(out, [lane]), builder.load(place)
                                if adds:
                                    value = builder.fadd(load_from(builder, address, vector.ir, size), value)
                                store_to(builder, value, address, size)
            return context.get_dummy_value()

        index = types.intp
        return types.void(a, index, b, index, index, index, index, c, index, types.boolean), build

    return block


widest, left_over, fewest, two, one = (
    _block(*shape) for shape in ((REGISTERS, LINES), (REGISTERS, 4), (REGISTERS, 2), (2, SPARE), (1, SPARE))
)


@compiled
def multiply_lines(
    a: Any, a_step: int, b: Any, b_line: int, b_step: int, lines: int, depth: int, c: Any, c_step: int, width: int, add: bool
) -> None:
    """``c = b @ a``, or ``c += b @ a``, of whole registers; what is behind the lines, to a multiple of `SPARE`, may be written."""
    lanes = lanes_of(c)
    for at in range(0, width, REGISTERS * lanes):
        left = width - at
        line = 0
        while line < lines:
            rest, of_b, to = lines - line, b + line * b_line, c + (line * c_step + at)
            if left <= lanes:
                one(a + at, a_step, of_b, b_line, b_step, rest, depth, to, c_step, add)
                line += SPARE
            elif left <= 2 * lanes and REGISTERS > 2:
                two(a + at, a_step, of_b, b_line, b_step, rest, depth, to, c_step, add)
                line += SPARE
            elif rest > 4:
                widest(a + at, a_step, of_b, b_line, b_step, rest, depth, to, c_step, add)
                line += LINES
            elif rest > 2:
                left_over(a + at, a_step, of_b, b_line, b_step, rest, depth, to, c_step, add)
                line += 4
            else:
                fewest(a + at, a_step, of_b, b_line, b_step, rest, depth, to, c_step, add)
                line += 2
