"""Linear attentions forward: chunk after chunk, with the state in the cache. Columns of the values are independent of each other."""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn._core import Array
from refattn_numba.cpu.jit import kernel
from refattn_numba.cpu.scan_chunk import Operands, Place, advance, keys_scratch, load_keys, load_queries, write
from refattn_numba.cpu.scan_panels import MORE, NEW, START, ceil_to, least, load, multiply, panels, store

SPAN: Any = np.int64(128)  # positions from one state that is kept for the backward pass to the next


@kernel
def forward(operands: Operands, part: int, output: Array, states: Array, end: Array, share: int, shares: int) -> None:
    """Fill `output`, the states before each span, and the last one; a task is `part` columns of the values of one head."""
    query, value = operands.query, operands.value
    head_dim, one = query.shape[3], query.dtype.type(1)
    parts = ceil_to(value.shape[2], part) // part
    s = keys_scratch(operands)
    rows, rows_start, scores, moved = (
        panels(operands.chunk, head_dim, query),
        panels(operands.chunk, head_dim, query),
        panels(operands.chunk, operands.chunk, query),
        panels(operands.chunk, head_dim, query),
    )
    for task in range(share, query.shape[0] * parts, shares):
        head, begin = task // parts, task % parts * part
        columns = least(part, value.shape[2] - begin)
        state, writes, missing, read = (
            panels(head_dim, columns, query),
            panels(operands.chunk, columns, query),
            panels(operands.chunk, columns, query),
            panels(operands.chunk, columns, query),
        )
        load(operands.state[head], START, head_dim, begin, one, state)
        for first in range(0, value.shape[1], operands.chunk):
            at = Place(head, first, least(operands.chunk, value.shape[1] - first), begin, columns)
            if first % SPAN == 0:
                store(state, states[head, first // SPAN], START, head_dim, begin, one)
            load_keys(operands, at, s)
            write(operands, at, s, state, missing, writes)
            for member in range(query.shape[1]):
                load_queries(operands, member, at, s, rows, rows_start, scores, moved)
                multiply(scores, writes, read, at.positions, at.positions, columns, NEW)
                multiply(rows_start, state, read, at.positions, head_dim, columns, MORE)
                store(read, output[head, member], first, at.positions, begin, one)
            advance(operands, at, s, writes, state)
        store(state, end[head], START, head_dim, begin, one)
