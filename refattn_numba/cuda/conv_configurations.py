"""The kernels for convolution, and which of them a call gets with how many blocks.

What `configurations` and `hopper` say of shared memory and registers holds for these too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias, get_args

from refattn_numba.cuda.fragments import Element, bytes_of
from refattn_numba.cuda.kernel import Kernel, Parameters
from refattn_numba.cuda.kernels import (
    convolution,
    convolution_odd,
    convolution_sums,
    convolution_weight,
    convolution_weight_odd,
    hopper_convolution,
    hopper_convolution_weight,
)

ConvFace: TypeAlias = Literal["conv_forward", "conv_input", "conv_weight", "conv_bias", "conv_sum"]
SMALL, LARGE = 64, 128
"""Channels of a block; float32, whose sums take more registers, has the small ones."""

WORKSPACE = 2**26
"""Bytes of sums that are kept apart, at most, unless one is more."""


def choose(face: ConvFace, dtype: Element, c_out: int, c_in: int, *, is_odd: bool = False, on_hopper: bool = False) -> Kernel:
    """The kernel for a call.

    Parameters
    ----------
    face : {"conv_forward", "conv_input", "conv_weight", "conv_bias", "conv_sum"}
        What to make.
    dtype : {"bfloat16", "float16", "float32"}
        Of the operands.
    c_out, c_in : int
        Channels of a group.
    is_odd : bool, optional
        Whether rows of an operand begin elsewhere than at multiples of 16 bytes.
    on_hopper : bool, optional
        Whether a kernel for compute capability 9.0 alone may be chosen.

    Returns
    -------
    Kernel
        One of `shipped`, or of `shipped_for_hopper`, whose names say so.

    Raises
    ------
    ValueError
        Where no kernel is shipped for these.
    """
    if dtype not in get_args(Element):
        raise ValueError(f"dtype is {dtype}, but must be one of {', '.join(get_args(Element))}")
    if face in SUMS:
        builder, parameters = SUMS[face]
        return _kernel(f"{face}_{dtype}", builder, convolution_sums.Config(dtype), parameters)
    is_odd = is_odd or (c_out | c_in) * bytes_of(dtype) % 16 != 0
    on_hopper = on_hopper and not is_odd and dtype != "float32"
    if face == "conv_weight" and on_hopper and c_out > SMALL < c_in:
        config = hopper_convolution.Config(dtype, groups=2, columns=_width(c_in, (2 * LARGE, LARGE)), stages=4, few=136, many=184)
        name, builder = f"conv_weight_hopper_{dtype}_{config.columns}", hopper_convolution_weight.hopper_weight_gradient
        return _kernel(name, builder, config, convolution_weight.PARAMETERS)
    if face == "conv_weight":
        return _weight(dtype, SMALL if dtype == "float32" or min(c_out, c_in) <= SMALL else LARGE, is_odd=is_odd)
    made = c_in if face == "conv_input" else c_out
    if on_hopper:
        return _hopper(face, dtype, made)
    return _gathering(face, dtype, SMALL if dtype == "float32" or made <= SMALL else LARGE, is_odd=is_odd)


SUMS: dict[str, tuple[Any, Parameters]] = {
    "conv_bias": (convolution_sums.bias_gradient, convolution_sums.BIAS),
    "conv_sum": (convolution_sums.sum_splits, convolution_sums.SUM),
}
"""Builder and parameters."""


def _gathering(face: str, dtype: Element, channels: int, *, is_odd: bool) -> Kernel:
    """A kernel that makes positions from those that their taps meet."""
    is_input, depth = face == "conv_input", 16 if dtype == "float32" else 32
    if is_odd:
        config, builder = convolution_odd.Config(dtype, is_input, SMALL, depth), convolution_odd.odd_convolution
        return _kernel(f"{face}_{dtype}_odd", builder, config, convolution.PARAMETERS)
    config = convolution.Config(dtype, is_input, 128, channels, depth, 3 if dtype == "float32" else 4)
    return _kernel(f"{face}_{dtype}_{channels}", convolution.convolution, config, convolution.PARAMETERS)


def _hopper(face: str, dtype: Element, made: int) -> Kernel:
    columns = _width(made, (2 * LARGE, LARGE, SMALL))
    config = hopper_convolution.Config(dtype, groups=2, columns=columns, stages=4, few=136, many=184, is_input=face == "conv_input")
    return _kernel(f"{face}_hopper_{dtype}_{columns}", hopper_convolution.hopper_convolution, config, convolution.PARAMETERS)


def _width(channels: int, sizes: tuple[int, ...]) -> int:
    """The widest tile that wastes no more than a narrower one."""
    return min(sizes, key=lambda size: math.ceil(channels / size) * size)


def _weight(dtype: Element, channels: int, *, is_odd: bool) -> Kernel:
    parameters = convolution_weight.PARAMETERS
    if is_odd:
        config = convolution_weight.Config(dtype, SMALL, 16 if dtype == "float32" else 32, stages=2, is_odd=True)
        return _kernel(f"conv_weight_{dtype}_odd", convolution_weight_odd.odd_weight_gradient, config, parameters)
    config = convolution_weight.Config(dtype, channels, 64 if dtype != "float32" and channels == SMALL else 32, 3)
    return _kernel(f"conv_weight_{dtype}_{channels}", convolution_weight.weight_gradient, config, parameters)


def _kernel(name: str, builder: Any, config: Any, parameters: Parameters) -> Kernel:
    return Kernel(name, builder, config, parameters, config.threads, config.shared_bytes, config.tile)


def launched(kernel: Kernel, geometry: Mapping[str, int], splits: int = 1) -> tuple[int, dict[str, int]]:
    """Number of blocks, and the parameters that say how they share the work.

    Parameters
    ----------
    kernel : Kernel
        One of `shipped`.
    geometry : mapping of str to int
        What the kernel is told of sizes, by name.
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
    if kernel.parameters == convolution_sums.SUM:
        return math.ceil(geometry["count"] / kernel.tile), {"splits": splits}
    if kernel.parameters == convolution_sums.BIAS:
        return math.ceil(math.ceil(geometry["channels"] / 32) * splits / config.warps), {"splits": splits}
    groups, c_in, c_out = (geometry[name] for name in ("groups", "c_in", "c_out"))
    if kernel.parameters == convolution_weight.PARAMETERS:
        taps = _product(geometry, "kernel")
        in_columns, apart = (c_in * taps, 1) if config.is_odd else (c_in, taps)
        rows, columns = math.ceil(c_out / kernel.tile), math.ceil(in_columns / config.columns)
        return rows * columns * apart * groups * splits, {"row_tiles": rows, "column_tiles": columns, "splits": splits}
    if config.is_input:
        sizes = [math.ceil(geometry[f"in_{axis}"] / geometry[f"stride_{axis}"]) for axis in "dhw"]
        made, phases = c_in, _product(geometry, "stride")
    else:
        sizes, made, phases = [geometry[f"out_{axis}"] for axis in "dhw"], c_out, 1
    rows, columns = math.ceil(geometry["batch"] * math.prod(sizes) / config.rows), math.ceil(made / config.columns)
    return rows * columns * phases * groups, {"row_tiles": rows, "column_tiles": columns}


