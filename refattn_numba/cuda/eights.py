"""Numbers of 8 bits as products of four warps take them, on compute capability 9.0.

Of each 8 columns of sums a lane t = 0..3 of a row holds 2 t and 2 t + 1, so of 16 columns 2 t, 2 t + 1, 2 t + 8 and 2 t + 9. On the left of
a product it holds places 4 t to 4 t + 3 of each 16 (PTX ISA, "Register fragments for wgmma.mma_async.m64nNk32"). A sum of products has no
order, so weights go from one product into the next without leaving their lane, if only the rows on the right stand in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refattn_numba.cuda.fragments import Tile
from refattn_numba.cuda.operations import Operation
from refattn_numba.cuda.warpgroups import packed_kind

KEY_OF_PLACE = tuple(2 * (place // 4) + place % 2 + 8 * (place % 4 // 2) for place in range(16))
"""Which of 16 columns of sums stands at a place of the left operand."""


def packed(columns: int) -> Operation:
    """Weights as a product takes them on its left."""

    def run(e: Any, weights: Any) -> list[Any]:
        made = []
        for i in range(0, len(weights), 8):  # of 16 columns: two numbers, two of the row 8 further down, and the same 8 columns further on
            upper, lower = (weights[i + j : i + j + 2] + weights[i + 4 + j : i + 6 + j] for j in (0, 2))
            made += [e.packed_eights(upper), e.packed_eights(lower)]
        return made

    return Operation(run, (Tile(16, columns).kind,), packed_kind(columns, 1))


def store_by_columns(stride: int) -> Operation:
    """Four columns of 32 rows of bytes in shared memory as rows in global memory, each 16 bytes in the order `KEY_OF_PLACE`.

    `step` is from row to row there, of which the first `count` are stored.
    """

    def run(e: Any, address: Any, to: Any, step: Any, count: Any) -> None:
        for half in (0, 16):
            rows = [e.load_shared(address + (half + key) * stride) for key in KEY_OF_PLACE]
            turned = [_turned(e, rows[i : i + 4]) for i in range(0, 16, 4)]
            for column in range(4):
                e.store_vector(e.stepped(to + half, step, column), [words[column] for words in turned], count > column)

    return Operation(run, ("int32", "int64", "int64", "int32"), None)


def _turned(e: Any, rows: Sequence[Any]) -> list[Any]:
    """Four registers of four bytes, of which byte j of register i comes to byte i of register j."""
    first, second = ([e.bytes_chosen(rows[i], rows[i + 1], which) for which in (0x5140, 0x7362)] for i in (0, 2))
    return [e.bytes_chosen(a, b, which) for a, b in zip(first, second, strict=True) for which in (0x5410, 0x7632)]
