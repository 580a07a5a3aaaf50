"""The closed list of kernels for compute capability 9.0 alone, and which of them a call gets.

A multiprocessor has 65,536 registers, of which `few` and `many` for each thread take at most all, and 227 KB of shared memory for a block.
Tiles neither spill nor exceed these, as `tests/cuda/test_hopper_sass.py` holds. None of these kernels has run on a GPU yet; where the
environment has REFATTN_CUDA_PORTABLE, no call gets one.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from refattn_numba.cuda.fragments import FLOAT8, Eight, Stored
from refattn_numba.cuda.kernel import Kernel
from refattn_numba.cuda.kernels import by_columns, hopper_backward, hopper_forward

if TYPE_CHECKING:
    from refattn_numba.cuda.driver import Facts
    from refattn_numba.cuda.fragments import Element

CAPABILITY, ARCHITECTURE = (9, 0), "sm_90a"
Short: TypeAlias = Literal["bfloat16", "float16"]
Face: TypeAlias = Literal["forward", "backward_keys", "backward_queries"]
SHARED_LIMIT, SIZES = 232_448, (64, 128, 256)

SMALLEST, LARGEST = 33, 256
"""Numbers in a row: with fewer, half of what these kernels multiply would be padding; of 8 bits, no other kernel takes them."""


FACES: tuple[Face, ...] = get_args(Face)


def may_take(facts: Facts) -> bool:
    """Whether a device takes these kernels, and the environment does not forbid it."""
    return facts.capability == CAPABILITY and facts.shared_bytes >= SHARED_LIMIT and not os.environ.get("REFATTN_CUDA_PORTABLE")


def _forward(element: Stored, size: int, *, has_limits: bool) -> hopper_forward.Config:
    if element == FLOAT8:
        return hopper_forward.Config(element, size, groups=2, keys=128, stages=2, few=24, many=240)
    if size == 64:
        return hopper_forward.Config(element, size, groups=3, keys=128, stages=2, few=32, many=160)
    keys = 80 if size == 256 else 128 if has_limits else 176
    return hopper_forward.Config(element, size, groups=2, keys=keys, stages=2, few=24, many=240)


def _backward_keys(element: Element, size: int) -> hopper_backward.Config:
    others = 96 if size == 64 else 64
    return hopper_backward.Config(element, size, True, groups=2, others=others, stages=2, few=32, many=240, shares_rows=size == 256)


def _backward_queries(element: Element, size: int) -> hopper_backward.Config:
    if size == 64:
        return hopper_backward.Config(element, size, False, groups=3, others=80, stages=2, few=32, many=160)
    return hopper_backward.Config(element, size, False, groups=2, others=96 if size == 128 else 48, stages=2, few=48, many=232)


def fitting(
    dtype: str, head_dim: int, value_dim: int, *, has_limits: bool, shared_limit: int = SHARED_LIMIT, face: Face = "forward"
) -> Kernel | None:
    """The kernel for operands of these sizes, without options.

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
    face : {"forward", "backward_keys", "backward_queries"}, optional
        What to make.

    Returns
    -------
    Kernel, or None
        One of `shipped`; None where none fits.
    """
    most = max(head_dim, value_dim)
    size = next((size for size in SIZES if size >= most), None)
    if dtype == FLOAT8:
        is_taken = face == "forward"
    else:
        is_taken = dtype in get_args(Short) and most >= SMALLEST and not os.environ.get("REFATTN_CUDA_PORTABLE")
    if size is None or not is_taken:
        return None
    element: Any = dtype
    if face == "forward":
        config = _forward(element, size, has_limits=has_limits)
        builder, parameters, name = hopper_forward.forward, hopper_forward.PARAMETERS, f"forward_hopper_{dtype}_{size}_{config.keys}"
    else:
        config = (_backward_keys if face == "backward_keys" else _backward_queries)(element, size)
        builder, parameters, name = hopper_backward.backward, hopper_backward.PARAMETERS, f"{face}_hopper_{dtype}_{size}"
    if config.shared_bytes > shared_limit:
        return None
    return Kernel(name, builder, config, parameters, config.threads, config.shared_bytes, config.tile)


def values_by_columns(element: Eight = FLOAT8) -> Kernel:
    """What runs before the forward kernel where operands are of 8 bits."""
    config = by_columns.Config(element)
    name = f"by_columns_{element}"
    return Kernel(name, by_columns.by_columns, config, by_columns.PARAMETERS, config.threads, config.shared_bytes, by_columns.TILE)


def shipped() -> Iterator[Kernel]:
    """The whole list."""
    found: dict[str, Kernel] = {}
    for face, dtype, size, has_limits in itertools.product(FACES, (*get_args(Short), FLOAT8), SIZES, (False, True)):
        kernel = fitting(dtype, size, size, has_limits=has_limits, face=face)
        if kernel is not None:  # as all are but the backward pass in float8
            found[kernel.name] = kernel
    yield from found.values()
    yield values_by_columns()
