"""The steps of a sum in registers, several of them written out.

A step of a block of 4 registers and 6 lines has 24 multiply-adds and 10 loads. LLVM adds two dozen instructions more: it hoists sums of
row and step, has no registers for them, and reads them back from memory. A core has room for these beside the multiply-adds, but not
where a neighbour on its other hardware thread takes every second place. So operands are walked along by pointers whose origin LLVM
cannot see, one addition for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir
from numba.core import cgutils

from refattn_numba.cpu.simd import I64, Builder, Value, fused, load_from, splat

AT_ONCE = 4


def unseen(builder: Builder, value: Value) -> Value:
    """The same value, of which LLVM knows nothing; no instruction."""
    return builder.asm(ir.FunctionType(value.type, [value.type]), "", "=r,0", [value], side_effect=False)


def add_steps(
    builder: Builder, sums: Sequence[Sequence[Value]], vector: ir.VectorType, size: int, a: Value, a_step: Value, b: Value,
    lines: Sequence[Value], b_step: Value, depth: Value, beside: Callable[[Value], None] | None = None,
) -> None:  # fmt: skip
    """To ``sums[line][register]`` for each step their product of a register of `a` and a number of `b`, which lies `lines` further on.

    `a` and `b` advance by their steps; numbers have `size` bytes. What is done `beside` is told which `AT_ONCE` steps these are, by number.
    """
    width, at = vector.count, [cgutils.alloca_once_value(builder, x) for x in (a, b)]

    def step() -> None:
        row, numbers = map(builder.load, at)
        operands = [load_from(builder, builder.gep(row, [I64(i * width)]), vector, size) for i in range(len(sums[0]))]
        for line, places in zip(lines, sums, strict=True):
            number = splat(builder, vector, builder.load(builder.gep(numbers, [line]), align=size))
            for operand, place in zip(operands, places, strict=True):
                builder.store(fused(builder, operand, number, builder.load(place)), place)
        for place, before, more in zip(at, (row, numbers), (a_step, b_step), strict=True):
            builder.store(unseen(builder, builder.gep(before, [more])), place)

    with cgutils.for_range(builder, builder.sdiv(depth, I64(AT_ONCE))) as loop:
        if beside is not None:
            beside(loop.index)
        for _ in range(AT_ONCE):
            step()
    with cgutils.for_range(builder, builder.srem(depth, I64(AT_ONCE))):
        step()
