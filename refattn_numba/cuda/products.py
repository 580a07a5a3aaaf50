"""Products of which an operand's rows in shared memory are the numbers that are summed over: a column of it is a row of the product.

Numbers of 16 bits are turned as they are read (ldmatrix.trans). Those of 32 are read one by one; their rows take 32 bytes more than their
numbers, so that four rows and eight columns, which the lanes of a warp read at once, lie in different banks.
"""

from __future__ import annotations

from typing import Any

from refattn_numba.cuda.fragments import Element, Tile, _columns, _left_offset, _multiply, _operand, _right_offset, bytes_of, stride_of
from refattn_numba.cuda.operations import Operation


def deep_stride_of(element: Element, size: int) -> int:
    """Bytes from one row to the next of an operand that is summed over its rows."""
    return stride_of(element, size) + (16 if element == "float32" else 0)


def product(
    element: Element,
    tile: Tile,
    depth: int,
    left_stride: int,
    right_stride: int,
    *,
    is_left_deep: bool = False,
    is_right_deep: bool = False,
) -> Operation:
    """``sums + left @ right.T``; of an operand that is deep the transpose is in shared memory."""
    step = 8 if element == "float32" else 16

    def run(e: Any, sums: Any, left: Any, right: Any, lane: Any) -> list[Any]:
        sums = list(sums)
        for k in range(0, depth, step):
            of_left = [_left(e, element, left, lane, k, m, left_stride, is_deep=is_left_deep) for m in range(0, tile.rows, 16)]
            for n in range(0, tile.columns, 16):
                of_right = _right(e, element, right, lane, k, n, right_stride, is_deep=is_right_deep)
                for half in range(2):
                    for m, a in enumerate(of_left):
                        at = _columns(tile, m, n // 8 + half)
                        sums[at] = _multiply(e, element, sums[at], a, of_right[2 * half : 2 * half + 2])
        return sums

    return Operation(run, (tile.kind, "int32", "int32", "int32"), tile.kind)


def _left(e: Any, element: Element, left: Any, lane: Any, k: int, m: int, stride: int, *, is_deep: bool) -> list[Any]:
    """16 rows from `m` on at step `k`: rows g and g + 8, then the second half of the depth."""
    width = bytes_of(element)
    if not is_deep:
        bits = e.load_matrices(left + _left_offset(e, lane, stride) + (m * stride + k * width), transposed=False)
    elif element == "float32":
        at = left + _single_offset(lane, stride) + (k * stride + m * width)
        bits = [e.load_shared(at + (4 * (i // 2) * stride + 8 * (i % 2) * width)) for i in range(4)]
    else:
        bits = e.load_matrices(left + _right_offset(e, lane, stride) + (k * stride + m * width), transposed=True)
    return _operand(e, element, bits)


def _right(e: Any, element: Element, right: Any, lane: Any, k: int, n: int, stride: int, *, is_deep: bool) -> list[Any]:
    """16 columns from `n` on at step `k`: both halves of the depth of the first eight, then of the others."""
    width = bytes_of(element)
    if not is_deep:
        bits = e.load_matrices(right + _right_offset(e, lane, stride) + (n * stride + k * width), transposed=False)
    elif element == "float32":
        at = right + _single_offset(lane, stride) + (k * stride + n * width)
        bits = [e.load_shared(at + (4 * (i % 2) * stride + 8 * (i // 2) * width)) for i in range(4)]
    else:
        bits = e.load_matrices(right + _left_offset(e, lane, stride) + (k * stride + n * width), transposed=True)
    return _operand(e, element, bits)


def _single_offset(lane: Any, stride: int) -> Any:
    """Of the number that a lane reads first."""
    return (lane & 3) * stride + ((lane >> 2) & 7) * 4