def splits_for(kernel: Kernel, geometry: Mapping[str, int], processors: int) -> int:
    """Into how many parts the positions are shared, so that a device is full; for gradients of weights and of a bias.

    Parameters
    ----------
    kernel : Kernel
        Of one of the faces ``conv_weight`` and ``conv_bias``.
    geometry : mapping of str to int
        What the kernel is told of sizes, by name.
    processors : int
        Multiprocessors of the device.

    Returns
    -------
    int
        At least 1.
    """
    positions = geometry["batch"] * _product(geometry, "out")
    if kernel.parameters == convolution_sums.BIAS:
        numbers, depth, wanted = geometry["channels"], 64, 8 * processors
    else:
        numbers = geometry["groups"] * geometry["c_out"] * geometry["c_in"] * _product(geometry, "kernel")
        depth, wanted = 4 * kernel.config.depth, 2 * processors
    of_work = math.ceil(wanted / launched(kernel, geometry)[0])
    return max(1, min(of_work, math.ceil(positions / depth), WORKSPACE // (4 * numbers)))


def _product(geometry: Mapping[str, int], name: str) -> int:
    return math.prod(geometry[f"{name}_{axis}"] for axis in "dhw")


def shipped() -> Iterator[Kernel]:
    """The whole list."""
    for dtype in get_args(Element):
        for face in get_args(ConvFace):
            sizes = (SMALL,) if dtype == "float32" or face in SUMS else (SMALL, LARGE)
            yield from (choose(face, dtype, size, size) for size in (*sizes, *(() if face in SUMS else (1,))))


def shipped_for_hopper() -> Iterator[Kernel]:
    """All that run on compute capability 9.0 alone."""
    for dtype in get_args(Element):
        for face in get_args(ConvFace):
            if dtype != "float32" and face not in SUMS:
                found = {choose(face, dtype, size, size, on_hopper=True).name: size for size in (SMALL, LARGE, 2 * LARGE)}
                yield from (choose(face, dtype, size, size, on_hopper=True) for name, size in found.items() if "hopper" in name)
