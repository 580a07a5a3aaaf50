"""Linear attentions forward: chunk after chunk, with the state in the cache. Columns of the values are independent of each other."""

from __future__ import annotations

from typing import Any

from refattn._core import Array, Integers
from refattn_numba.cpu.jit import compiled, kernel
from refattn_numba.cpu.scan_call import SPAN, Place
from refattn_numba.cpu.scan_chunk import advance, load_keys, load_queries, write
from refattn_numba.cpu.scan_matrices import NEXT, add_multiplied, multiply
from refattn_numba.cpu.simd import next_of, pointer_to
from refattn_numba.cpu.sizes import smaller
from refattn_numba.cpu.tiles import fill, load_rows, store_rows


@kernel
def forward(calls: Any, options: Any, shared: Array, counters: Integers) -> None:
    """Fill `output`, the states before each span, and the last one; a task is some columns of the values of one head."""
    call = calls[0]
    memory = pointer_to(shared.ctypes.data, shared) + next_of(counters, 1) * call.memory_size
    fill_factors(call, memory)
    state, writes, missing = memory + call.at_kept, memory + call.at_writes, memory + call.at_missing
    read, step = memory + call.at_read, call.part_step
    while True:
        task = next_of(counters, 0)
        if task >= call.count * call.parts:
            return
        head, begin = task // call.parts, task % call.parts * call.part
        columns, size = smaller(call.part, call.value_dim - begin), call.head_dim * call.value_dim
        load_state(call, memory, pointer_to(call.state, memory) + (head * size + begin), columns, state)
        for first in range(0, call.length, call.chunk):
            at = Place(head, first, smaller(call.chunk, call.length - first), begin, columns, 0)
            if first % SPAN == 0:
                kept = pointer_to(call.states, memory) + ((head * ((call.length + SPAN - 1) // SPAN) + first // SPAN) * size + begin)
                store_rows(state, step, call.head_dim, columns, 1.0, kept, call.value_dim)
            load_keys(call, memory, at)
            write(call, memory, at, state, missing, writes)
            for member in range(call.group):
                load_queries(call, memory, at, member)
                multiply(memory + call.at_scores, call.chunk_step, writes, at.positions, at.positions, read, step)
                add_multiplied(memory + call.at_queries_start, call.head_step, NEXT, state, at.positions, call.head_dim, read, step)
                row = (head * call.group + member) * call.length + first
                out = pointer_to(call.output, memory) + (row * call.value_dim + begin)
                store_rows(read, step, at.positions, columns, 1.0, out, call.value_dim)
            advance(call, memory, at.positions, writes, state)
        out = pointer_to(call.end, memory) + (head * size + begin)
        store_rows(state, step, call.head_dim, columns, 1.0, out, call.value_dim)


@compiled
def fill_factors(call: Any, memory: Any) -> None:
    """Factors of rows that are loaded: one, and for queries the scale."""
    fill(memory + call.at_ones, call.chunk, 1.0)
    fill(memory + call.at_ones, call.head_dim, 1.0)
    fill(memory + call.at_scales, call.chunk, call.scale)


@compiled
def load_state(call: Any, memory: Any, source: Any, columns: int, state: Any) -> None:
    """Some columns of a state, or of its cotangent."""
    load_rows(source, call.value_dim, call.head_dim, columns, memory + call.at_ones, state, call.part_step)
