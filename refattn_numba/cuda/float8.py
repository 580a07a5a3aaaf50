"""Attention of float8 (e4m3): forward alone, on compute capability 9.0, without options of single pairs.

Operands are the numbers that are stored. Where they stand for larger or smaller ones, their factors belong to the caller: the product of
those of queries and keys into `scale`, that of the values onto the output. The result is bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from refattn_numba.cuda import hopper
from refattn_numba.cuda.arrays import DeviceArray, Placed, placed, read
from refattn_numba.cuda.fragments import FLOAT8
from refattn_numba.cuda.kernels.by_columns import TILE, tiles_of

if TYPE_CHECKING:
    from refattn_numba.cuda.kernel import Kernel

INSTEAD = "pass operands in bfloat16, which holds the same numbers"
NOT_POSITIVE = "a scale that is not positive"


def kernels(architecture: str, shared_bytes: int, head_dim: int, value_dim: int, options: Iterable[str]) -> dict[str, Kernel]:
    """Those of a call by face; an error where the device or a size is none for them, or where there are options."""
    if architecture != hopper.ARCHITECTURE:
        raise TypeError(
            f"query is {FLOAT8}, which needs compute capability 9.0 ({hopper.ARCHITECTURE}), but here is {architecture}: {INSTEAD}"
        )
    for name in options:
        raise ValueError(f"{name} is given, but is no option where query is {FLOAT8}: {INSTEAD}")
    for name, size in (("head_dim", head_dim), ("value_dim", value_dim)):
        if not 1 <= size <= hopper.LARGEST:
            raise ValueError(f"{name} is {size}, but must be 1 to {hopper.LARGEST}")
    found = hopper.fitting(FLOAT8, head_dim, value_dim, has_limits=False, shared_limit=shared_bytes)
    if found is None:
        raise ValueError(f"head_dim is {head_dim}, for which {shared_bytes} bytes of shared memory are too few")
    return {"by_columns": hopper.values_by_columns(), "forward": found}


def placed_for_boxes(array: DeviceArray) -> Placed:
    """An operand where it lies, or as a copy where rows share a place or steps go backwards, which boxes cannot."""
    found = placed(array, FLOAT8)
    if (found.row or array.shape[-2] <= 1) and min(found.batch, found.head, found.row) >= 0:
        return found
    return placed(read("copy", array.library.copied(array.owner, FLOAT8), array.library), FLOAT8)


def columns_of(value: DeviceArray, batch: int, sequences: int | None) -> Placed:
    """A new array for values by columns."""
    *_, heads, length, value_dim = value.shape
    made = value.packed((batch, heads, value_dim, tiles_of(length, sequences or 0) * TILE), FLOAT8)
    return placed(made, FLOAT8)
