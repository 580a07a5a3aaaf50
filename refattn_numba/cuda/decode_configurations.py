"""The closed list of kernels for caches, which of them a call gets, and into how many splits it cuts them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from refattn_numba.cuda.fragments import Element
from refattn_numba.cuda.kernel import Kernel
from refattn_numba.cuda.kernels import decode, merge

SIZES = 64, 128, 256
"""Numbers in a row, to which a call's are padded in shared memory."""

SPLIT_KEYS, MOST_SPLITS = 256, 128
"""A split has at least so many keys, as each writes sums in float32 and the second kernel reads them; and there are at most so many."""

TILES: dict[tuple[bool, int], tuple[int, int]] = {
    (False, 64): (4, 32), (False, 128): (4, 16), (False, 256): (2, 16), (True, 64): (4, 16), (True, 128): (2, 16), (True, 256): (1, 16),
}  # fmt: skip
"""Warps, and keys of one warp's tile, by whether numbers have 32 bits and by size."""

TILES_OF_CODES = {64: (4, 32), 128: (4, 32), 256: (4, 16)}


def choose(dtype: Element, head_dim: int, value_dim: int, *, has_codes: bool = False) -> Kernel:
    """The kernel that reads the caches.

    Parameters
    ----------
    dtype : {"bfloat16", "float16", "float32"}
        Of the operands.
    head_dim, value_dim : int
        At most 256.
    has_codes : bool, optional
        Whether the caches hold codes of 8 bits, which numbers of 16 bits alone are multiplied by.

    Returns
    -------
    Kernel
        One of `shipped`.

    Raises
    ------
    ValueError
        Where no kernel is shipped for these.
    """
    if dtype not in get_args(Element):
        raise ValueError(f"dtype is {dtype}, but must be one of {', '.join(get_args(Element))}")
    for name, size in (("head_dim", head_dim), ("value_dim", value_dim)):
        if not 1 <= size <= SIZES[-1]:
            raise ValueError(f"{name} is {size}, but must be 1 to {SIZES[-1]}")
    size = next(size for size in SIZES if size >= max(head_dim, value_dim))
    config = decode.Config(dtype, size, *(TILES_OF_CODES[size] if has_codes else TILES[dtype == "float32", size]), has_codes)
    resident = 3 if dtype != "float32" and size < 256 else 1
    name = f"decode_{dtype}_{size}{'_codes' if has_codes else ''}"
    return Kernel(name, decode.decode, config, decode.PARAMETERS, config.threads, config.shared_bytes, decode.ROWS, resident)


def merging(dtype: Element) -> Kernel:
    """The kernel that makes the output of what splits have made."""
    config = merge.Config(dtype, 4, 8)
    return Kernel(f"merge_{dtype}", merge.merge, config, merge.PARAMETERS, config.threads, 0, config.warps)


def splits_for(blocks: int, key_len: int, room: int) -> int:
    """Into how many parts caches of `key_len` positions are cut.

    Parameters
    ----------
    blocks : int
        Of one part: sequences times heads of keys times tiles of rows.
    key_len : int
        Room in each cache; what it holds is known to the device alone, and is cut evenly there.
    room : int
        Blocks that run at the same time.

    Returns
    -------
    int
        As many as fill the device once: a block more would run alone when the others are done.
    """
    return max(1, min(room // max(blocks, 1), key_len // SPLIT_KEYS, MOST_SPLITS))


def shipped() -> Iterator[Kernel]:
    """The whole list."""
    for dtype in get_args(Element):
        for size in SIZES:
            for has_codes in (False, True) if dtype != "float32" else (False,):
                yield choose(dtype, size, size, has_codes=has_codes)
        yield merging(dtype)
