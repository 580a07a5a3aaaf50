"""The closed list of kernels, and which of them a call gets.

All take at most 99 KB of shared memory, which a block has on every card of compute capability 8.0 and up, and at most 255 registers
without spilling, which `tests/cuda/test_sass.py` holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias, get_args

from refattn_numba.cuda import decode_configurations
from refattn_numba.cuda.fragments import Element
from refattn_numba.cuda.kernel import Kernel, Parameters
from refattn_numba.cuda.kernels import backward_keys, backward_queries, forward, sums

Face: TypeAlias = Literal["forward", "delta", "backward_keys", "backward_queries", "sinks", "sum_bias"]
SIZES = 32, 64, 128, 256
"""Numbers in a row, to which a call's are padded in shared memory."""

SHARED_LIMIT = 101_376
"""Bytes of shared memory that a block has where it has the fewest: compute capability 8.6, 8.9 and 12.0."""

SUMS: dict[Face, tuple[Any, Parameters, int, int]] = {
    "delta": (sums.delta, sums.DELTA, 4, 4),
    "sinks": (sums.sinks, sums.SINKS, 1, 1),
    "sum_bias": (sums.bias, sums.BIAS, 4, 1),
}
"""Builder, parameters, warps, and rows of a warp."""


def _forward(element: Element, size: int, *, has_options: bool) -> forward.Config:
    if element == "float32":
        rows, row_warps, keys, stages = 16, 2 if size == 256 else 4, 64 if size < 128 else 32, 2
    else:
        rows, row_warps, keys, stages = 32 if size < 256 else 16, 4, 64, 3 if size < 128 else 2
    if has_options:
        return forward.Config(element, size, 16, row_warps, 32 if size < 128 else 16, 2, has_options, 2 if size == 256 else 1)
    return forward.Config(element, size, rows, row_warps, keys, stages)


def _backward_queries(element: Element, size: int, *, has_options: bool) -> backward_queries.Config:
    if element == "float32":
        row_warps, parts, keys = {32: (4, 1, 32), 64: (4, 1, 32), 128: (4, 1, 16), 256: (1, 2, 16)}[size]
    else:
        sizes = {32: (4, 1, 64), 64: (4, 1, 64), 128: (4, 1, 32), 256: (4, 1, 16)}
        row_warps, parts, keys = (2, 4, 16) if has_options and size == 256 else sizes[size]
    return backward_queries.Config(element, size, 16, row_warps, parts, min(keys, 16) if has_options else keys, 2, has_options)


def _backward_keys(element: Element, size: int, *, has_options: bool) -> backward_keys.Config:
    if element == "float32":
        row_warps, parts, queries = {32: (4, 1, 32), 64: (4, 1, 32), 128: (2, 2, 16), 256: (1, 4, 16)}[size]
    else:
        sizes = {32: (4, 1, 64), 64: (4, 1, 64), 128: (4, 1, 32), 256: (2, 2, 16)}
        row_warps, parts, queries = {**sizes, 128: (2, 2, 16), 256: (1, 8, 16)}[size] if has_options else sizes[size]
    return backward_keys.Config(element, size, row_warps, parts, min(queries, 16) if has_options else queries, 2, has_options)


ATTENTION: dict[Face, tuple[Any, Any, Parameters]] = {
    "forward": (_forward, forward.forward, forward.PARAMETERS),
    "backward_keys": (_backward_keys, backward_keys.backward_keys, backward_keys.PARAMETERS),
    "backward_queries": (_backward_queries, backward_queries.backward_queries, backward_queries.PARAMETERS),
}
"""Sizes, builder and parameters."""


def choose(
    face: Face, dtype: Element, head_dim: int, value_dim: int, *, has_options: bool = False, shared_limit: int = SHARED_LIMIT
) -> Kernel:
    """The kernel for a call.

    Parameters
    ----------
    face : {"forward", "delta", "backward_keys", "backward_queries", "sinks", "sum_bias"}
        What to make.
    dtype : {"bfloat16", "float16", "float32"}
        Of the operands.
    head_dim, value_dim : int
        At most 256.
    has_options : bool, optional
        Whether there is a mask, a bias, a cap, dropout, or a scale that is not positive.
    shared_limit : int, optional
        Bytes of shared memory that a block may have.

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
    if face in SUMS:
        builder, parameters, warps, rows = SUMS[face]
        config = sums.Config(dtype, warps, rows)
        tile = {"delta": warps * rows, "sinks": 1, "sum_bias": config.threads}[face]
        return Kernel(f"{face}_{dtype}", builder, config, parameters, config.threads, 0, tile)
    for name, size in (("head_dim", head_dim), ("value_dim", value_dim)):
        if not 1 <= size <= SIZES[-1]:
            raise ValueError(f"{name} is {size}, but must be 1 to {SIZES[-1]}")
    size = next(size for size in SIZES if size >= max(head_dim, value_dim))
    configured, builder, parameters = ATTENTION[face]
    config = configured(dtype, size, has_options=has_options)
    if config.shared_bytes > shared_limit:
        raise ValueError(f"shared_limit is {shared_limit} bytes, but {face} of head_dim {size} takes {config.shared_bytes}")
    name = f"{face}_{dtype}_{size}{'_options' if has_options else ''}"
    return Kernel(name, builder, config, parameters, config.threads, config.shared_bytes, config.tile)


def shipped() -> Iterator[Kernel]:
    """The whole list."""
    for dtype in get_args(Element):
        for face in ATTENTION:
            for size in SIZES:
                for has_options in (False, True):
                    yield choose(face, dtype, size, size, has_options=has_options)
        for face in SUMS:
            yield choose(face, dtype, 1, 1)
    yield from decode_configurations.shipped()
