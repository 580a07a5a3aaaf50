"""Values that are not finite, given to those sums alone that may see them: as `visible`, for rows that lie in pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refattn_numba.cuda import gathering, memory, merging
from refattn_numba.cuda.fragments import Element


def hidden_values(ops: Any, element: Element) -> Callable[..., Any]:
    """The function that adds what is not finite in the values of positions from `begin` to before `end` to a sum of one row and column.

    For tiles that were multiplied without it, since some rows do not see all of them. The steps are in bytes.
    """
    quotient, page_of, row_at = ops(memory.quotient()), ops(gathering.page_of()), ops(gathering.address_of_row())
    load_factor, add = ops(gathering.load_factor()), ops(merging.add_hidden(element))

    def add_hidden(
        total, column, left, factor, begin, end, table, page_size, sequence, pages, value, page_step, row_step, scale, scale_page, scale_row
    ):  # fmt: skip
        for position in range(begin, end):
            index = quotient(position, page_size)
            page = page_of(table, index, sequence, pages, position, begin, end)
            row = position - index * page_size
            by = load_factor(row_at(scale, scale_page, scale_row, page, row, page))
            total = add(total, row_at(value, page_step, row_step, page, row, page), column, left, by * factor)
        return total

    return ops.function(add_hidden)
