"""Values of 8 bits in an array whose rows are their columns, for products that sum over what stands side by side.

Each 16 keys stand there in the order in which weights are (`refattn_numba.cuda.eights`), and a sequence begins at a multiple of a tile:
that with number b, whose keys begin at `start`, at tile ``start // TILE + b``. Places after a sequence's last key are zeros, up to the
tile's end. It is one pass over the values, which reads and writes them once; the product of weights and values reads them once for each
tile of queries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from refattn_numba.cuda import eights, memory
from refattn_numba.cuda.fragments import Eight, stride_of
from refattn_numba.cuda.kernel import Parameters
from refattn_numba.cuda.kernels.place import numbers, places_in, strides

TILE = 128
"""Keys of a block."""

COLUMNS, WARPS = 128, 4
"""That a block makes at a time; a warp has 32 keys, and a lane 4 columns of these."""


class Config(NamedTuple):
    """Nothing but the type.

    Attributes
    ----------
    element : str
        Of the values.
    """

    element: Eight

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * WARPS

    @property
    def shared_bytes(self) -> int:
        """A tile of values."""
        return TILE * stride_of(self.element, COLUMNS)


PARAMETERS: Parameters = (
    *numbers("pointer", "value", "columns", "cu_query", "cu_key"),
    *numbers("int32", "tiles", "kv_heads", "query_len", "key_len", "value_dim", "sequences"),
    *strides("value", "columns"),
)
"""In order; `columns_row` is from one column of values to the next."""


def tiles_of(key_len: int, sequences: int) -> int:
    """How many there are of one head, of which `TILE` columns each stand in its array; no sequences are one that is not packed."""
    return key_len // TILE + sequences if sequences else -(-key_len // TILE)


def by_columns(ops: Any, config: Config) -> Callable[..., None]:
    """The kernel."""
    element, stride = config.element, stride_of(config.element, COLUMNS)
    place, this_thread, this_block = places_in(ops, TILE), ops(memory.thread()), ops(memory.block())
    shared, barrier, commit, wait = ops(memory.shared()), ops(memory.barrier()), ops(memory.commit()), ops(memory.wait(0))
    copy_rows = ops(memory.copy_rows(element, TILE, COLUMNS, config.threads))
    lane_of, warp_of, store = ops(memory.lane_of()), ops(memory.warp_of()), ops(eights.store_by_columns(stride))

    def kernel(
        value, columns, cu_query, cu_key, tiles, kv_heads, query_len, key_len, value_dim, sequences,
        value_batch, value_head, value_row, columns_batch, columns_head, columns_row,
    ):  # fmt: skip
        thread = this_thread()
        first, head, batch, start, keys, _, _, sequence = place(
            this_block(), tiles, kv_heads, cu_key, cu_query, key_len, query_len, sequences
        )
        if first >= keys:
            return
        source = value + (batch * value_batch + head * value_head + (start + first) * value_row)
        to = columns + (batch * columns_batch + head * columns_head + (start // TILE + sequence) * TILE + first + 32 * warp_of(thread))
        mine = shared() + 32 * warp_of(thread) * stride
        for column in range(0, value_dim, COLUMNS):
            barrier()
            copy_rows(shared(), source + column, value_row, keys - first, value_dim - column, thread)
            commit()
            wait()
            barrier()
            lane = lane_of(thread)
            store(mine + 4 * lane, to + (column + 4 * lane) * columns_row, columns_row, value_dim - column - 4 * lane)

    return kernel
