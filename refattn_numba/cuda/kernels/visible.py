"""What is not finite, given to those sums alone that it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refattn_numba.cuda import memory
from refattn_numba.cuda.fragments import Element, bytes_of


def visible_sums(ops: Any, element: Element, rows: int, size: int) -> Callable[..., Any]:
    """The function that adds what is not finite in some rows to the sums of one warp that do not mask it.

    For tiles that held such rows beside masked pairs, which were multiplied without it: its weight has no effect on NaN or infinity.
    A lane has its own columns, and the sums are in global memory already. `low` and `high` bound the source's place less the sum's.
    """
    width = bytes_of(element)
    load, load_bias, load_mask = ops(memory.load_where(element)), ops(memory.load(element)), ops(memory.load("int8"))
    not_finite, add, lane_of = ops(memory.not_finite()), ops(memory.add_not_finite(element)), ops(memory.lane_of())
    nothing = float("-inf")

    def add_visible(
        source, source_step, begin, end, sums, sums_step, first, count, columns, low, high,
        mask, mask_row, mask_column, bias, bias_row, bias_column, thread,
    ):  # fmt: skip
        for place in range(begin, end):
            for column in range(0, size, 32):
                lane = lane_of(thread) + column
                x = load(source + place * source_step + lane * width, columns - lane)
                if not_finite(x) != 0:
                    for row in range(first, min(first + rows, count)):
                        is_visible = low <= place - row <= high
                        if mask != 0:
                            is_visible = is_visible and load_mask(mask + row * mask_row + place * mask_column) != 0
                        if bias != 0:
                            is_visible = is_visible and load_bias(bias + (row * bias_row + place * bias_column) * width) != nothing
                        if is_visible:
                            add(sums + (row - first) * sums_step + lane * width, x)

    return ops.function(add_visible)
