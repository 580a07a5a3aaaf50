"""Operations on rows that lie anywhere: a lane of a warp knows where one of them begins, and tells the others."""

from __future__ import annotations

from typing import Any

from refattn_numba.cuda.fragments import Tile, each
from refattn_numba.cuda.operations import Many, Operation

OUTSIDE, MISSING = -2, -1
"""In place of the number of a page: of a position that is not to be read, and of one whose page there is not."""


def warp_barrier() -> Operation:
    """The lanes of a warp wait for each other."""
    return Operation(lambda e: e.warp_barrier(), (), None)


def barrier_any() -> Operation:
    """All threads of the block wait for each other, and learn whether one came with another number than 0."""
    return Operation(lambda e, x: e.barrier_any(x != 0), ("int32",), "int32")


def page_of() -> Operation:
    """The page of a position, for which a table has a row at an address, or the sequence's own number where that is 0.

    Only positions from `begin` to before `end` are looked up, and only pages that are fewer than `pages` are given.
    """

    def run(e: Any, table: Any, index: Any, sequence: Any, pages: Any, position: Any, begin: Any, end: Any) -> Any:
        is_inside = (position >= begin) & (position < end)
        found = e.load(table + e.wide(index) * 4, "int32", is_inside & (table != 0))
        page = e.select(table == 0, sequence, found)
        known = e.select((page >= 0) & (page < pages), page, e.integer(MISSING))
        return e.select(is_inside, known, e.integer(OUTSIDE))

    return Operation(run, ("int64", "int32", "int32", "int32", "int32", "int32", "int32"), "int32")


def any_missing() -> Operation:
    """Whether a lane of the warp has a position whose page there is not."""
    return Operation(lambda e, page: e.any_lane(page == MISSING), ("int32",), "int32")


def address_of_row() -> Operation:
    """Where a row of a page begins, with steps in bytes; 0 unless `is_there` is 0 or more."""

    def run(e: Any, address: Any, page_step: Any, row_step: Any, page: Any, row: Any, is_there: Any) -> Any:
        at = address + e.wide(page) * page_step + e.wide(row) * row_step
        return e.select((is_there >= 0) & (address != 0), at, e.wide(e.integer(0)))

    return Operation(run, ("int64", "int64", "int64", "int32", "int32", "int32"), "int64")


def copy_rows_at(item: int, rows: int, size: int) -> Operation:
    """A warp starts copies of rows to shared memory: lane i has the address of row i, or 0 for one of zeros. Zeros from `width` on.

    A number has `item` bytes, and a row of shared memory 16 more than its numbers.
    """
    stride, per_chunk = size * item + 16, 16 // item
    in_row = size // per_chunk
    bits, last = in_row.bit_length() - 1, in_row - 1

    def run(e: Any, to: Any, address: Any, width: Any, lane: Any) -> None:
        row, place = (lane & 0, lane) if in_row >= 32 else (lane >> bits, lane & last)
        to = to + (row * stride + place * 16)
        for i in range(0, rows * in_row, 32):
            down, right = i >> bits, i & last
            source = e.from_lane(address, row + down)
            left = e.smallest(width - (place + right) * per_chunk, per_chunk) * item
            size = e.select((source != 0) & (left > 0), left, e.integer(0))
            e.copy_async(to + (down * stride + right * 16), source + e.wide(place + right) * 16, size)

    return Operation(run, ("int32", "int64", "int32", "int32"), None)


def load_factor() -> Operation:
    """A float32 at an address, 1 where the address is 0."""

    def run(e: Any, address: Any) -> Any:
        return e.select(address == 0, e.number(1.0), e.load(address, "float32", address != 0))

    return Operation(run, ("int64",), "float32")


def factors_of_columns(tile: Tile) -> Operation:
    """The number of each of a lane's columns, of which lane i has that of column i."""

    def run(e: Any, x: Any, column: Any) -> list[Any]:
        return [e.from_lane(x, column + 8 * (i // 2) + i % 2) for i in range(tile.of_columns.count)]

    return Operation(run, ("float32", "int32"), tile.of_columns)


def times_columns(tile: Tile, *, of_weights: bool = False) -> Operation:
    """Each column times a number; a weight of 0 stays 0, whatever the number."""

    def run(e: Any, values: Any, factors: Any) -> list[Any]:
        made = []
        for (_, _, right), x in zip(tile.places(), values, strict=True):
            product = x * factors[right // 8 * 2 + right % 2]
            made.append(e.select(x == 0.0, x, product) if of_weights else product)
        return made

    return Operation(run, (tile.kind, tile.of_columns), tile.kind)


def positions_of_rows(tile: Tile) -> Operation:
    """Of a lane's rows, where those of `queries` positions follow one another for each head; `row` is the lane's first."""

    def run(e: Any, row: Any, queries: Any, first: Any) -> list[Any]:
        rows = [row + 8 * i for i in range(tile.of_rows.count)]
        return [first + (x - e.quotient(x, queries) * queries) for x in rows]

    return Operation(run, ("int32", "int32", "int32"), Many("int32", tile.of_rows.count))


def masked_by_positions(tile: Tile) -> Operation:
    """-inf where not ``low <= column - position of the row <= high``, and from column `end` on. `column` is the lane's first."""

    def run(e: Any, scores: Any, positions: Any, column: Any, low: Any, high: Any, end: Any) -> list[Any]:
        made = []
        for (r, _, right), x in zip(tile.places(), scores, strict=True):
            place = column + right
            away = place - positions[r]
            made.append(e.select((away >= low) & (away <= high) & (place < end), x, e.number(float("-inf"))))
        return made

    return Operation(run, (tile.kind, Many("int32", tile.of_rows.count), "int32", "int32", "int32", "int32"), tile.kind)


def spoiled(kind: Many) -> Operation:
    """NaN in place of all numbers, where `is_bad` is not 0."""
    return each(kind, lambda e, x, is_bad: e.select(is_bad != 0, e.number(float("nan")), x), "int32")
