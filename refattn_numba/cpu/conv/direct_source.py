"""What a task of the direct method reads: in place, or a copy in the thread's memory, which lies as products read it.

A sum goes over the channels of a position. Where these lie pages of memory apart, a core knows too few pages at a time, and waits for
each; where they lie at the same place of each page, they want the same place of its cache too. A task's own copy has neither.
"""

from __future__ import annotations

from typing import Any

from refattn_numba.cpu.conv.layouts import turn_tile
from refattn_numba.cpu.jit import compiled
from refattn_numba.cpu.simd import integers_at, pointer_to
from refattn_numba.cpu.sizes import larger, smaller


@compiled
def inside(row: Any, low: int, high: int) -> tuple[int, int]:
    """The part of a class whose positions lie between two."""
    return (
        larger(0, -((row[0] - low) // row[1])),
        smaller(row[2], -((row[0] - high) // row[1])),
    )


@compiled
def source_of(call: Any, memory: int, tile: Any, block: int, begin: Any, end: Any) -> tuple[Any, int, int, int, int, int]:
    """Where a group's number at n, d, h, w, c would be, and the steps: in place, or in a copy of what a task reads, channels last."""
    source = pointer_to(call.source, tile) + block // call.blocks * call.inner * call.source_c
    if call.at_local == 0:
        return source, call.source_n, call.source_d, call.source_h, call.source_w, call.source_c
    local = pointer_to(memory + call.at_local, tile)
    d, d_end = span_of(call, call.classes_d, call.classes_h, begin[1], end[1])
    h, h_end = span_of(call, call.classes_h, call.classes_w, begin[2], end[2])
    w, w_end = span_of(call, call.classes_w, call.classes_end, begin[3], end[3])
    w_step = call.inner
    h_step = w_step * (w_end - w)
    d_step = h_step * (h_end - h)
    n_step = d_step * (d_end - d)
    whole = (w_end - w) * call.source_w == call.source_h
    times, columns = (1, (h_end - h) * (w_end - w)) if whole else (h_end - h, w_end - w)
    for n in range(begin[0], end[0]):
        for at_d in range(d, d_end):
            for i in range(times):
                at = source + (n * call.source_n + at_d * call.source_d + (h + i) * call.source_h + w * call.source_w)
                out = local + ((n - begin[0]) * n_step + (at_d - d) * d_step + i * h_step)
                turn_tile(at, call.source_c, call.inner, columns, out, call.inner)
    first = local + -(begin[0] * n_step + d * d_step + h * h_step + w * w_step)
    return first, n_step, d_step, h_step, w_step, 1


@compiled
def span_of(call: Any, first: int, last: int, begin: int, end: int) -> tuple[int, int]:
    """What positions from begin to end read along an axis, whose classes are first to last."""
    classes, taps, low, high = integers_at(call.classes), integers_at(call.taps), 0, 0
    for i in range(first, last):
        row = classes + 7 * i
        some = inside(row, begin, end)
        if some[0] < some[1]:
            for t in range(row[5], row[6]):
                least, most = row[3] + row[4] * some[0] + taps[2 * t + 1], row[3] + row[4] * (some[1] - 1) + taps[2 * t + 1]
                low, high = (least, most + 1) if high == 0 else (smaller(low, least), larger(high, most + 1))
    return low, high
