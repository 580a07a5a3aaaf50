"""Products with codes of 8 bits in shared memory, which become numbers of 16 bits on their way: exactly, as these have 8 bits or more.

Four codes are loaded at a time, and the order of what is summed does not matter. So a lane takes 4 neighbours of a row of keys where
mma.m16n8k16 has 2 and 2 that are 8 apart, from the queries and the keys alike; and the columns of values that it takes together lie in
4 blocks of 8 sums, which `column_of_code` puts in order again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refattn_numba.cuda.fragments import Element, Tile
from refattn_numba.cuda.operations import Operation

_FLIPPED = -0x7F7F7F80
"""The highest bit of each byte: what is -128 to 127 becomes 0 to 255."""

_WHOLE, _OFFSET = 0x4B000000, 2.0**23 + 128
"""Bits of 2**23, whose last bits count by ones; and what has to be taken off again."""


def code_stride(size: int) -> int:
    """Bytes from one row of codes to the next in shared memory: eight rows are in different banks."""
    return size + 16


def column_of_code(right: int) -> tuple[int, int]:
    """Of the sum that would stand `right` columns after a lane's first: its column, if that first one is counted four times."""
    block, place = divmod(right, 8)
    return block // 4 * 32 + place * 4 + block % 4, 4


def _numbers(e: Any, word: Any) -> list[Any]:
    """The four codes of a word as float32."""
    bits = word ^ _FLIPPED
    return [e.float_of(((bits >> 8 * i) & 0xFF) | _WHOLE) - _OFFSET for i in range(4)]


def product_of_codes(element: Element, tile: Tile, depth: int, left_stride: int) -> Operation:
    """``sums + left @ codes.T``, whose rows are in shared memory at two addresses."""
    stride = code_stride(depth)

    def run(e: Any, sums: Any, left: Any, codes: Any, lane: Any) -> list[Any]:
        sums, row, place = list(sums), (lane >> 2) & 7, (lane & 3) * 4
        left, codes = left + row * left_stride + place * 2, codes + row * stride + place
        for k in range(0, depth, 16):
            a = [e.load_shared(left + (8 * down * left_stride + 2 * k + 4 * i)) for i in range(2) for down in range(2)]
            for n in range(tile.columns // 8):
                c = _numbers(e, e.load_shared(codes + (8 * n * stride + k)))
                b = [e.packed(c[i], c[i + 1], element) for i in (0, 2)]
                sums[4 * n : 4 * n + 4] = e.product(element, sums[4 * n : 4 * n + 4], a, b)
        return sums

    return Operation(run, (tile.kind, "int32", "int32", "int32"), tile.kind)


def product_of_weights_and_codes(element: Element, tile: Tile, depth: int) -> Operation:
    """``sums + weights @ codes``; the weights are sums of this warp, the rows of codes are in shared memory."""
    stride, of_weights = code_stride(tile.columns), Tile(tile.rows, depth)

    def run(e: Any, sums: Any, weights: Any, codes: Any, lane: Any) -> list[Any]:
        sums = list(sums)
        codes = codes + (lane & 3) * (2 * stride) + ((lane >> 2) & 7) * 4
        for k in range(depth // 16):
            a = [e.packed(weights[i], weights[i + 1], element) for i in range(8 * k, 8 * k + 8, 2)]
            for group in range(tile.columns // 32):
                words = [e.load_shared(codes + ((16 * k + row) * stride + 32 * group)) for row in (0, 1, 8, 9)]
                _add_group(e, element, sums, a, [_numbers(e, word) for word in words], 4 * group)
        return sums

    return Operation(run, (tile.kind, of_weights.kind, "int32", "int32"), tile.kind)


def _add_group(e: Any, element: Element, sums: list[Any], a: Sequence[Any], rows: Sequence[Sequence[Any]], first: int) -> None:
    """Products with 32 columns, whose blocks from `first` on have every fourth of them."""
    for i in range(4):
        at = slice(4 * (first + i), 4 * (first + i) + 4)
        b = [e.packed(rows[j][i], rows[j + 1][i], element) for j in (0, 2)]
        sums[at] = e.product(element, sums[at], a, b)
