"""The closed list of kernels for compute capability 9.0 alone, and which of them a call gets.

A multiprocessor has 65,536 registers, of which `few` and `many` for each thread take at most all, and 227 KB of shared memory for a block.
Tiles neither spill nor exceed these, as `tests/cuda/test_hopper_sass.py` holds. None of these kernels has run on a GPU yet; where the
environment has REFATTN_CUDA_PORTABLE, no call gets one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Literal, TypeAlias, get_args

from refattn_numba.cuda.fragments import FLOAT8, Eight, Stored
from refattn_numba.cuda.kernel import Kernel
from refattn_numba.cuda.kernels import by_columns, hopper_forward
from refattn_numba.cuda.kernels.hopper_forward import Config

CAPABILITY, ARCHITECTURE = (9, 0), "sm_90a"
Short: TypeAlias = Literal["bfloat16", "float16"]
SHARED_LIMIT = 232_448

SMALLEST, LARGEST = 33, 256
"""Numbers in a row: with fewer, half of what these kernels multiply would be padding; of 8 bits, no other kernel takes them."""


def _config(element: Stored, size: int, *, has_limits: bool) -> Config:
    if element == FLOAT8:
        return Config(element, size, groups=2, keys=128, stages=2, few=24, many=240)
    if size == 64:
        return Config(element, size, groups=3, keys=128, stages=2, few=32, many=160)
    keys = 80 if size == 256 else 128 if has_limits else 176
    return Config(element, size, groups=2, keys=keys, stages=2, few=24, many=240)


def fitting(dtype: str, head_dim: int, value_dim: int, *, has_limits: bool, shared_limit: int = SHARED_LIMIT) -> Kernel | None:
    """The forward kernel for operands of these sizes, without options.

    Parameters
    ----------
    dtype : str
        Of the operands.
    head_dim, value_dim : int
        Numbers in a row.
    has_limits : bool
        Whether positions limit what is attended, so that smaller tiles leave out more.
    shared_limit : int, optional
        Bytes of shared memory that a block may have.

    Returns
    -------
    Kernel, or None
        One of `shipped`; None where none fits.
    """
    most = max(head_dim, value_dim)
    size = next((size for size in (64, 128, 256) if size >= most), None)
    if size is None or (dtype != FLOAT8 and (dtype not in get_args(Short) or most < SMALLEST or os.environ.get("REFATTN_CUDA_PORTABLE"))):
        return None
    config = _config(dtype, size, has_limits=has_limits)  # pyright: ignore[reportArgumentType]  # it is one of three
    if config.shared_bytes > shared_limit:
        return None
    name = f"forward_hopper_{dtype}_{size}_{config.keys}"
    return Kernel(name, hopper_forward.forward, config, hopper_forward.PARAMETERS, config.threads, config.shared_bytes, config.tile)


def values_by_columns(element: Eight = FLOAT8) -> Kernel:
    """What runs before the forward kernel where operands are of 8 bits."""
    config = by_columns.Config(element)
    name = f"by_columns_{element}"
    return Kernel(name, by_columns.by_columns, config, by_columns.PARAMETERS, config.threads, config.shared_bytes, by_columns.TILE)


def shipped() -> Iterator[Kernel]:
    """The whole list."""
    found: dict[str, Kernel] = {}
    for dtype in (*get_args(Short), FLOAT8):
        for size in (64, 128, 256):
            for has_limits in (False, True):
                kernel = fitting(dtype, size, size, has_limits=has_limits)
                assert kernel is not None  # within the limits, as tests hold
                found[kernel.name] = kernel
    yield from found.values()
    yield values_by_columns()
