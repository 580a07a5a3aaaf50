"""Kernels for convolution under the emulator against the reference: emulated, not run on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

import refattn
from refattn_numba.cuda.kernel import Kernel
from refattn_numba.cuda.conv_configurations import choose
from refattn_numba.cuda.kernels import convolution, convolution_odd, convolution_weight, convolution_weight_odd
from tests.cuda.conv_calls import Case, bias_gradient, case, compare, gathered, weight_gradient

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "float16": {"element": "float16"},
    "float32": {"element": "float32", "c_in": 12, "c_out": 20},
    "padding": {"padding": 1, "bias": True},
    "more after": {"padding": ((0, 2), (1, 0)), "stride": 2},
    "stride": {"stride": (2, 3), "padding": 1, "size": (9, 11), "bias": True},
    "stride in float32": {"element": "float32", "stride": 2, "padding": (1, 0), "c_in": 8, "c_out": 8},
    "stride beyond the kernel": {"stride": 3, "kernel": (1, 2), "size": (8, 8)},
    "dilation": {"dilation": (2, 3), "padding": (1, 2), "size": (7, 8)},
    "stride and dilation": {"dilation": (2, 3), "stride": (4, 2), "padding": (3, 4), "size": (11, 13), "kernel": (3, 3)},
    "groups": {"groups": 3, "c_in": 8, "c_out": 16, "bias": True},
    "groups in float32": {"element": "float32", "groups": 2, "c_in": 4, "c_out": 8},
    "many channels": {"c_in": 72, "c_out": 40, "kernel": (1, 1)},
    "cut off": {"crop": 2, "size": (8, 9), "stride": 2},
    "sequence": {"size": (70,), "kernel": (5,), "padding": ((4, 0),), "batch": 1},
    "volume": {"size": (3, 4, 5), "kernel": (2, 3, 2), "padding": (1, 0, 1), "stride": (1, 2, 1), "c_in": 8, "c_out": 8},
    "one position": {"size": (3, 2), "kernel": (3, 2), "batch": 1},
}


def small(element: Any, *, is_input: bool, **more: Any) -> Kernel:
    """A kernel with the shipped ones' source and small tiles, so that a case has several."""
    sizes: dict[str, Any] = {"rows": 32, "columns": 32, "depth": 8 if element == "float32" else 16, "stages": 3, "row_warps": 1, **more}
    config = convolution.Config(element, is_input, **sizes)
    return Kernel("convolution", convolution.convolution, config, convolution.PARAMETERS, config.threads, config.shared_bytes, config.tile)


def small_odd(element: Any, *, is_input: bool, row_warps: int = 1) -> Kernel:
    """The same for any number of channels."""
    config = convolution_odd.Config(element, is_input, 16 * row_warps, 8 if element == "float32" else 16, row_warps, 1)
    builder, parameters = convolution_odd.odd_convolution, convolution.PARAMETERS
    return Kernel("odd", builder, config, parameters, config.threads, config.shared_bytes, config.tile)


ODD: dict[str, dict[str, Any]] = {
    "odd channels": {"c_in": 3, "c_out": 7, "padding": 1, "bias": True, "stride": (2, 1)},
    "odd channels in float16": {"c_in": 19, "c_out": 1, "element": "float16", "dilation": (1, 2)},
    "odd channels in float32": {"c_in": 5, "c_out": 3, "element": "float32", "stride": 3, "padding": 2},
    "odd groups": {"c_in": 1, "c_out": 2, "groups": 5, "bias": True},
    "odd volume": {"size": (4, 3, 5), "kernel": (3, 2, 2), "c_in": 3, "c_out": 5, "stride": (2, 1, 1), "dilation": (1, 2, 1), "padding": 2},
    "odd sequence": {"size": (41,), "kernel": (4,), "c_in": 2, "c_out": 18, "padding": ((0, 3),), "crop": 1},
}
"""Further ones, whose rows begin anywhere."""


@pytest.mark.parametrize("name", [*ODD, "plain", "stride and dilation", "stride beyond the kernel", "groups in float32", "cut off"])
@pytest.mark.parametrize("face", ["forward", "input"])
def test_odd_channels(face: str, name: str, record_property: Any) -> None:
    given = case(**{**CASES, **ODD}[name])
    record_property("emulated", f"conv_{face}")
    (y, grads), (sizes, of_grads) = given.reference(), sizes_of(given)
    got = gathered(small_odd(given.element, is_input=face == "input"), given)
    compare(got, *((y, sizes) if face == "forward" else (grads["x"], of_grads["x"])), given.element)


def sizes_of(given: Case) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Sums of the absolute values of all products."""
    bias = None if given.bias is None else np.abs(given.bias)
    return given._replace(x=np.abs(given.x), weight=np.abs(given.weight), bias=bias, d_y=np.abs(given.d_y)).reference()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("face", ["forward", "input"])
def test_against_the_reference(face: str, name: str, record_property: Any) -> None:
    given = case(**CASES[name])
    record_property("emulated", f"conv_{face}")
    (y, grads), (sizes, of_grads) = given.reference(), sizes_of(given)
    got = gathered(small(given.element, is_input=face == "input"), given)
    if face == "forward":
        compare(got, y, sizes, given.element)
    else:
        compare(got, grads["x"], of_grads["x"], given.element)


def small_weight(element: Any, **more: Any) -> Kernel:
    """The same for the gradient of weights."""
    sizes: dict[str, Any] = {"size": 32, "depth": 16, "stages": 3, "row_warps": 1, **more}
    config = convolution_weight.Config(element, **sizes)
    builder, parameters = convolution_weight.weight_gradient, convolution_weight.PARAMETERS
    return Kernel("weight", builder, config, parameters, config.threads, config.shared_bytes, config.tile)


def small_odd_weight(element: Any, row_warps: int = 1) -> Kernel:
    """The same for any number of channels."""
    config = convolution_weight_odd.Config(element, 16 * row_warps, 8 if element == "float32" else 16, row_warps, 1)
    builder, parameters = convolution_weight_odd.odd_weight_gradient, convolution_weight.PARAMETERS
    return Kernel("odd_weight", builder, config, parameters, config.threads, config.shared_bytes, config.tile)


@pytest.mark.parametrize("name", [*CASES, *ODD, "odd, volume", "odd, stride and dilation", "odd, groups in float32"])
def test_gradient_of_weights(name: str, record_property: Any) -> None:
    given = case(**{**CASES, **ODD}[name.removeprefix("odd, ")])
    record_property("emulated", "conv_weight")
    kernel = (small_odd_weight if name.startswith("odd") else small_weight)(given.element)
    got = weight_gradient(kernel, choose("conv_sum", given.element, 1, 1), given, splits=3)
    compare(got, given.reference()[1]["weight"], sizes_of(given)[1]["weight"], given.element)


@pytest.mark.parametrize("name", [name for name, options in CASES.items() if options.get("bias")])
@pytest.mark.parametrize("splits", [1, 5])
def test_gradient_of_bias(name: str, splits: int, record_property: Any) -> None:
    given = case(**CASES[name])
    record_property("emulated", "conv_bias")
    got = bias_gradient(*(choose(face, given.element, 1, 1) for face in ("conv_bias", "conv_sum")), given, splits)
    compare(got, given.reference()[1]["bias"], sizes_of(given)[1]["bias"], given.element)
