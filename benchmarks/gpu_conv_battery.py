"""Convolutions on a device against the reference in main memory: the oracle's cases and larger ones, with channels first and last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

import refattn
import refattn_numba
from refattn.testing import Candidate, Case, Result, cases
from refattn.testing.checking import compare_case
from refattn.testing.frameworks import NumPy
from refattn.testing.precision import named_format

CONVOLUTIONS = (
    *(f"{name}{axes}d" for name in ("conv", "conv_transpose") for axes in (1, 2, 3)),
    "depthwise_conv2d",
    "pointwise_conv2d",
    "separable_conv2d",
)

OWN: Mapping[str, tuple[str, tuple[int, ...], tuple[int, ...], Mapping[str, Any]]] = {
    "3x3, past all tiles": ("conv2d", (2, 72, 13, 11), (136, 72, 3, 3), {"padding": 1}),
    "3x3, stride 2": ("conv2d", (2, 64, 15, 14), (64, 64, 3, 3), {"padding": 1, "stride": 2}),
    "first layer": ("conv2d", (2, 3, 33, 35), (64, 3, 7, 7), {"padding": 3, "stride": 2}),
    "1x1": ("pointwise_conv2d", (2, 96, 9, 17), (160, 96, 1, 1), {}),
    "1x1, stride 2": ("conv2d", (2, 64, 9, 9), (72, 64, 1, 1), {"stride": 2}),
    "32 groups of 4": ("conv2d", (1, 128, 9, 10), (128, 4, 3, 3), {"padding": 1, "groups": 32}),
    "4 groups of 40": ("conv2d", (1, 160, 9, 10), (96, 40, 3, 3), {"padding": 1, "groups": 4}),
    "dilated": ("conv2d", (1, 40, 19, 17), (24, 40, 3, 3), {"padding": 4, "dilation": (4, 3)}),
    "more after than before": ("conv2d", (1, 24, 11, 9), (16, 24, 4, 2), {"padding": ((0, 3), (1, 2)), "stride": (3, 2)}),
    "reflected": ("conv2d", (2, 24, 9, 11), (16, 24, 5, 5), {"padding": 2, "padding_mode": "reflect"}),
    "around": ("conv2d", (2, 24, 9, 11), (16, 24, 3, 3), {"padding": ((3, 0), (1, 2)), "padding_mode": "circular"}),
    "one dimension": ("conv1d", (2, 40, 301), (48, 40, 5), {"padding": "same"}),
    "three dimensions": ("conv3d", (1, 16, 7, 9, 8), (24, 16, 3, 3, 3), {"padding": 1, "stride": (1, 2, 2)}),
    "transposed, stride 2": ("conv_transpose2d", (2, 40, 9, 7), (40, 24, 4, 4), {"stride": 2, "padding": 1}),
    "transposed, in groups": ("conv_transpose2d", (1, 32, 6, 7), (32, 12, 3, 3), {"stride": (2, 3), "groups": 2, "output_padding": 1}),
    "depthwise 3x3": ("depthwise_conv2d", (2, 40, 14, 15), (40, 1, 3, 3), {"padding": 1}),
    "depthwise 5x5, stride 2": ("depthwise_conv2d", (2, 24, 15, 14), (24, 1, 5, 5), {"padding": 2, "stride": 2}),
    "depthwise, two for each": ("depthwise_conv2d", (1, 11, 9, 10), (22, 1, 3, 3), {"padding": 1, "dilation": 2}),
    "depthwise, along a line": ("conv1d", (2, 16, 515), (16, 1, 4), {"padding": ((3, 0),), "groups": 16}),
}
"""Mechanism, shapes of x and of the weight, and options."""


def own_cases() -> Iterator[tuple[str, Case]]:
    """Mechanism and case, in sizes that take kernels past their tiles; each with a bias."""
    for index, (name, (mechanism, shape, kernel, options)) in enumerate(OWN.items()):
        random = np.random.default_rng(300 + index)
        outputs = kernel[1] * options.get("groups", 1) if "transpose" in mechanism else kernel[0]
        given = {"x": random.normal(size=shape), "weight": random.normal(size=kernel), "bias": random.normal(size=outputs)}
        yield mechanism, Case(name, {**given, **options})


def candidate(name: str, framework: NumPy, prepare: Callable[[Any], Any] = lambda x: x) -> Candidate:
    """A function of `refattn_numba`, whose x is prepared before the call: laid out anew, say."""
    function = getattr(refattn_numba, name)

    def prepared(call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda **given: call(**{**given, "x": prepare(given["x"])})

    return Candidate(prepared(function), framework, vjp=prepared(function.vjp))


def results(framework: NumPy, dtype: str, prepare: Callable[[Any], Any] = lambda x: x, *, level: Any = "quick") -> Iterator[Result]:
    """The oracle's cases, and our own."""
    target = named_format(dtype)
    made = {name: candidate(name, framework, prepare) for name in CONVOLUTIONS}
    for name in CONVOLUTIONS:
        for case in cases(getattr(refattn, name), level=level):
            yield from compare_case(made[name], getattr(refattn, name), case, target)
    for name, case in own_cases():
        yield from compare_case(made[name], getattr(refattn, name), case, target)
