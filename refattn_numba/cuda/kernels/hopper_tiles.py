"""Sizes of the forward kernel for compute capability 9.0, and what numbers of 16 bits and of 8 need differently.

A product takes rows of 8 bits on its right only if what it sums over stands side by side, and so values come from an array in which their
columns are rows (`refattn_numba.cuda.kernels.by_columns`). Weights of 8 bits are made 2**8 times larger: e4m3 then has 4 significant
bits of the largest weight of a row, 256, and of those down to 2**-14 of it, and errs by 2**-18 of it below. A larger factor, up to 448,
would gain less than a bit at the lower end, and rounding would differ in rows whose largest weight differs.

Products of 8 bits keep about 14 bits of their sums (DeepSeek-AI, "DeepSeek-V3 Technical Report", section 3.3.2, arXiv:2412.19437), so
that a sum over thousands of keys would lose what is small. Each tile's product is therefore new, and added to the others in float32: one
instruction a number, as many as to rescale the sums where products add to them. With 256 columns there are no registers for that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from refattn_numba.cuda import eights, fragments, warpgroups
from refattn_numba.cuda.fragments import FLOAT8, Element, Stored, Tile, bytes_of
from refattn_numba.cuda.kernels.by_columns import TILE
from refattn_numba.cuda.operations import Operation
from refattn_numba.cuda.warpgroups import ALIGNMENT, BLOCK_BYTES, ROWS, STEP_BYTES, blocks_of

RAISED = 8
"""Binary exponent of what weights of 8 bits are multiplied with."""

LARGEST_APART = 128
"""Columns of sums up to which a tile's product has registers of its own."""

WARPS, BARRIER_BYTES = 4, 8
"""Of a group of warps, and of a barrier in shared memory."""


class Config(NamedTuple):
    """Sizes that are fixed when the kernel is compiled.

    Attributes
    ----------
    element : str
        Type of the operands, of 16 bits or of 8.
    size : int
        Numbers in a row: a multiple of 64, to which smaller ones are padded with zeros in shared memory.
    groups : int
        Of four warps that have 64 queries each, besides the one that copies.
    keys : int
        In a tile.
    stages : int
        Tiles of keys in shared memory, and as many of values.
    few, many : int
        Registers of a thread of the group that copies, and of the others.
    """

    element: Stored
    size: int
    groups: int
    keys: int
    stages: int
    few: int
    many: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * WARPS * (1 + self.groups)

    @property
    def tile(self) -> int:
        """Queries of a block."""
        return ROWS * self.groups

    @property
    def boxes(self) -> dict[str, int]:
        """Rows that are copied at a time, by operand."""
        return {"query": ROWS, "key": self.keys, "value": self.size if self.is_narrow else self.keys}

    @property
    def barriers(self) -> int:
        """One for the queries, and two for each tile in the ring: that it is full, and that it is empty."""
        return 1 + 4 * self.stages

    @property
    def shared_bytes(self) -> int:
        """Barriers, queries, and the ring of keys and values; and what aligning them may take."""
        return 2 * ALIGNMENT + self.tile * self.row_bytes + 2 * self.stages * self.slot_bytes

    @property
    def is_narrow(self) -> bool:
        """Whether numbers have 8 bits."""
        return bytes_of(self.element) == 1

    @property
    def result(self) -> Element:
        """Type of the output."""
        return "bfloat16" if self.element == FLOAT8 else self.element

    @property
    def of_sinks(self) -> Element:
        """Type of the sinks, which are few."""
        return "float32" if self.element == FLOAT8 else self.element

    @property
    def raised(self) -> int:
        """Weights are larger by two to this."""
        return RAISED if self.is_narrow else 0

    @property
    def are_apart(self) -> bool:
        """Whether each tile's product is added to the sums, and not made in them."""
        return self.is_narrow and self.size <= LARGEST_APART

    @property
    def depth(self) -> int:
        """Numbers that one product sums over."""
        return STEP_BYTES // bytes_of(self.element)

    @property
    def row_bytes(self) -> int:
        """Of a query or key in shared memory."""
        return blocks_of(self.size, bytes_of(self.element)) * BLOCK_BYTES

    @property
    def key_bytes(self) -> int:
        """Of a tile of keys."""
        return self.keys * self.row_bytes

    @property
    def value_bytes(self) -> int:
        """Of a tile of values."""
        return self.size * blocks_of(self.keys, 1) * BLOCK_BYTES if self.is_narrow else self.key_bytes

    @property
    def slot_bytes(self) -> int:
        """Of shared memory for a tile of either."""
        return max(self.key_bytes, self.value_bytes)

    def loads(self) -> tuple[Operation, Operation, Operation]:
        """Of 64 queries, of keys and of values."""
        width = bytes_of(self.element)
        of_keys = warpgroups.load_rows(self.keys, self.size, width)
        of_values = warpgroups.load_columns(self.size, self.keys, width) if self.is_narrow else of_keys
        return warpgroups.load_rows(ROWS, self.size, width), of_keys, of_values

    def product_of_weights(self) -> Operation:
        """Takes the sums, weights, and where values are."""
        if self.is_narrow:
            return warpgroups.product_of_weights_by_columns(self.element, self.size, self.keys, is_new=self.are_apart)
        return warpgroups.product_of_weights(self.element, self.size, self.keys)

    def packed(self) -> Operation:
        """Weights as that product takes them."""
        return eights.packed(self.keys) if self.is_narrow else warpgroups.packed(self.element, self.keys)


def first_of_values(ops: Any, config: Config) -> Callable[..., Any]:
    """The function that says where values of a sequence begin, from where its keys do, and which one it is."""

    def by_columns(start, sequence):
        return (start // TILE + sequence) * TILE

    def by_rows(start, sequence):
        return start

    return ops.function(by_columns if config.is_narrow else by_rows)


def joins(ops: Any, config: Config) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Functions that make the sums anew from what products made, and from by how much they shrink because of the tile before and of this.

    The second is for the last tile, after which nothing shrinks.
    """
    of_sums = Tile(16, config.size)
    scale, add = ops(fragments.scale_rows(of_sums)), ops(fragments.scale_rows_and_add(of_sums))

    def added(sums, made, before, decay):
        return add(sums, before, made)

    def last_added(sums, made, before):
        return add(sums, before, made)

    def made_in_them(sums, made, before, decay):
        return scale(made, decay)

    def last_made_in_them(sums, made, before):
        return made

    first, last = (added, last_added) if config.are_apart else (made_in_them, last_made_in_them)
    return ops.function(first), ops.function(last)
