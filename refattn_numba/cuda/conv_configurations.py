"""The kernels for convolution, and which of them a call gets with how many blocks.

What `configurations` says of shared memory and registers holds for these too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias, get_args

from refattn_numba.cuda.fragments import Element, bytes_of
from refattn_numba.cuda.kernel import Kernel, Parameters
from refattn_numba.cuda.kernels import convolution

ConvFace: TypeAlias = Literal["conv_forward", "conv_input"]


def choose(face: ConvFace, dtype: Element, c_out: int, c_in: int, *, is_odd: bool = False) -> Kernel:
    """The kernel for a call.

    Parameters
    ----------
    face : {"conv_forward", "conv_input"}
        What to make.
    dtype : {"bfloat16", "float16", "float32"}
        Of the operands.
    c_out, c_in : int
        Channels of a group.
    is_odd : bool, optional
        Whether rows of an operand begin elsewhere than at multiples of 16 bytes.

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
    made = c_in if face == "conv_input" else c_out
    return _gathering(face, dtype, is_small=dtype == "float32" or made <= SMALL)


SMALL = 64
"""Channels of a block where few are made, and always of float32, whose sums take more registers."""


def _gathering(face: ConvFace, dtype: Element, *, is_small: bool) -> Kernel:
    """A kernel that makes positions from those that their taps meet."""
    depth, stages = (16, 3) if dtype == "float32" else (32, 4)
    config = convolution.Config(dtype, face == "conv_input", 128, SMALL if is_small else 128, depth, stages)
    return _kernel(f"{face}_{dtype}_{config.columns}", convolution.convolution, config, convolution.PARAMETERS)


def _kernel(name: str, builder: Any, config: Any, parameters: Parameters) -> Kernel:
    return Kernel(name, builder, config, parameters, config.threads, config.shared_bytes, config.tile)


def launched(kernel: Kernel, geometry: Mapping[str, int], splits: int = 1) -> tuple[int, dict[str, int]]:
    """Number of blocks, and the parameters that say how they share the work.

    Parameters
    ----------
    kernel : Kernel
        One of `shipped`.
    geometry : mapping of str to int
        The values of `geometry.GEOMETRY`, by name.
    splits : int, optional
        Parts of the positions that are summed apart.

    Returns
    -------
    int
        Blocks of the grid.
    dict of str to int
        Parameters by name.
    """
    config = kernel.config
    if config.is_input:
        sizes = (math.ceil(geometry[f"in_{axis}"] / geometry[f"stride_{axis}"]) for axis in "dhw")
        made, phases = geometry["c_in"], math.prod(geometry[f"stride_{axis}"] for axis in "dhw")
    else:
        sizes, made, phases = (geometry[f"out_{axis}"] for axis in "dhw"), geometry["c_out"], 1
    rows, columns = math.ceil(geometry["batch"] * math.prod(sizes) / config.rows), math.ceil(made / config.columns)
    return rows * columns * phases * geometry["groups"], {"row_tiles": rows, "column_tiles": columns}


def shipped() -> Iterator[Kernel]:
    """The whole list."""
    for dtype in get_args(Element):
        for face in ("conv_forward", "conv_input"):
            for channels in (SMALL,) if dtype == "float32" else (SMALL, SMALL + 1):
                yield choose(face, dtype, channels, channels)
