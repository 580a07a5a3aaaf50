"""Products of couples of bfloat16 by matrix instructions (AMX), which multiply 16 x 32 by 32 x 16 numbers at once.

A processor with them has eight tile registers, each 16 rows of 64 bytes. One instruction adds to a tile of sums, in float32, the
products of two tiles of couples, summed over the 16 couples of a row of the one and of a column of the other::

                   16 lanes ->                        a block of c has 2 x 2 tiles of sums, and for each 16 couples
                 +------------+                       2 tiles of b and 2 of a are loaded for 4 products: they take
              a  | couples    | 16 couples            64 cycles, loads less
                 +------------+
      16 couples   16 lanes
      +--------+ +------------+
    b | lines  | | sums   c   | 16 lines              for `depth` couples, 16 at a time
      +--------+ +------------+

Rows of a are the lines of a tile of couples as they are (`couples.load_couples`); rows of b are 16 couples that lie side by side: rows
of keys as they are stored, and where the sum runs over keys, `couples.tiled_rows`.

The registers belong to whoever configures them, `take_tiles` to `leave_tiles`, and hold nothing between two products.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from refattn_numba.cpu.instructions import HOST
from refattn_numba.cpu.jit import by_type, compiled
from refattn_numba.cpu.simd import I64, Builder, Value, call_llvm, instruction

SIDE = 16
"""Lines, lanes and couples of a tile."""
TILED = 2 * SIDE
"""Rows that are summed over in one product of tiles; blocks of keys begin at multiples of it where there are tiles."""

I8, NOTHING = ir.IntType(8), ir.VoidType()
BYTES = I8.as_pointer()
ROW_BYTES, TILES = 64, 8
HAS_TILES = HOST.has_tiles
CONFIGURATION = [1, *[0] * 15, *[ROW_BYTES, 0] * TILES, *[0] * 16, *[SIDE] * TILES, *[0] * 8]  # palette; bytes a row; rows


@compiled
def fits(couples: int) -> bool:
    """Whether rows of so many couples are whole tiles, on a processor that has them."""
    return HAS_TILES and couples % SIDE == 0


@instruction
def _configure(typing: Any) -> Any:
    """All tile registers of the thread alike."""

    def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        stated = cgutils.global_constant(builder, "tiles", ir.Constant(ir.ArrayType(I8, len(CONFIGURATION)), CONFIGURATION))
        call_llvm(builder, "llvm.x86.ldtilecfg", NOTHING, builder.bitcast(stated, BYTES))
        return context.get_dummy_value()

    return types.void(), build


@instruction
def _release(typing: Any) -> Any:
    """So that nothing has to be saved when threads change."""

    def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
        call_llvm(builder, "llvm.x86.tilerelease", NOTHING)
        return context.get_dummy_value()

    return types.void(), build


def _only_for_bfloat16(what: Any) -> Any:
    """`what`, in kernels for bfloat16 on a processor that has tiles."""

    def choose(stored: Any) -> Any:
        def act(stored: Any) -> None:
            what()

        def pass_on(stored: Any) -> None:
            pass

        return act if HAS_TILES and stored.dtype == types.uint16 else pass_on

    return choose


take_tiles = by_type(_only_for_bfloat16(_configure))
"""Configure the tile registers of a kernel's thread, where products of what is stored in an array or behind a pointer need them."""
leave_tiles = by_type(_only_for_bfloat16(_release))
"""Give them back."""


def _block(lines: int, widths: int, *, add: bool) -> Any:
    """A block of c of so many tiles."""
    sums = {(i, j): I8(i * widths + j) for i in range(lines) for j in range(widths)}
    left, right = [I8(4 + i) for i in range(lines)], [I8(6 + j) for j in range(widths)]

    @instruction
    def block(typing: Any, a: Any, a_step: Any, b: Any, b_line: Any, b_next: Any, depth: Any, c: Any, c_step: Any) -> Any:
        def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
            a, a_step, b, b_line, b_next, depth, c, c_step = args

            def rows(what: str, tile: Value, start: Value, *index: Value, stride: Value) -> None:
                address = builder.gep(start, [functools.reduce(builder.add, index)])
                call_llvm(builder, f"llvm.x86.{what}", NOTHING, tile, builder.bitcast(address, BYTES), stride)

            a_stride, b_stride, c_stride = (
                builder.mul(step, I64(p.dtype.bitwidth // 8))
                for step, p in ((a_step, sig.args[0]), (b_line, sig.args[2]), (c_step, sig.args[6]))
            )
            places = {(i, j): (builder.mul(c_step, I64(i * SIDE)), I64(j * SIDE)) for i, j in sums}
            for place, tile in sums.items():
                if add:
                    rows("tileloadd64", tile, c, *places[place], stride=c_stride)
                else:
                    call_llvm(builder, "llvm.x86.tilezero", NOTHING, tile)
            with cgutils.for_range(builder, depth) as loop:
                of_b, of_a = builder.mul(loop.index, b_next), builder.mul(loop.index, builder.mul(a_step, I64(SIDE)))
                for i, tile in enumerate(left):
                    rows("tileloadd64", tile, b, of_b, builder.mul(b_line, I64(i * SIDE)), stride=b_stride)
                for j, tile in enumerate(right):
                    rows("tileloadd64", tile, a, of_a, I64(j * SIDE), stride=a_stride)
                for (i, j), tile in sums.items():
                    call_llvm(builder, "llvm.x86.tdpbf16ps", NOTHING, tile, left[i], right[j])
            for place, tile in sums.items():
                rows("tilestored64", tile, c, *places[place], stride=c_stride)
            return context.get_dummy_value()

        index = types.intp
        return types.void(a, index, b, index, index, index, c, index), build

    return block


@compiled
def _no_product(a: Any, a_step: int, b: Any, b_line: int, b_next: int, lines: int, depth: int, c: Any, c_step: int, width: int) -> None:
    """Where there are no tiles, nothing `fits` them."""


def _product(*, add: bool) -> Callable[..., None]:
    """The product of whole tiles, to which `lines`, `width` and the couples of `depth` are rounded up."""
    if not HAS_TILES:
        return _no_product
    two, tall, wide, one = (_block(lines, widths, add=add) for lines, widths in ((2, 2), (2, 1), (1, 2), (1, 1)))

    @compiled
    def product(a: Any, a_step: int, b: Any, b_line: int, b_next: int, lines: int, depth: int, c: Any, c_step: int, width: int) -> None:
        """`b_line` is from line to line of b, and `b_next` from 16 couples to the next."""
        steps, line = (depth + SIDE - 1) // SIDE, 0
        while line < lines:
            row, out, at = b + line * b_line, c + line * c_step, 0
            is_tall = line + SIDE < lines
            while at < width:
                is_wide = at + SIDE < width
                if is_tall and is_wide:
                    two(a + at, a_step, row, b_line, b_next, steps, out + at, c_step)
                elif is_tall:
                    tall(a + at, a_step, row, b_line, b_next, steps, out + at, c_step)
                elif is_wide:
                    wide(a + at, a_step, row, b_line, b_next, steps, out + at, c_step)
                else:
                    one(a + at, a_step, row, b_line, b_next, steps, out + at, c_step)
                at += 2 * SIDE
            line += 2 * SIDE

    return product


tiles_product = _product(add=False)
"""``c = b @ a``."""
add_tiles_product = _product(add=True)
"""``c += b @ a``: the sum goes on in c. It is one of rounded numbers, so that float32 has digits to spare."""
