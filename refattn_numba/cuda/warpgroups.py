"""Operations of compute capability 9.0: four warps multiply together what one warp copies for them, while they do something else.

Operands lie in shared memory in blocks of 128 bytes, which are 64 columns, or 128 of 8 bits: row after row, and within each 8 rows the 16
bytes at place c of row r stand at place ``c ^ r``, so that 8 rows of one column lie in different banks (the swizzle of 128 bytes; PTX ISA,
"Asynchronous warpgroup level matrix shared memory layout"). Copies write this layout by themselves, where a block begins at a multiple of
1024 bytes.
Sums of 64 rows are four `Tile`s of 16, one for each warp, and so are what a product takes on its left from registers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from refattn_numba.cuda.fragments import Stored, Tile, bytes_of
from refattn_numba.cuda.operations import Many, Operation

BLOCK_BYTES, BLOCK_COLUMNS, STEP_BYTES, DEPTH = 128, 64, 32, 16
"""Bytes of a row of a block and how many columns of 16 bits these are, and the same of one product's left operand."""

ALIGNMENT = 1024
_SWIZZLE, _EIGHT_ROWS = 1 << 62, (1024 >> 4) << 32
ROWS = 64


class Steps(NamedTuple):
    """A sum of products, of which each is as deep as 32 bytes are numbers.

    Attributes
    ----------
    columns : int
        Of the sums.
    left, right : tuple of int
        How far from its descriptor each step's operand is, in units of 16 bytes; `left` is empty where that is in registers.
    is_new : bool
        Whether sums begin at 0.
    right_is_rows : bool
        Whether the numbers of one column of sums stand in one row of the right operand, or in one column of it.
    left_is_rows : bool
        The same of one row of sums and the left operand in shared memory.
    """

    columns: int
    left: tuple[int, ...]
    right: tuple[int, ...]
    is_new: bool
    right_is_rows: bool
    left_is_rows: bool = True

    @property
    def registers(self) -> int:
        """Of a lane, for 64 rows of sums."""
        return self.columns // 2


# Barriers


def aligned_shared() -> Operation:
    """Where shared memory begins, at a multiple of what swizzled blocks need."""
    return Operation(lambda e: (e.shared() + (ALIGNMENT - 1)) & -ALIGNMENT, (), "int32")


def barrier_init(count: int) -> Operation:
    """A barrier at an address, for so many warps."""
    return Operation(lambda e, address: e.barrier_init(address, count), ("int32",), None)


def barriers_made() -> Operation:
    """All are there; other warps may use them after a barrier of the block."""
    return Operation(lambda e: e.barriers_made(), (), None)


def barrier_arrive() -> Operation:
    """A warp arrives."""
    return Operation(lambda e, address: e.barrier_arrive(address), ("int32",), None)


def barrier_expect(size: int) -> Operation:
    """A warp arrives, and says how many bytes will."""
    return Operation(lambda e, address: e.barrier_expect(address, size), ("int32",), None)


def barrier_wait() -> Operation:
    """Until the phase of a parity has ended."""
    return Operation(lambda e, address, parity: e.barrier_wait(address, parity), ("int32", "int32"), None)


def warp_barrier() -> Operation:
    """What the lanes of a warp have stored is seen by all of them."""
    return Operation(lambda e: e.warp_barrier(), (), None)


def meet(threads: int) -> Operation:
    """Wait at a barrier of this number, from 1 to 15, for so many threads in all."""
    return Operation(lambda e, number: e.meet(number, threads), ("int32",), None)


def announce(threads: int) -> Operation:
    """Arrive there, and go on."""
    return Operation(lambda e, number: e.announce(number, threads), ("int32",), None)


# Copies and registers


def map_acquire() -> Operation:
    """A tensor map that the host wrote may be used by this warp."""
    return Operation(lambda e, tensor_map: e.map_acquire(tensor_map), ("int64",), None)


