"""Runs kernels for convolution under the emulator on arrays of NumPy, as the host side does on a device's, and compares them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

import refattn
from refattn_numba.cuda import conv_configurations
from refattn_numba.cuda.kernel import Kernel
from tests.cuda.calls import address, numbers, read_only, stored
from tests.cuda.emulator import launch

CONVOLUTIONS = {1: refattn.conv1d, 2: refattn.conv2d, 3: refattn.conv3d}


class Case(NamedTuple):
    """A convolution in the reference's layout, of numbers that the element holds."""

    element: Any
    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None
    d_y: np.ndarray
    options: dict[str, Any]
    crop: int

    def reference(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Output and gradients; what is cut off before the convolution has a gradient of 0."""
        inner = (..., *(slice(self.crop, None),) * (self.x.ndim - 2))
        y, pullback = CONVOLUTIONS[self.x.ndim - 2].vjp(self.x[inner], self.weight, self.bias, **self.options)
        grads = dict(pullback(self.d_y))
        d_x = np.zeros_like(self.x)
        d_x[inner] = grads["x"]
        return y, {**grads, "x": d_x}

    def geometry(self) -> dict[str, int]:
        """What kernels are told, but for the strides."""
        axes = self.x.ndim - 2

        def three(values: Any, absent: int) -> list[int]:
            return [absent] * (3 - axes) + list(values)

        def each(name: str, absent: int) -> tuple[int, ...]:
            value = self.options.get(name, absent)
            return value if isinstance(value, tuple) else (value,) * axes

        padding = each("padding", 0)
        before = [(p[0] if isinstance(p, tuple) else p) - self.crop for p in padding]
        groups = self.options.get("groups", 1)
        made = {"batch": len(self.x), "groups": groups, "c_in": self.weight.shape[1], "c_out": len(self.weight) // groups}
        per_axis = {
            "in": three(self.x.shape[2:], 1), "out": three(self.d_y.shape[2:], 1), "kernel": three(self.weight.shape[2:], 1),
            "stride": three(each("stride", 1), 1), "dilation": three(each("dilation", 1), 1), "pad": three(before, 0),
        }  # fmt: skip
        return {**made, **{f"{name}_{axis}": n for name, values in per_axis.items() for axis, n in zip("dhw", values, strict=True)}}


def case(
    size: tuple[int, ...] = (6, 7), kernel: tuple[int, ...] = (3, 2), *, element: str = "bfloat16", batch: int = 2, c_in: int = 16, c_out: int = 24,
    groups: int = 1, bias: bool = False, crop: int = 0, seed: int = 0, **options: Any,
) -> Case:  # fmt: skip
    """Drawn operands; channels are those of a group."""
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> np.ndarray:
        return numbers(stored(rng.standard_normal(shape), element))

    x, weight = drawn(batch, groups * c_in, *size), drawn(groups * c_out, c_in, *kernel)
    of_bias = drawn(groups * c_out) if bias else None
    made = Case(element, x, weight, of_bias, x, {**options, "groups": groups}, crop)
    inner = (..., *(slice(crop, None),) * len(size))
    y = CONVOLUTIONS[len(size)](x[inner], weight, **made.options)
    return made._replace(d_y=drawn(*y.shape))


def channels_last(x: np.ndarray, element: str, apart: int = 0) -> np.ndarray:
    """Five axes, as a device holds them; or examples that lie so many numbers apart."""
    axes = x.ndim - 2
    made = stored(np.moveaxis(x, 1, -1).reshape(x.shape[0], *(1,) * (3 - axes), *x.shape[2:], x.shape[1]), element)
    if not apart:
        return made
    whole = np.zeros(apart * len(made) + 8, made.dtype)
    start = -whole.ctypes.data % 16 // whole.itemsize
    far = np.lib.stride_tricks.as_strided(whole[start:], made.shape, (apart * made.itemsize, *made.strides[1:]))
    far[...] = made
    return far


def packed(x: np.ndarray, element: str) -> np.ndarray:
    """A row of numbers with nothing between."""
    return stored(x.reshape(-1), element)


def steps(name: str, x: np.ndarray) -> dict[str, int]:
    return {f"{name}_{axis}": step // x.itemsize for axis, step in zip(("batch", "d", "h", "w"), x.strides, strict=False)}


def gathered(kernel: Kernel, given: Case, activation: int = 0, apart: int = 0, launch: Any = launch) -> np.ndarray:
    """Output of the forward pass, or gradient of the input, in the reference's layout."""
    is_input, element = kernel.config.is_input, given.element
    x = channels_last(np.full_like(given.x, np.nan) if is_input else given.x, element, apart)
    y = channels_last(given.d_y if is_input else np.full_like(given.d_y, np.nan), element, apart)
    weight = packed(np.moveaxis(given.weight, 1, -1), element)
    bias = None if given.bias is None or is_input else packed(given.bias, element)
    geometry = given.geometry()
    blocks, tiles = conv_configurations.launched(kernel, geometry)
    arguments = {**geometry, **tiles, **steps("x", x), **steps("y", y), "activation": activation}
    arguments |= {"x": address(x), "weight": address(weight), "bias": address(bias), "y": address(y)}
    target, source = (x, y) if is_input else (y, x)
    launch(kernel, blocks, arguments, [*(read_only(a) for a in (source, weight, bias) if a is not None), target])
    expected = given.x if is_input else given.d_y
    return np.moveaxis(numbers(target), -1, 1).reshape(expected.shape)


def weight_gradient(kernel: Kernel, of_sum: Kernel, given: Case, splits: int = 1, apart: int = 0, launch: Any = launch) -> np.ndarray:
    """In the reference's layout."""
    element = given.element
    x, y = channels_last(given.x, element, apart), channels_last(given.d_y, element, apart)
    geometry = given.geometry()
    workspace = np.full((splits, given.weight.size), np.nan, np.float32)
    blocks, tiles = conv_configurations.launched(kernel, geometry, splits)
    arguments = {**geometry, **tiles, **steps("x", x), **steps("y", y)}
    arguments |= {"x": address(x), "y": address(y), "workspace": address(workspace)}
    launch(kernel, blocks, arguments, [read_only(x), read_only(y), workspace])
    last = (len(given.weight), *given.weight.shape[2:], given.weight.shape[1])
    return np.moveaxis(summed(of_sum, workspace, element).reshape(last), -1, 1)


def bias_gradient(kernel: Kernel, of_sum: Kernel, given: Case, splits: int = 1) -> np.ndarray:
    """Of each channel."""
    y = channels_last(given.d_y, given.element)
    geometry = {name: n for name, n in given.geometry().items() if name == "batch" or name.startswith("out_")} | {"channels": y.shape[-1]}
    workspace = np.full((splits, y.shape[-1]), np.nan, np.float32)
    blocks, tiles = conv_configurations.launched(kernel, geometry, splits)
    arguments = {**geometry, **tiles, **steps("y", y), "y": address(y), "workspace": address(workspace)}
    launch(kernel, blocks, arguments, [read_only(y), workspace])
    return summed(of_sum, workspace, given.element)


def summed(kernel: Kernel, workspace: np.ndarray, element: str) -> np.ndarray:
    """Over the splits."""
    splits, count = workspace.shape
    output = stored(np.full(count, np.nan), element)
    blocks, tiles = conv_configurations.launched(kernel, {"count": count}, splits)
    arguments = {"workspace": address(workspace), "output": address(output), "count": count, **tiles}
    launch(kernel, blocks, arguments, [read_only(workspace), output])
    return numbers(output)


ROUNDING = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24}
"""Half a unit in the last place, of the smallest number that has this unit."""


def compare(got: np.ndarray, expected: np.ndarray, sizes: np.ndarray, element: str) -> None:
    """One rounding to the element, and of each product's size what float32 loses in sums (of float32 what three products leave out)."""
    allowed = ROUNDING[element] * np.abs(expected) + 2.0**-20 * sizes
    assert (np.abs(got - expected) <= allowed).all(), np.abs(got - expected).max()
