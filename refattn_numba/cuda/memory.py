"""Operations between global memory, shared memory and tiles in registers, and those of a whole block of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from refattn_numba.cuda.fragments import LN_2, LOG2_E, Element, Stored, Tile, bytes_of, each, stride_of
from refattn_numba.cuda.operations import Many, Operation

# What there is one of


def thread() -> Operation:
    """Number in the block."""
    return Operation(lambda e: e.thread(), (), "int32")


def lane_of() -> Operation:
    """Number of a thread in its warp."""
    return Operation(lambda e, thread: thread & 31, ("int32",), "int32")


def warp_of() -> Operation:
    """Number of a thread's warp: the same in all its lanes."""
    return Operation(lambda e, thread: e.first_lane(thread >> 5), ("int32",), "int32")


def first_row() -> Operation:
    """Of those of a lane, in its warp's tile."""
    return Operation(lambda e, thread: (thread >> 2) & 7, ("int32",), "int32")


def first_column() -> Operation:
    """Of those of a lane."""
    return Operation(lambda e, thread: (thread & 3) * 2, ("int32",), "int32")


def block() -> Operation:
    """Number in the grid: the same in all threads."""
    return Operation(lambda e: e.block(), (), "int32")


def shared() -> Operation:
    """Address at which shared memory begins."""
    return Operation(lambda e: e.shared(), (), "int32")


def barrier() -> Operation:
    """All threads of the block wait for each other."""
    return Operation(lambda e: e.barrier(), (), None)


def commit() -> Operation:
    """The copies that a thread has started since the last one are a group."""
    return Operation(lambda e: e.commit(), (), None)


def wait(running: int) -> Operation:
    """Until at most so many of a thread's groups are under way."""
    return Operation(lambda e: e.wait(running), (), None)


def quotient() -> Operation:
    """Of int32 that are not negative."""
    return Operation(lambda e, a, b: e.quotient(a, b), ("int32", "int32"), "int32")


def before() -> Operation:
    """1 where an int64 is below another, else 0."""
    return Operation(lambda e, a, b: e.select(a < b, e.integer(1), e.integer(0)), ("int64", "int64"), "int32")


# Numbers that all threads read


def load(dtype: str) -> Operation:
    """A number at an address, 0 where the address is 0."""
    kind = "float32" if "float" in dtype else "int32"
    return Operation(lambda e, address: e.load(address, dtype, address != 0), ("int64",), kind)


# Tiles of rows


def copy_rows(element: Stored, rows: int, size: int, threads: int, stride: int = 0) -> Operation:
    """Start copies of rows from global to shared memory: zeros in place of rows from `count` on and numbers from `width` on.

    `address` is of the first row, `step` is in bytes, and so is the stride in shared memory, of which 0 is the usual one.
    """
    stride, per_chunk = stride or stride_of(element, size), 16 // bytes_of(element)
    in_row = size // per_chunk
    bits, last = in_row.bit_length() - 1, in_row - 1

    def run(e: Any, to: Any, address: Any, step: Any, count: Any, width: Any, thread: Any) -> None:
        if threads % in_row and in_row % threads:
            raise ValueError(f"{threads} threads, but {in_row} chunks in a row")
        row, place = (thread >> bits, thread & last) if threads >= in_row else (thread & 0, thread)
        to, source = to + (row * stride + place * 16), address + (e.wide(row) * step + e.wide(place * 16))
        for i in range(0, rows * in_row, threads):
            down, right = i >> bits, i & last
            left = e.smallest(width - (place + right) * per_chunk, per_chunk) * bytes_of(element)
            size = e.select((row + down < count) & (left > 0), left, e.integer(0))
            copied = to + (down * stride + right * 16), e.stepped(source, step, down) + right * 16, size
            if i + threads <= rows * in_row:
                e.copy_async(*copied)
            else:
                e.copy_async(*copied, thread + i < rows * in_row)

    return Operation(run, ("int32", "int64", "int64", "int32", "int32", "int32"), None)


def copy_numbers(count: int) -> Operation:
    """Start copies of `count` float32 that stand in a row, zeros from `valid` on; by the block's first threads."""

    def run(e: Any, to: Any, address: Any, valid: Any, thread: Any) -> None:
        source = address + e.select(thread < valid, e.wide(thread * 4), e.wide(e.integer(0)))
        size = e.select(thread < valid, e.integer(4), e.integer(0))
        e.copy_async(to + thread * 4, source, size, thread < count, width=4)

    return Operation(run, ("int32", "int64", "int32", "int32"), None)


def load_row_numbers(tile: Tile) -> Operation:
    """A float32 of each of a lane's rows from global memory; 0 from row `count` on. `row` is the lane's first in the tile at `address`."""

    def run(e: Any, address: Any, row: Any, count: Any) -> list[Any]:
        rows = [row + 8 * i for i in range(tile.of_rows.count)]
        return [e.load(address + e.wide(r * 4), "float32", r < count) for r in rows]

    return Operation(run, ("int64", "int32", "int32"), tile.of_rows)


