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

_PAIRS = 0x4140, 0x4342
"""Of four bytes the first two and the last two, each below a byte of another word."""


def code_stride(size: int) -> int:
    """Bytes from one row of codes to the next in shared memory: eight rows are in different banks."""
    return size + 16


def column_of_code(right: int) -> tuple[int, int]:
    """Of the sum that would stand `right` columns after a lane's first: its column, if that first one is counted four times."""
    block, place = divmod(right, 8)
    return block // 4 * 32 + place * 4 + block % 4, 4


def _numbers(e: Any, element: Element, word: Any) -> list[Any]:
    """The four codes of a word, two in a register: below the bits of a number whose last digit counts by ones, of which that is taken off.

    In float16 that is 1024, and a code from 0 to 255. bfloat16 has 7 bits after the first: 128 and what those 7 bits are, less 128 where the
    eighth is 0 and 256 where it is 1.
    """
    if element == "float16":
        flipped, ones, offset = word ^ _FLIPPED, e.integer(0x3C003C00), e.integer(-0x1B7F1B80)  # 1, and -1152 = 0xE480
        return [e.multiply_add_pairs(e.bytes_chosen(flipped, 0x64, which), ones, offset, element) for which in _PAIRS]
    found = [e.bytes_chosen(word, 0x43, which) for which in _PAIRS]
    return [e.multiply_add_pairs(x & -0x7F0080, e.integer(-0x407F4080), x & -0x800081, element) for x in found]  # times -1 = 0xBF80


def product_of_codes(element: Element, tile: Tile, depth: int, left_stride: int) -> Operation:
    """``sums + left @ codes.T``, whose rows are in shared memory at two addresses."""
    stride = code_stride(depth)

    def run(e: Any, sums: Any, left: Any, codes: Any, lane: Any) -> list[Any]:
        sums, row, place = list(sums), (lane >> 2) & 7, (lane & 3) * 4
        left, codes = left + row * left_stride + place * 2, codes + row * stride + place
        for k in range(0, depth, 16):
            a = [e.load_shared(left + (8 * down * left_stride + 2 * k + 4 * i)) for i in range(2) for down in range(2)]
            for n in range(tile.columns // 8):
                b = _numbers(e, element, e.load_shared(codes + (8 * n * stride + k)))
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
                _add_group(e, element, sums, a, words, 4 * group)
        return sums

    return Operation(run, (tile.kind, of_weights.kind, "int32", "int32"), tile.kind)


def _add_group(e: Any, element: Element, sums: list[Any], a: Sequence[Any], rows: Sequence[Any], first: int) -> None:
    """Products with 32 columns, whose blocks from `first` on have every fourth of them; a register has the codes of two rows."""
    columns = [[], [], [], []]
    for upper, lower in ((0, 1), (2, 3)):
        for i, which in ((0, 0x5140), (2, 0x7362)):
            for j, pair in enumerate(_numbers(e, element, e.bytes_chosen(rows[upper], rows[lower], which))):
                columns[i + j].append(pair)
    for i, b in enumerate(columns):
        at = slice(4 * (first + i), 4 * (first + i) + 4)
        sums[at] = e.product(element, sums[at], a, b)