def blocks_of(columns: int, width: int) -> int:
    """In how many so many columns lie side by side, where a number has `width` bytes; the last may be filled with zeros."""
    return -(-columns * width // BLOCK_BYTES)


def load_rows(rows: int, size: int, width: int = 2) -> Operation:
    """Start to copy rows of one head, `size` columns of them, block after block; their bytes arrive at a barrier.

    Takes where to, the tensor map, the barrier, and the first row, the head and the batch. What lies outside the tensor becomes zeros.
    """

    def run(e: Any, to: Any, tensor_map: Any, barrier: Any, row: Any, head: Any, batch: Any) -> None:
        for i in range(blocks_of(size, width)):
            column = e.integer(i * BLOCK_BYTES // width)
            e.box_load(to + i * rows * BLOCK_BYTES, tensor_map, barrier, (column, row, head, batch))

    return Operation(run, ("int32", "int64", "int32", "int32", "int32", "int32"), None)


def load_columns(rows: int, size: int, width: int) -> Operation:
    """The same of the first rows, from a column on."""

    def run(e: Any, to: Any, tensor_map: Any, barrier: Any, column: Any, head: Any, batch: Any) -> None:
        for i in range(blocks_of(size, width)):
            there = column + i * BLOCK_BYTES // width
            e.box_load(to + i * rows * BLOCK_BYTES, tensor_map, barrier, (there, e.integer(0), head, batch))

    return Operation(run, ("int32", "int64", "int32", "int32", "int32", "int32"), None)


def registers(count: int, *, more: bool) -> Operation:
    """The four warps that execute this have so many each thread from now on."""
    return Operation(lambda e: e.registers(count, more=more), (), None)


def coordinate() -> Operation:
    """Of a head or batch in a tensor map, where all share one if the stride is 0."""
    return Operation(lambda e, place, stride: e.select(stride == 0, e.integer(0), place), ("int32", "int64"), "int32")


# Products


def _descriptor(e: Any, address: Any, block_step: int) -> Any:
    """Of an operand in shared memory: where it is, the bytes to its next block where columns are not summed over, and its swizzle."""
    return e.wide(address >> 4) | (_SWIZZLE | _EIGHT_ROWS | (block_step >> 4) << 16)


def _along_rows(rows: int, depth: int, width: int = 2) -> tuple[int, ...]:
    """Steps through columns: within a block, and from block to block."""
    in_block, steps = BLOCK_BYTES // STEP_BYTES, depth * width // STEP_BYTES
    return tuple((k // in_block * rows * BLOCK_BYTES + k % in_block * STEP_BYTES) >> 4 for k in range(steps))


def product_of_rows(element: Stored, columns: int, depth: int) -> Operation:
    """Start ``left @ right.T`` of 64 rows and `columns` rows at two addresses; to be waited for."""
    of_left, of_right = (_along_rows(rows, depth, bytes_of(element)) for rows in (ROWS, columns))
    steps = Steps(columns, of_left, of_right, is_new=True, right_is_rows=True)
    kind = Tile(16, columns).kind

    def run(e: Any, left: Any, right: Any) -> Any:
        return e.products_start(element, steps, (), _descriptor(e, left, 16), _descriptor(e, right, 16))

    return Operation(run, ("int32", "int32"), kind)


def product_of_weights(element: Stored, size: int, depth: int) -> Operation:
    """Start ``sums + weights @ right``, whose `depth` rows of `size` columns are at an address; to be waited for."""
    steps = Steps(size, (), tuple(k * DEPTH * BLOCK_BYTES >> 4 for k in range(depth // DEPTH)), is_new=False, right_is_rows=False)
    kind = Tile(16, size).kind

    def run(e: Any, sums: Any, weights: Any, right: Any) -> Any:
        return e.products_start(element, steps, sums, weights, _descriptor(e, right, depth * BLOCK_BYTES))

    return Operation(run, (kind, packed_kind(depth), "int32"), kind)


def product_of_weights_by_columns(element: Stored, size: int, depth: int, *, is_new: bool) -> Operation:
    """The same of a right operand whose `size` columns are rows at an address; where it is new, nothing is added to the sums."""
    steps = Steps(size, (), _along_rows(size, depth, bytes_of(element)), is_new=is_new, right_is_rows=True)
    kind = Tile(16, size).kind

    def run(e: Any, sums: Any, weights: Any, right: Any) -> Any:
        return e.products_start(element, steps, () if is_new else sums, weights, _descriptor(e, right, 16))

    return Operation(run, (kind, packed_kind(depth, bytes_of(element)), "int32"), kind)


def packed_kind(columns: int, width: int = 2) -> Many:
    """Registers of weights of so many bytes, 4 to a register."""
    return Many("bits", columns * width // 8)


def packed(element: Stored, columns: int) -> Operation:
    """Weights as a product takes them on its left."""

    def run(e: Any, weights: Any) -> list[Any]:
        return [e.packed(weights[i], weights[i + 1], element) for i in range(0, len(weights), 2)]

    return Operation(run, (Tile(16, columns).kind,), packed_kind(columns))


def products_begin(kind: Many) -> Operation:
    """Sums, and whatever else was written to registers, may be used by products that follow."""
    return Operation(lambda e, sums: e.products_begin(sums), (kind,), kind)


def products_wait(kind: Many, running: int) -> Operation:
    """The sums, once at most so many later groups of products are under way."""
    return Operation(lambda e, sums: e.products_wait(sums, running), (kind,), kind)


def made_before(kind: Many) -> Operation:
    """Sums of weights are made before a wait that follows, so that what they are made of overlaps with what is waited for.

    ptxas moves a wait up, past all that does not need it.
    """

    def run(e: Any, totals: Any) -> None:
        whole = totals[0]
        for x in totals[1:]:
            whole = whole + x
        e.made_before(whole)

    return Operation(run, (kind,), None)


def all_made_before(kind: Many) -> Operation:
    """The same of weights that nobody sums."""

    def run(e: Any, weights: Any) -> None:
        whole = e.bits_of(weights[0])
        for x in weights[1:]:
            whole = whole | e.bits_of(x)
        e.made_before(e.float_of(whole))

    return Operation(run, (kind,), None)


# What is not finite


def has_not_finite(kind: Many) -> Operation:
    """Whether a lane of the warp holds NaN or infinity."""

    def run(e: Any, values: Any) -> Any:
        total = values[0] - values[0]
        for x in values[1:]:
            total = total + (x - x)
        return e.any_lane(total != 0.0)

    return Operation(run, (kind,), "int32")