def store_row_numbers(tile: Tile) -> Operation:
    """The other way: by the first of the four lanes of a row."""

    def run(e: Any, numbers: Any, address: Any, row: Any, count: Any, thread: Any) -> None:
        for i, x in enumerate(numbers):
            place = row + 8 * i
            e.store(address + e.wide(place * 4), e.bits_of(x), 4, (place < count) & ((thread & 3) == 0))

    return Operation(run, (tile.of_rows, "int64", "int32", "int32", "int32"), None)


def load_column_numbers(tile: Tile) -> Operation:
    """A float32 of each of a lane's columns from shared memory, in the order of its registers in one row."""

    def run(e: Any, address: Any, column: Any) -> list[Any]:
        at = address + column * 4
        return [e.float_of(e.load_shared(at + (8 * (i // 2) + i % 2) * 4)) for i in range(tile.of_columns.count)]

    return Operation(run, ("int32", "int32"), tile.of_columns)


def store_rows(element: Element, tile: Tile) -> Operation:
    """A tile to global memory: rows before `count`, columns before `width`. `row` and `column` are the lane's first, `step` is in bytes."""
    size = bytes_of(element)

    def run(e: Any, values: Any, address: Any, step: Any, row: Any, column: Any, count: Any, width: Any) -> None:
        places = list(tile.places())
        for i in range(0, len(places), 2):
            _, down, right = places[i]
            here, there = row + down, column + right
            at = address + (e.wide(here) * step + e.wide(there * size))
            first, second = (here < count) & (there < width), (here < count) & (there + 1 < width)
            if element == "float32":
                e.store(at, e.bits_of(values[i]), 4, first)
                e.store(at + 4, e.bits_of(values[i + 1]), 4, second)
            else:
                pair = e.packed(values[i], values[i + 1], element)
                e.store(at, pair, 4, second)
                e.store(at, pair, 2, first & (there + 1 >= width))

    return Operation(run, (tile.kind, "int64", "int64", "int32", "int32", "int32", "int32"), None)


# Options of single pairs. A pair's place is two numbers and two steps, in elements; rows and columns of the tile may be either.

PLACE = ("int64", "int64", "int64", "int32", "int32", "int32", "int32")
"""Address, steps from row to row and from column to column, the lane's first row and column, and how many of both there are."""


def _pairs(
    e: Any, tile: Tile, values: Any, address: Any, row_step: Any, column_step: Any, row: Any, column: Any, rows: Any, columns: Any
) -> Iterator[tuple[Any, Any, Any]]:
    """Address of each register's pair, whether it is there, and the register. Products are made anew in each turn of a loop, not kept."""
    for (_, down, right), x in zip(tile.places(), values, strict=True):
        here, there = row + down, column + right
        at = e.multiply_add_wide(here, row_step, e.multiply_add_wide(there, column_step, address))
        yield at, (here < rows) & (there < columns) & (address != 0), x


def with_pairs(tile: Tile, dtype: str, size: int, function: Callable[..., Any], *others: Any) -> Operation:
    """``function(machine, x, loaded, ...)`` of each register and the number of its pair in global memory, where there is such an address."""

    def run(
        e: Any, values: Any, address: Any, row_step: Any, column_step: Any, row: Any, column: Any, rows: Any, columns: Any, *more: Any
    ) -> list[Any]:
        made = []
        for at, is_there, x in _pairs(e, tile, values, address, row_step * size, column_step * size, row, column, rows, columns):
            made.append(function(e, x, e.load(at, dtype, is_there), address != 0, *more))
        return made

    return Operation(run, (tile.kind, *PLACE, *others), tile.kind)


def bias_added(element: Element, tile: Tile) -> Operation:
    """Scores plus a bias: -inf where that is, whatever the score."""

    def added(e: Any, x: Any, bias: Any, _: Any) -> Any:
        return e.select(bias == float("-inf"), bias, x + bias)

    return with_pairs(tile, element, bytes_of(element), added)


def masked_by_mask(tile: Tile) -> Operation:
    """-inf where a mask is False."""

    def masked(e: Any, x: Any, found: Any, there_is: Any) -> Any:
        return e.select((found == 0) & there_is, e.number(float("-inf")), x)

    return with_pairs(tile, "int8", 1, masked)


def dropped(tile: Tile) -> Operation:
    """Times a factor where a pair is kept, 0 where not."""

    def drop(e: Any, x: Any, found: Any, there_is: Any, factor: Any) -> Any:
        return e.select((found == 0) & there_is, e.number(0.0), x * factor)

    return with_pairs(tile, "int8", 1, drop, "float32")


def store_pairs(tile: Tile) -> Operation:
    """A float32 of each pair, where there is an address."""

    def run(e: Any, values: Any, address: Any, row_step: Any, column_step: Any, row: Any, column: Any, rows: Any, columns: Any) -> None:
        for at, is_there, x in _pairs(e, tile, values, address, row_step * 4, column_step * 4, row, column, rows, columns):
            e.store(at, e.bits_of(x), 4, is_there)

    return Operation(run, (tile.kind, *PLACE), None)


# Functions of single numbers


def _tanh(e: Any, x: Any) -> Any:
    """Near 0 by its series, for 1 - 2 / (1 + exp(2 x)) cancels there."""
    exponential = e.exp2(x * (2 * LOG2_E))
    far = 1.0 - e.reciprocal(exponential + 1.0) * 2.0
    y = x * x
    series = e.multiply_add(
        y, e.multiply_add(y, e.multiply_add(y, e.number(62 / 2835), e.number(-17 / 315)), e.number(2 / 15)), e.number(-1 / 3)
    )
    near = e.multiply_add(x * y, series, x)
    return e.select((x < 0.3) & (x > -0.3), near, far)


def capped(tile: Tile) -> Operation:
    """``scale * score``, within a cap where that is not 0; the reciprocal of the cap is given too."""

    def cap(e: Any, x: Any, scale: Any, cap: Any, over_cap: Any) -> Any:
        scaled = x * scale
        return e.select(cap == 0.0, scaled, _tanh(e, scaled * over_cap) * cap)

    return each(tile.kind, cap, "float32", "float32", "float32")


def slopes(tile: Tile) -> Operation:
    """Derivatives of `capped` by the scaled scores."""

    def slope(e: Any, x: Any, scale: Any, over_cap: Any) -> Any:
        y = _tanh(e, x * scale * over_cap)
        return 1.0 - y * y

    return each(tile.kind, slope, "float32", "float32")


def natural_lse(kind: Many, raised: int = 0) -> Operation:
    """Natural logarithm of a row's sum, from its largest score, the factor of that in base 2, and what is summed relative to it.

    That is larger by ``2 ** raised``.
    """

    def lse(e: Any, total: Any, largest: Any, factor: Any) -> Any:
        there_is = e.multiply_add(largest, factor, e.log2(total * 2.0**-raised if raised else total)) * LN_2
        return e.select(total == 0.0, e.number(float("-inf")), there_is)

    return each(kind, lse, kind, "float32")


# Single numbers, of the slow ways


def not_finite() -> Operation:
    """Whether a number is NaN or infinite, in any lane of the warp."""
    return Operation(lambda e, x: e.any_lane(_is_not_finite(x)), ("float32",), "int32")


def _is_not_finite(x: Any) -> Any:
    return (x - x) != 0.0


def load_where(dtype: str) -> Operation:
    """A number at an address, 0 where not `left > 0`."""
    return Operation(lambda e, address, left: e.load(address, dtype, left > 0), ("int64", "int32"), "float32")


def add_not_finite(element: Element) -> Operation:
    """Add a number that is not finite to one in global memory; nothing where it is finite."""

    def run(e: Any, address: Any, x: Any) -> None:
        is_bad = _is_not_finite(x)
        total = e.load(address, element, is_bad) + x
        if element == "float32":
            e.store(address, e.bits_of(total), 4, is_bad)
        else:
            e.store(address, e.packed(total, total, element), 2, is_bad)

    return Operation(run, ("int64", "float32"), None)


def whole_warp() -> Operation:
    """Sum over the lanes of a warp, for all of them."""

    def run(e: Any, x: Any) -> Any:
        for distance in (1, 2, 4, 8, 16):
            x = x + e.shuffled(x, distance)
        return x

    return Operation(run, ("float32",), "float32")


def exponential() -> Operation:
    """``exp(x - lse)``; 0 where `lse` is -inf, and where not `left > 0`."""

    def run(e: Any, x: Any, lse: Any, left: Any) -> Any:
        return e.select((lse == float("-inf")) | (left <= 0), e.number(0.0), e.exp2((x - lse) * LOG2_E))

    return Operation(run, ("float32", "float32", "int32"), "float32")


def store_number(element: Element) -> Operation:
    """A number to global memory, where `left > 0`."""

    def run(e: Any, address: Any, x: Any, left: Any) -> None:
        bits = e.bits_of(x) if element == "float32" else e.packed(x, x, element)
        e.store(address, bits, bytes_of(element), left > 0)

    return Operation(run, ("int64", "float32", "int32"), None)


def inverse() -> Operation:
    """1 over a number, 0 where that is 0."""
    return Operation(lambda e, x: e.select(x == 0.0, e.number(0.0), e.reciprocal(x)), ("float32",), "float32")
