"""Rows of attention's cotangents pair by pair, for those few in which a product of tiles met what is not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refattn_numba.cuda import memory
from refattn_numba.cuda.fragments import Element, bytes_of


def exact_gradients(ops: Any, element: Element, rows: int, columns: int, size: int, *, of_keys: bool) -> Callable[..., Any]:
    """The function with which a warp makes the cotangents of its keys and values, or of its queries, looking at no pair that is masked.

    A row is a key and its value, or a query and its output's cotangent, and so are the others, the other way round; those of `members`
    heads follow each other. `low` and `high` bound the other's place less the row's. A lane has its own columns of the sums, of which a
    warp makes some from `offset` on.
    """
    width = bytes_of(element)
    load, load_number, lane_of = ops(memory.load_where(element)), ops(memory.load("float32")), ops(memory.lane_of())
    total_of, exponential, store = ops(memory.whole_warp()), ops(memory.exponential()), ops(memory.store_number(element))

    def dot(left, right, length, lane):
        """Of two rows."""
        product = load(left, 0)
        for inner in range(0, size, 32):
            at = lane + inner
            product = product + load(left + at * width, length - at) * load(right + at * width, length - at)
        return total_of(product)

    dot = ops.function(dot)

    def make_rows(
        left, left_step, left_values, left_values_step, right, right_step, right_head, right_values, right_values_step, right_values_head,
        lse, delta, numbers_head, members, made, made_step, made_values, made_values_step, first, count, head_dim, value_dim, offset,
        begin, end, low, high, scale, thread,
    ):  # fmt: skip
        lane = lane_of(thread)
        for row in range(first, min(first + rows, count)):
            for column in range(0, columns, 32):
                here = lane + (column + offset)
                of_left, of_values = load(left, 0), load(left, 0)
                for member in range(members):
                    numbers = member * numbers_head
                    for place in range(max(begin, row + low), min(end, row + high + 1)):
                        at = right + member * right_head + place * right_step
                        at_values = right_values + member * right_values_head + place * right_values_step
                        query = place if of_keys else row
                        score = dot(left + row * left_step, at, head_dim, lane) * scale
                        weight = exponential(score, load_number(lse + (numbers + query) * 4), 1)
                        d_weight = dot(left_values + row * left_values_step, at_values, value_dim, lane)
                        d_score = weight * (d_weight - load_number(delta + (numbers + query) * 4))
                        of_left = of_left + d_score * load(at + here * width, head_dim - here)
                        if of_keys:
                            of_values = of_values + weight * load(at_values + here * width, value_dim - here)
                store(made + row * made_step + here * width, of_left * scale, head_dim - here)
                if of_keys:
                    store(made_values + row * made_values_step + here * width, of_values, value_dim - here)

    return ops.function(make_rows)
