"""What attention's backward pass on compute capability 9.0 knows of each query, its log-sum-exp and delta, and what they make of scores.

Nothing here looks whether a number is finite: a weight of 0 times what is not makes a sum that is not, which is noticed and made again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refattn_numba.cuda.fragments import LOG2_E, Tile
from refattn_numba.cuda.operations import Operation


def _shift(e: Any, lse: Any) -> Any:
    """What a query adds to its scores in base 2; 0 for one that attends nowhere, whose scores are all -inf."""
    return e.select(lse == float("-inf"), e.number(0.0), lse * -LOG2_E)


def row_shifts(tile: Tile) -> Operation:
    """Of a lane's rows, from their log-sum-exp in global memory; `row` is the lane's first of `count`."""

    def run(e: Any, lse: Any, row: Any, count: Any) -> list[Any]:
        rows = [row + 8 * i for i in range(tile.of_rows.count)]
        return [_shift(e, e.load(lse + e.wide(r * 4), "float32", r < count)) for r in rows]

    return Operation(run, ("int64", "int32", "int32"), tile.of_rows)


def put_numbers(columns: int) -> Operation:
    """By one warp to shared memory: the shifts of so many queries, and then their deltas; zeros from query `count` on."""

    def run(e: Any, to: Any, lse: Any, delta: Any, first: Any, count: Any, thread: Any) -> None:
        for i in range(0, columns, 32):
            here = (thread & 31) + i
            place, is_mine = first + here, here < columns
            is_there, at = is_mine & (place < count), e.wide(place * 4)
            numbers = _shift(e, e.load(lse + at, "float32", is_there)), e.load(delta + at, "float32", is_there)
            for j, x in enumerate(numbers):
                e.store_shared(to + (here + j * columns) * 4, [e.bits_of(x)], is_mine)

    return Operation(run, ("int32", "int64", "int64", "int32", "int32", "int32"), None)


def weights_by_column(tile: Tile) -> Operation:
    """``exp(score - lse)`` from scores, their factor in base 2, and the shifts of columns at an address; `column` is the lane's first.

    Few of the shifts are in registers at a time.
    """

    def run(e: Any, scores: Any, shifts: Any, column: Any, factor: Any) -> list[Any]:
        return _by_column(e, tile, shifts, column, lambda x, i: e.exp2(e.multiply_add(scores[i], factor, x)))

    return Operation(run, (tile.kind, "int32", "int32", "float32"), tile.kind)


def weights_by_row(tile: Tile) -> Operation:
    """The same from the shifts of rows."""

    def run(e: Any, scores: Any, shifts: Any, factor: Any) -> list[Any]:
        return [e.exp2(e.multiply_add(x, factor, shifts[r])) for (r, _, _), x in zip(tile.places(), scores, strict=True)]

    return Operation(run, (tile.kind, tile.of_rows, "float32"), tile.kind)


def cotangents_by_column(tile: Tile) -> Operation:
    """``weight * (d_weight - delta)``, the cotangents of scores, from the deltas of columns at an address."""

    def run(e: Any, weights: Any, d_weights: Any, deltas: Any, column: Any) -> list[Any]:
        return _by_column(e, tile, deltas, column, lambda x, i: weights[i] * (d_weights[i] - x))

    return Operation(run, (tile.kind, tile.kind, "int32", "int32"), tile.kind)


def cotangents_by_row(tile: Tile) -> Operation:
    """The same from the deltas of rows."""

    def run(e: Any, weights: Any, d_weights: Any, deltas: Any) -> list[Any]:
        return [w * (d - deltas[r]) for (r, _, _), w, d in zip(tile.places(), weights, d_weights, strict=True)]

    return Operation(run, (tile.kind, tile.kind, tile.of_rows), tile.kind)


def _by_column(e: Any, tile: Tile, address: Any, column: Any, function: Callable[[Any, int], Any]) -> list[Any]:
    """``function(number, i)`` of each register i of 16 rows and of its column's number in shared memory."""
    made, at = [], address + column * 4
    for i in range(0, tile.kind.count, 4):
        pair = [e.float_of(x) for x in e.load_shared(at + 8 * i, 2)]
        made += [function(pair[j % 2], i + j) for j in range(4)]
    return made
