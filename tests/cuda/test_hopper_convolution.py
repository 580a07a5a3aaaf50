"""Convolution on compute capability 9.0 under the emulator against the reference: emulated, not run on a GPU."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

pytest.importorskip("numba")

from refattn_numba.cuda.conv_configurations import choose
from refattn_numba.cuda.kernel import Kernel
from refattn_numba.cuda.kernels import convolution, convolution_weight, hopper_convolution, hopper_convolution_weight
from tests.cuda.conv_calls import case, compare, gathered, weight_gradient
from tests.cuda.emulated_hopper import launch
from tests.cuda.test_conv_kernels import CASES, sizes_of

NAMES = [name for name, options in CASES.items() if options.get("element") != "float32"]
ORDERS: list[dict[str, bool]] = [{"last_first": False}, {"last_first": True}]


def small_hopper(element: Any, *, is_input: bool, **more: Any) -> Kernel:
    """A kernel with the shipped ones' source and small tiles, so that a case has several."""
    sizes: dict[str, Any] = {"groups": 2, "columns": 64, "stages": 3, "few": 120, "many": 192, **more}
    config = hopper_convolution.Config(element, **sizes, is_input=is_input)
    builder, parameters = hopper_convolution.hopper_convolution, convolution.PARAMETERS
    return Kernel("hopper_convolution", builder, config, parameters, config.threads, config.shared_bytes, config.tile)


def check(face: str, name: str, order: dict[str, bool], **more: Any) -> None:
    given = case(**{**CASES, **WIDE}[name])
    (y, grads), (sizes, of_grads) = given.reference(), sizes_of(given)
    got = gathered(small_hopper(given.element, is_input=face == "input", **more), given, launch=partial(launch, **order))
    compare(got, *((y, sizes) if face == "forward" else (grads["x"], of_grads["x"])), given.element)


def check_weights(name: str, order: dict[str, bool], **more: Any) -> None:
    given = case(**{**CASES, **WIDE}[name])
    sizes: dict[str, Any] = {"groups": 2, "columns": 64, "stages": 3, "few": 120, "many": 192, **more}
    config = hopper_convolution.Config(given.element, **sizes)
    builder, parameters = hopper_convolution_weight.hopper_weight_gradient, convolution_weight.PARAMETERS
    kernel = Kernel("hopper_weight", builder, config, parameters, config.threads, config.shared_bytes, config.tile)
    got = weight_gradient(kernel, choose("conv_sum", given.element, 1, 1), given, splits=2, launch=partial(launch, **order))
    compare(got, given.reference()[1]["weight"], sizes_of(given)[1]["weight"], given.element)


WIDE: dict[str, dict[str, Any]] = {
    "wide": {"c_in": 136, "c_out": 136, "size": (5, 9), "kernel": (1, 3), "padding": ((0, 0), (1, 1))},
    "many steps": {"size": (23,), "kernel": (2,), "batch": 24, "c_in": 8, "c_out": 8},
}
"""Beyond one block of channels, and more positions than the ring holds."""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("face", ["forward", "input"])
def test_against_the_reference(face: str, name: str, record_property: Any) -> None:
    record_property("emulated", f"conv_{face}")
    check(face, name, ORDERS[NAMES.index(name) % 2])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("face", ["forward", "input"])
def test_tiles_of_other_sizes(face: str, order: dict[str, bool], record_property: Any) -> None:
    record_property("emulated", f"conv_{face}")
    check(face, "wide", order, columns=128, stages=2)


@pytest.mark.parametrize("name", [*NAMES, "wide"])
def test_gradient_of_weights(name: str, record_property: Any) -> None:
    record_property("emulated", "conv_weight")
    check_weights(name, ORDERS[len(name) % 2], **({"columns": 128} if name == "wide" else {}))
