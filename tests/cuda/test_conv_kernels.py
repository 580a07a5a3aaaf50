"""Kernels for convolution under the emulator against the reference: emulated, not run on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

import refattn
from refattn_numba.cuda.conv_configurations import choose, splits_for
from refattn_numba.cuda.kernel import Kernel
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
    depth = 8 if element == "float32" else 16
    config = convolution_weight.Config(element, 16 * row_warps, depth, stages=2, row_warps=row_warps, column_warps=1, is_odd=True)
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
    of_bias, of_sum = (choose(face, given.element, 1, 1) for face in ("conv_bias", "conv_sum"))
    got = bias_gradient(of_bias, of_sum, given, splits)
    compare(got, given.reference()[1]["bias"], sizes_of(given)[1]["bias"], given.element)


@pytest.mark.parametrize(("activation", "name"), [(1, "relu"), (2, "silu")])
def test_activations(activation: int, name: str, record_property: Any) -> None:
    given = case(element="float32", c_in=8, c_out=8, bias=True, size=(4, 4))
    record_property("emulated", "conv_forward")
    y, _ = given.reference()
    expected = getattr(refattn, name)(y)
    got = gathered(small("float32", is_input=False), given, activation)
    np.testing.assert_allclose(got, expected, rtol=2.0**-18, atol=2.0**-18 * np.abs(y).max())


@pytest.mark.parametrize(
    ("element", "c_out", "c_in", "groups"),
    [("bfloat16", 136, 72, 1), ("float16", 24, 40, 2), ("float32", 20, 12, 1), ("bfloat16", 7, 3, 1), ("float32", 5, 3, 2)],
)
def test_shipped_kernels(element: Any, c_out: int, c_in: int, groups: int, record_property: Any) -> None:
    given = case((7, 8), (1, 2), element=element, batch=1, c_in=c_in, c_out=c_out, groups=groups, stride=(1, 2), padding=1, bias=True)
    (y, grads), (sizes, of_grads) = given.reference(), sizes_of(given)
    forward, of_input, of_weight, of_bias, of_sum = (
        choose(face, element, c_out, c_in) for face in ("conv_forward", "conv_input", "conv_weight", "conv_bias", "conv_sum")
    )
    record_property("emulated", ", ".join(kernel.name for kernel in (forward, of_input, of_weight)))
    compare(gathered(forward, given), y, sizes, element)
    compare(gathered(of_input, given), grads["x"], of_grads["x"], element)
    compare(weight_gradient(of_weight, of_sum, given, splits=2), grads["weight"], of_grads["weight"], element)
    compare(bias_gradient(of_bias, of_sum, given, splits=7), grads["bias"], of_grads["bias"], element)


@pytest.mark.parametrize("is_odd", [False, True])
def test_steps_beyond_32_bits(is_odd: bool, record_property: Any) -> None:
    """Examples that lie more than 2**31 numbers apart: address space that is never touched stands between."""
    given = case(batch=2, c_in=8, c_out=8, size=(4, 5), kernel=(2, 2))
    record_property("emulated", "conv_forward, conv_input, conv_weight")
    (y, grads), (sizes, of_grads) = given.reference(), sizes_of(given)
    for face in ("forward", "input"):
        kernel = (small_odd if is_odd else small)(given.element, is_input=face == "input")
        got = gathered(kernel, given, apart=2**31 + 64)
        compare(got, *((y, sizes) if face == "forward" else (grads["x"], of_grads["x"])), given.element)
    kernel = (small_odd_weight if is_odd else small_weight)(given.element)
    got = weight_gradient(kernel, choose("conv_sum", given.element, 1, 1), given, splits=2, apart=2**31 + 64)
    compare(got, grads["weight"], of_grads["weight"], given.element)


def test_weights_gradient_repeats() -> None:
    given = case(size=(8, 8), c_in=8, c_out=8)
    kernel, of_sum = small_weight(given.element), choose("conv_sum", given.element, 1, 1)
    first, again = (weight_gradient(kernel, of_sum, given, splits=3) for _ in range(2))
    assert first.tobytes() == again.tobytes()


def test_every_shipped_kernel_is_chosen_by_its_channels() -> None:
    assert choose("conv_forward", "bfloat16", 64, 256).name == "conv_forward_bfloat16_64"
    assert choose("conv_forward", "bfloat16", 65 * 8, 8).name == "conv_forward_bfloat16_128"
    assert choose("conv_input", "bfloat16", 128, 64).name == "conv_input_bfloat16_64"
    assert choose("conv_weight", "float16", 128, 256).name == "conv_weight_float16_128"
    assert choose("conv_forward", "float32", 64, 6).name == "conv_forward_float32_odd"
    assert choose("conv_weight", "bfloat16", 64, 64, is_odd=True).name == "conv_weight_bfloat16_odd"
    with pytest.raises(ValueError, match="dtype is float64, but must be one of"):
        choose("conv_forward", "float64", 64, 64)  # type: ignore[arg-type]


def test_splits() -> None:
    """Enough blocks for a device, but none without positions, and no workspace beyond its limit."""
    geometry = {**case(c_in=64, c_out=64, size=(40, 40), batch=1).geometry()}
    kernel = choose("conv_weight", "bfloat16", 64, 64)
    assert splits_for(kernel, geometry, 132) == 6  # 1482 positions, 256 of them in a part
    assert splits_for(kernel, {**geometry, "batch": 64}, 132) == 44  # 2 * 132 blocks, 6 of them a part
    assert splits_for(kernel, {**geometry, "batch": 1, "out_h": 1, "out_w": 1}, 132) == 1
    assert splits_for(kernel, {**geometry, "batch": 64, "groups": 2**12}, 132) == 1
