"""Rows of attention key by key, for those few in which a product of tiles met what is not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refattn_numba.cuda import memory
from refattn_numba.cuda.fragments import Element, Stored, bytes_of


def exact_rows(ops: Any, element: Stored, rows: int, size: int, result: Element) -> Callable[..., Any]:
    """The function with which a warp makes its rows of the output from the log-sum-exp, looking at no key or value that is masked.

    In a product of tiles the weight 0 of a masked pair times NaN or infinity is NaN. `low` and `high` bound the key's place less the
    query's; a lane has its own columns of the output, which is of type `result`.
    """
    width, of_result = bytes_of(element), bytes_of(result)
    load, load_number, lane_of = ops(memory.load_where(element)), ops(memory.load("float32")), ops(memory.lane_of())
    total_of, exponential, store = ops(memory.whole_warp()), ops(memory.exponential()), ops(memory.store_number(result))
    none = float("-inf")

    def make_rows(
        query, query_step, key, key_step, value, value_step, output, output_step, lse, first, queries, head_dim, value_dim,
        begin, end, low, high, scale, empty, thread,
    ):  # fmt: skip
        lane = lane_of(thread)
        for row in range(first, min(first + rows, queries)):
            of_row = load_number(lse + row * 4)
            for column in range(0, size, 32):
                here = lane + column
                made = load(output, 0)
                for place in range(max(begin, row + low), min(end, row + high + 1)):
                    product = load(output, 0)
                    for inner in range(0, size, 32):
                        at = lane + inner
                        left = head_dim - at
                        product = product + load(query + row * query_step + at * width, left) * load(
                            key + place * key_step + at * width, left
                        )
                    weight = exponential(total_of(product) * scale, of_row, 1)
                    made = made + weight * load(value + place * value_step + here * width, value_dim - here)
                if of_row == none:
                    made = load(output, 0) + empty
                store(output + row * output_step + here * of_result, made, value_dim - here)

    return ops.function(make_rows)
