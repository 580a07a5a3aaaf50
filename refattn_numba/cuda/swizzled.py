"""Operations of compute capability 9.0 on tiles that threads gather 16 bytes at a time, in the layout that `warpgroups` tells of."""

from __future__ import annotations

from typing import Any

from refattn_numba.cuda.fragments import Element, Tile, bytes_of
from refattn_numba.cuda.operations import Operation
from refattn_numba.cuda.pixels import Chunks, swizzled_place
from refattn_numba.cuda.warpgroups import BLOCK_BYTES, BLOCK_COLUMNS, DEPTH, ROWS, Steps, _along_rows, _descriptor


def show_copies() -> Operation:
    """Copies of this thread that it has waited for may be read by products, once the warps that multiply know of it."""
    return Operation(lambda e: e.show_copies(), (), None)


def copy_rows(element: Element, rows: int, size: int, threads: int) -> Operation:
    """Start copies of rows, block after block of 64 columns: zeros in place of rows from `count` on and numbers from `width` on."""
    chunks, per_chunk = Chunks(element, rows, BLOCK_COLUMNS, threads), 16 // bytes_of(element)

    def run(e: Any, to: Any, address: Any, step: Any, count: Any, width: Any, thread: Any) -> None:
        row, place = chunks.row(thread), chunks.place(thread)
        to = to + swizzled_place(chunks, thread)
        source = address + (e.wide(row) * step + e.wide(place * 16))
        for i in range(chunks.count):
            down = i * chunks.apart
            for block in range(size // BLOCK_COLUMNS):
                is_there = (row + down < count) & ((place * per_chunk + block * BLOCK_COLUMNS) < width)
                at = e.stepped(source, step, down) + block * BLOCK_BYTES
                e.copy_async(to + (block * rows + down) * BLOCK_BYTES, at, e.select(is_there, e.integer(16), e.integer(0)))

    return Operation(run, ("int32", "int64", "int64", "int32", "int32", "int32"), None)


def product(element: Element, columns: int, *, is_left_deep: bool = False, is_right_deep: bool = False) -> Operation:
    """Start ``sums + left @ right.T`` of 64 rows, 64 deep, at two addresses; of an operand that is deep the transpose is there."""
    deep = tuple(k * DEPTH * BLOCK_BYTES >> 4 for k in range(BLOCK_COLUMNS // DEPTH))
    of_left = deep if is_left_deep else _along_rows(ROWS, BLOCK_COLUMNS)
    of_right = deep if is_right_deep else _along_rows(columns, BLOCK_COLUMNS)
    steps = Steps(columns, of_left, of_right, is_new=False, right_is_rows=not is_right_deep, left_is_rows=not is_left_deep)
    kind = Tile(16, columns).kind
    next_left, next_right = (BLOCK_COLUMNS * BLOCK_BYTES if is_deep else 16 for is_deep in (is_left_deep, is_right_deep))

    def run(e: Any, sums: Any, left: Any, right: Any) -> Any:
        return e.products_start(element, steps, sums, _descriptor(e, left, next_left), _descriptor(e, right, next_right))

    return Operation(run, (kind, "int32", "int32"), kind)
