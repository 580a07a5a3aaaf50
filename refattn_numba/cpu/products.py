"""Products of matrices whose sums stay in registers.

Every product in attention has the form ``c[line, lane] = sum over k of b[line, k] * a[k, lane]``, where a and c have lanes
side by side in memory, and b is read one number at a time, from rows or from columns::

                      lane ->                        a block of c has 4 registers (of lanes) by 6 lines;
                +----+----+----+----+    k           for each k:
             a  | a0 | a1 | a2 | a3 |    |             load 4 registers of a,
                +----+----+----+----+    v             for each of 6 lines: one number of b to all lanes,
      k ->                                                 add 4 products to 4 sums:
      +------+  +----+----+----+----+   line         24 sums, 4 + 1 operands: 29 of 32 registers, and
    b | line |  | c00| c01| c02| c03|    |           24 multiply-adds for 10 loads
      +------+  +----+----+----+----+    v

Where fewer registers are left, more lines take their place. No operand is packed or transposed for a product: keys and values are read where they lie. The lines of the last block
that do not exist repeat the last one, so that nothing outside b is read; c has room for them (`tiles.with_spare_lines`).

Where b points to bfloat16 or to integers of 32 bits, a and b hold couples of bfloat16 (`couples`), and k counts couples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.core import cgutils, types

from refattn_numba.cpu.instructions import HOST
from refattn_numba.cpu.jit import compiled
from refattn_numba.cpu.simd import (
    I64,
    Builder,
    Value,
    Vector,
    constant,
    couple_dot,
    fused,
    instruction,
    lanes_of,
    load_from,
    splat,
    store_to,
)

REGISTERS, LINES = HOST.panel
SPARE = 2 * LINES  # lines that a narrow product writes at a time; more have no registers for their addresses


def _strip(registers: int, update: str) -> Any:
    """The product over `registers` registers of lanes, with as many lines as keep the sums' units busy.

    `update` is what happens to c: "set", "scale", which sets it to the product times a number for each lane, "add", or "decay",
    which multiplies c by that number before adding.
    """
    at_a_time = min(REGISTERS * LINES // registers, SPARE)

    @instruction
    def strip(typing: Any, a: Any, a_step: Any, b: Any, b_line: Any, b_step: Any, lines: Any, depth: Any,
              c: Any, c_step: Any, decay: Any) -> Any:  # fmt: skip
        vector = Vector(c.dtype)
        size, width, b_size, element = c.dtype.bitwidth // 8, vector.lanes, b.dtype.bitwidth // 8, vector.ir.element
        multiply_add = fused if isinstance(b.dtype, types.Float) else couple_dot

        def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
            a, a_step, b, b_line, b_step, lines, depth, c, c_step, decay = args
            lanes = [I64(i * width) for i in range(registers)]
            sums = [[cgutils.alloca_once(builder, vector.ir) for _ in lanes] for _ in range(at_a_time)]
            with cgutils.for_range_slice(builder, I64(0), lines, I64(at_a_time), I64) as (first, _):
                exists = [builder.icmp_signed("<", builder.add(first, I64(j)), lines) for j in range(at_a_time)]
                here = [builder.select(exists[j], builder.add(first, I64(j)), builder.sub(lines, I64(1))) for j in range(at_a_time)]
                rows = [builder.gep(b, [builder.mul(line, b_line)]) for line in here]
                for line in sums:
                    for place in line:
                        builder.store(constant(vector.ir, 0.0), place)
                with cgutils.for_range(builder, depth) as loop:
                    a_row, b_at = builder.gep(a, [builder.mul(loop.index, a_step)]), builder.mul(loop.index, b_step)
                    operands = [load_from(builder, builder.gep(a_row, [lane]), vector.ir, size) for lane in lanes]
                    for row, line in zip(rows, sums, strict=True):
                        number = builder.load(builder.bitcast(builder.gep(row, [b_at]), element.as_pointer()), align=b_size)
                        number = splat(builder, vector.ir, number)
                        for operand, place in zip(operands, line, strict=True):
                            builder.store(multiply_add(builder, operand, number, builder.load(place)), place)
                for j, line in enumerate(sums):
                    out = builder.gep(c, [builder.mul(builder.add(first, I64(j)), c_step)])
                    for lane, place in zip(lanes, line, strict=True):
                        address, value = builder.gep(out, [lane]), builder.load(place)
                        if update == "add":
                            value = builder.fadd(load_from(builder, address, vector.ir, size), value)
                        elif update == "decay":
                            by = load_from(builder, builder.gep(decay, [lane]), vector.ir, size)
                            value = fused(builder, load_from(builder, address, vector.ir, size), by, value)
                        elif update == "scale":
                            value = builder.fmul(value, load_from(builder, builder.gep(decay, [lane]), vector.ir, size))
                        store_to(builder, value, address, size)
            return context.get_dummy_value()

        index = types.intp
        return types.void(a, index, b, index, index, index, index, c, index, decay), build

    return strip


def _product(update: str) -> Callable[..., None]:
    """The product over any width, which is rounded up to whole registers."""
    widest, two, one = (_strip(registers, update) for registers in (REGISTERS, 2, 1))

    @compiled
    def product(
        a: Any, a_step: int, b: Any, b_line: int, b_step: int, lines: int, depth: int, c: Any, c_step: int, width: int, decay: Any
    ) -> None:
        """The last argument points to a number for each lane, where c is to be multiplied by it."""
        lanes, at = lanes_of(c), 0
        while at < width:
            left = width - at
            if left > (REGISTERS - 1) * lanes:
                widest(a + at, a_step, b, b_line, b_step, lines, depth, c + at, c_step, decay + at)
                at += REGISTERS * lanes
            elif left > lanes:
                two(a + at, a_step, b, b_line, b_step, lines, depth, c + at, c_step, decay + at)
                at += 2 * lanes
            else:
                one(a + at, a_step, b, b_line, b_step, lines, depth, c + at, c_step, decay + at)
                at += lanes

    return product


product = _product("set")
"""``c = b @ a``."""
scaled_product = _product("scale")
"""``c = (b @ a) * decay``, the number of each lane."""
add_product = _product("add")
"""``c += b @ a``, where the sum over k is made first and added once, so that rounding errors do not grow with what c holds."""
decay_and_add_product = _product("decay")
"""``c = c * decay + b @ a``, the decay of each lane."""
