"""What follows the sums of a convolution: a bias, and rows that go to their positions."""

from __future__ import annotations

from typing import Any

from refattn_numba.cuda.fragments import Element, Tile, bytes_of
from refattn_numba.cuda.operations import Operation
from refattn_numba.cuda.pixels import GRID, STEPS, TRIPLE, address_of, is_inside, place_of


def add_bias(element: Element, tile: Tile) -> Operation:
    """A number for each column, at an address that may be 0; `width` columns from the lane's first are there."""
    size = bytes_of(element)

    def run(e: Any, values: Any, address: Any, column: Any, width: Any) -> list[Any]:
        places = [column + (8 * (i // 2) + i % 2) for i in range(tile.of_columns.count)]
        found = [e.load(address + e.wide(c * size), element, (c < width) & (address != 0)) for c in places]
        return [x + found[right // 8 * 2 + right % 2] for (_, _, right), x in zip(tile.places(), values, strict=True)]

    return Operation(run, (tile.kind, "int64", "int32", "int32"), tile.kind)


def store_positions(element: Element, tile: Tile, *, is_odd: bool) -> Operation:
    """Rows of a tile to their positions, columns before `width`; two at once of 16 bits, unless rows may begin at any number.

    `first` is the lane's first position, `column` its first column, `sizes_of_array` bounds what is stored.
    """
    size = bytes_of(element)

    def run(
        e: Any, values: Any, first: Any, count: Any, sizes: Any, scale: Any, start: Any, sizes_of_array: Any, base: Any, steps: Any,
        column: Any, width: Any,
    ) -> None:  # fmt: skip
        rows = []
        for i in range(tile.of_rows.count):
            index = first + 8 * i
            batch, *place = place_of(e, e.select(index < count, index, e.integer(0)), sizes)
            place = [start[a] + scale[a] * place[a] for a in range(3)]
            rows.append((address_of(e, base, [batch, *place], steps), (index < count) & is_inside(e, place, sizes_of_array)))
        places = list(tile.places())
        for i in range(0, len(places), 2):
            r, _, right = places[i]
            row, is_there = rows[r]
            at, there = row + e.wide((column + right) * size), column + right
            first_one, second = is_there & (there < width), is_there & (there + 1 < width)
            if element == "float32" or is_odd:
                for j, valid in enumerate((first_one, second)):
                    x = values[i + j]
                    e.store(at + j * size, e.bits_of(x) if element == "float32" else e.packed(x, x, element), size, valid)
            else:
                e.store(at, e.packed(values[i], values[i + 1], element), 4, second)

    return Operation(run, (tile.kind, *GRID, TRIPLE, "int64", STEPS, "int32", "int32"), None)
