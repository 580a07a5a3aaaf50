"""Operations that make one softmax of several, each of which has a part of the keys: largest scores in base 2, sums relative to them.

Dao et al., "Flash-Decoding for long-context inference", 2023: parts of a cache, merged by their log-sum-exp. Numbers are added in the order
of the parts, so that results repeat.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refattn_numba.cuda.fragments import LN_2, LOG2_E, Element, Tile, bytes_of, each
from refattn_numba.cuda.operations import Many, Operation


def store_sums(tile: Tile, stride: int, column_of: Callable[[int], tuple[int, int]] = lambda right: (right, 1)) -> Operation:
    """A tile to shared memory in float32, with `stride` bytes from row to row. Row and column are the lane's first.

    `column_of` tells the column of a register, and how many times the lane's first one comes on top.
    """

    def run(e: Any, values: Any, address: Any, row: Any, column: Any) -> None:
        for (_, down, right), x in zip(tile.places(), values, strict=True):
            place, times = column_of(right)
            at = address + row * stride + column * (4 * times)
            e.store_shared(at + (down * stride + place * 4), [e.bits_of(x)], row >= 0)

    return Operation(run, (tile.kind, "int32", "int32", "int32"), None)


def store_of_rows(kind: Many) -> Operation:
    """A number of each of a lane's rows to shared memory, by the first of the four lanes of a row."""

    def run(e: Any, values: Any, address: Any, row: Any, thread: Any) -> None:
        for i, x in enumerate(values):
            e.store_shared(address + (row + 8 * i) * 4, [e.bits_of(x)], (thread & 3) == 0)

    return Operation(run, (kind, "int32", "int32", "int32"), None)


def load_of_parts(count: int, step: int) -> Operation:
    """The number of each part, `step` bytes from one to the next in shared memory."""

    def run(e: Any, address: Any) -> list[Any]:
        return [e.float_of(e.load_shared(address + i * step)) for i in range(count)]

    return Operation(run, ("int32",), Many("float32", count))


def load_from_parts(count: int, absent: float) -> Operation:
    """The number of each part, `step` bytes from one to the next in global memory; `absent` from part `left` on, and if not ``wanted > 0``."""

    def run(e: Any, address: Any, step: Any, left: Any, wanted: Any) -> list[Any]:
        found = [e.load(e.stepped(address, step, i), "float32", (left > i) & (wanted > 0)) for i in range(count)]
        return [e.select(left > i, x, e.number(absent)) for i, x in enumerate(found)]

    return Operation(run, ("int64", "int64", "int32", "int32"), Many("float32", count))


def in_base_2(kind: Many) -> Operation:
    """Logarithms in base 2 of natural ones, or of scores times a factor."""
    return each(kind, lambda e, x, factor: x * factor, "float32")


def largest_of(kind: Many) -> Operation:
    """Of all numbers, and of one more."""

    def run(e: Any, values: Any, largest: Any) -> Any:
        for x in values:
            largest = e.largest(largest, x)
        return largest

    return Operation(run, (kind, "float32"), "float32")


def _share(e: Any, x: Any, largest: Any) -> Any:
    """``2 ** (x - largest)``; 0 where there is nothing."""
    return e.exp2(x - e.select(largest == float("-inf"), e.number(0.0), largest))


def shares(kind: Many) -> Operation:
    """By what sums relative to numbers become such relative to the largest."""
    return each(kind, _share, "float32")


def share() -> Operation:
    """The same of one number."""
    return Operation(_share, ("float32", "float32"), "float32")


def weighted(kind: Many) -> Operation:
    """A number plus the products of two tuples, one after another."""

    def run(e: Any, values: Any, weights: Any, total: Any) -> Any:
        for x, weight in zip(values, weights, strict=True):
            total = e.multiply_add(x, weight, total)
        return total

    return Operation(run, (kind, kind, "float32"), "float32")


def sink_of(element: Element) -> Operation:
    """A sink in base 2; -inf where there is none."""

    def run(e: Any, address: Any) -> Any:
        return e.select(address == 0, e.number(float("-inf")), e.load(address, element, address != 0) * LOG2_E)

    return Operation(run, ("int64",), "float32")


def averaged() -> Operation:
    """A sum over a total, and what stands for it where the total is 0."""
    return Operation(lambda e, x, total, empty: e.select(total == 0.0, empty, x * e.reciprocal(total)), ("float32",) * 3, "float32")


def lse_of() -> Operation:
    """Natural logarithm of a total that is relative to a number in base 2; -inf where it is 0."""

    def run(e: Any, total: Any, largest: Any) -> Any:
        return e.select(total == 0.0, e.number(float("-inf")), (largest + e.log2(total)) * LN_2)

    return Operation(run, ("float32", "float32"), "float32")


def add_hidden(element: Element) -> Operation:
    """A sum, and a number in global memory times a factor where that is not finite; `left` is how many of its row there still are."""

    def run(e: Any, total: Any, address: Any, column: Any, left: Any, factor: Any) -> Any:
        x = e.load(address + e.wide(column * bytes_of(element)), element, (left > 0) & (address != 0))
        return e.select((x - x) != 0.0, total + x * factor, total)

    return Operation(run, ("float32", "int64", "int32", "int32", "float32"), "float32")
