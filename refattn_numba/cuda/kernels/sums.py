"""The small sums of attention's backward pass: each by the same threads in the same order, so that results repeat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from refattn_numba.cuda import memory
from refattn_numba.cuda.fragments import Element, bytes_of
from refattn_numba.cuda.kernel import Parameters
from refattn_numba.cuda.kernels.place import numbers, strides


class Config(NamedTuple):
    """Sizes that are fixed when the kernel is compiled.

    Attributes
    ----------
    element : str
        Type of the operands.
    warps : int
        In a block.
    rows : int
        Of one warp, or numbers of one thread.
    """

    element: Element
    warps: int
    rows: int = 1

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.warps


DELTA: Parameters = (
    *numbers("pointer", "output", "d_output", "d_lse", "delta"),
    *numbers("int32", "rows", "heads", "query_len", "value_dim"),
    *strides("output", "d_output"),
    *strides("lse", axes=("batch", "head")),
)


def delta(ops: Any, config: Config) -> Callable[..., None]:
    """``delta = rowsum(output * d_output) - d_lse``, which a row of weights loses (FlashAttention-2, algorithm 2, line 4)."""
    element, warps, rows_of_warp, width, zero = config.element, config.warps, config.rows, bytes_of(config.element), np.float32(0)
    this_thread, this_block, quotient = ops(memory.thread()), ops(memory.block()), ops(memory.quotient())
    warp_of, lane_of, whole_warp = ops(memory.warp_of()), ops(memory.lane_of()), ops(memory.whole_warp())
    load, load_lse, store = ops(memory.load_where(element)), ops(memory.load("float32")), ops(memory.store_number("float32"))

    def kernel(
        output, d_output, d_lse, delta, rows, heads, query_len, value_dim,
        output_batch, output_head, output_row, d_output_batch, d_output_head, d_output_row, lse_batch, lse_head,
    ):  # fmt: skip
        thread = this_thread()
        lane = lane_of(thread)
        first = (this_block() * warps + warp_of(thread)) * rows_of_warp
        for index in range(first, min(first + rows_of_warp, rows)):
            rest = quotient(index, query_len)
            row, batch = index - rest * query_len, quotient(rest, heads)
            head = rest - batch * heads
            of_output = output + (batch * output_batch + head * output_head + row * output_row) * width
            of_cotangent = d_output + (batch * d_output_batch + head * d_output_head + row * d_output_row) * width
            total = zero
            for column in range(0, value_dim, 32):
                place, left = (column + lane) * width, value_dim - column - lane
                total = total + load(of_output + place, left) * load(of_cotangent + place, left)
            at = (batch * lse_batch + head * lse_head + row) * 4
            of_lse = load_lse(d_lse + at) if d_lse != 0 else zero
            store(delta + at, whole_warp(total) - of_lse, 1 - lane)

    return kernel


SINKS: Parameters = (
    *numbers("pointer", "sinks", "lse", "delta", "d_sinks"),
    *numbers("int32", "batch", "query_len"),
    *strides("lse", axes=("batch", "head")),
)


def sinks(ops: Any, config: Config) -> Callable[..., None]:
    """Cotangent of a head's sink: minus the sum of its weights times delta. One warp a head."""
    element, width, zero = config.element, bytes_of(config.element), np.float32(0)
    this_thread, this_block, lane_of = ops(memory.thread()), ops(memory.block()), ops(memory.lane_of())
    load, load_where, store = ops(memory.load(element)), ops(memory.load_where("float32")), ops(memory.store_number(element))
    whole_warp, exponential = ops(memory.whole_warp()), ops(memory.exponential())

    def kernel(sinks, lse, delta, d_sinks, batch, query_len, lse_batch, lse_head):
        head, lane, total = this_block(), lane_of(this_thread()), zero
        sink = load(sinks + head * width)
        for b in range(batch):
            at = (b * lse_batch + head * lse_head) * 4
            for row in range(0, query_len, 32):
                place, left = (row + lane) * 4, query_len - row - lane
                weight = exponential(sink, load_where(lse + at + place, left), left)
                total = total - weight * load_where(delta + at + place, left)
        store(d_sinks + head * width, whole_warp(total), 1 - lane)

    return kernel


BIAS: Parameters = (
    *numbers("pointer", "d_bias", "total"),
    *numbers("int32", "batch", "heads", "query_len", "key_len", "keeps_batch", "keeps_head", "keeps_row", "keeps_key"),
)


def bias(ops: Any, config: Config) -> Callable[..., None]:
    """Sum of a cotangent for each pair over the axes that a bias was broadcast along. One thread a number."""
    element, threads, width, zero = config.element, config.threads, bytes_of(config.element), np.float32(0)
    this_thread, this_block, quotient = ops(memory.thread()), ops(memory.block()), ops(memory.quotient())
    load, store = ops(memory.load_where("float32")), ops(memory.store_number(element))

    def kernel(d_bias, total, batch, heads, query_len, key_len, keeps_batch, keeps_head, keeps_row, keeps_key):
        index = this_block() * threads + this_thread()
        kept = keeps_batch * batch, keeps_head * heads, keeps_row * query_len, keeps_key * key_len
        batches, planes, rows, columns = max(kept[0], 1), max(kept[1], 1), max(kept[2], 1), max(kept[3], 1)
        above, next_above = quotient(index, columns), quotient(quotient(index, columns), rows)
        column, row = index - above * columns, above - next_above * rows
        b = quotient(next_above, planes)
        head, left = next_above - b * planes, batches * planes * rows * columns - index
        found = zero
        for i in range(batch if keeps_batch == 0 else 1):
            for j in range(heads if keeps_head == 0 else 1):
                for k in range(query_len if keeps_row == 0 else 1):
                    for m in range(key_len if keeps_key == 0 else 1):
                        place = ((b + i) * heads + head + j) * query_len + row + k
                        found = found + load(d_bias + (place * key_len + column + m) * 4, left)
        store(total + index * width, found, left)

    return kernel
