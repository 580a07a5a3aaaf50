"""One softmax of those that splits of the keys have made: the second kernel for caches.

Dao et al., "Flash-Decoding for long-context inference", 2023. Splits are added in their order, so that results repeat.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from refattn_numba.cuda import fragments, memory, merging
from refattn_numba.cuda.fragments import LOG2_E, Element, bytes_of
from refattn_numba.cuda.kernel import Parameters
from refattn_numba.cuda.kernels.place import numbers
from refattn_numba.cuda.operations import Many


class Config(NamedTuple):
    """Sizes that are fixed when the kernel is compiled.

    Attributes
    ----------
    element : str
        Type of the output.
    warps : int
        In a block; each has 32 columns of one row.
    at_once : int
        Splits that are loaded before the first of them is added.
    """

    element: Element
    warps: int
    at_once: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.warps


PARAMETERS: Parameters = (
    *numbers("pointer", "parts", "parts_lse", "output", "lse"),
    *numbers("int32", "rows", "splits", "value_dim"),
    *numbers("int64", "parts_row", "output_row"),
    ("empty", "float32"),
)


def merge(ops: Any, config: Config) -> Callable[..., None]:
    """The kernel."""
    element, warps, at_once = config
    width, kind = bytes_of(element), Many("float32", at_once)
    log2_e, one, zero, nothing = np.float32(LOG2_E), np.float32(1), np.float32(0), np.float32(-np.inf)
    this_thread, this_block, quotient = ops(memory.thread()), ops(memory.block()), ops(memory.quotient())
    warp_of, lane_of = ops(memory.warp_of()), ops(memory.lane_of())
    load_lse, load_sums = ops(merging.load_from_parts(at_once, -np.inf)), ops(merging.load_from_parts(at_once, 0.0))
    in_base_2, largest_of, shares_of = ops(merging.in_base_2(kind)), ops(merging.largest_of(kind)), ops(merging.shares(kind))
    weighted, ones, averaged, lse_of = (
        ops(merging.weighted(kind)),
        ops(fragments.same(kind)),
        ops(merging.averaged()),
        ops(merging.lse_of()),
    )
    store, store_float = ops(memory.store_number(element)), ops(memory.store_number("float32"))

    def kernel(parts, parts_lse, output, lse, rows, splits, value_dim, parts_row, output_row, empty):
        thread = this_thread()
        lane, groups = lane_of(thread), (value_dim + 31) // 32
        index = this_block() * warps + warp_of(thread)
        row = quotient(index, groups)
        if row >= rows:
            return
        column = (index - row * groups) * 32 + lane
        most, total, made = nothing, zero, zero
        for first in range(0, splits, at_once):
            found = load_lse(parts_lse + (first * rows + row) * 4, rows * 4, splits - first, 1)
            most = largest_of(in_base_2(found, log2_e), most)
        for first in range(0, splits, at_once):
            found = load_lse(parts_lse + (first * rows + row) * 4, rows * 4, splits - first, 1)
            shares = shares_of(in_base_2(found, log2_e), most)
            total = weighted(shares, ones(one), total)
            at, left = parts + ((first * rows + row) * parts_row + column) * 4, splits - first
            made = weighted(load_sums(at, rows * parts_row * 4, left, value_dim - column), shares, made)
        store(output + (row * output_row + column) * width, averaged(made, total, empty), value_dim - column)
        store_float(lse + row * 4, lse_of(total, most), 1 - column)

    return kernel
