"""What a check costs, by mechanism and level: all its cases judged, beside the calls of the kernel that it judges."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

import refattn
from benchmarks.cases import Call, Case

NAMES = ("softmax", "layer_norm", "depthwise_conv2d", "conv2d", "decode_attention", "scaled_dot_product_attention", "multi_head_attention")


def checked(name: str, level: refattn.testing.battery.Level, seed: int = 0) -> Mapping[str, Call]:
    """The reference judged as if it were a kernel for float32; and its outputs and gradients on the same cases."""
    mechanism = getattr(refattn, name)
    cases = list(refattn.testing.cases(mechanism, level=level, seed=seed))

    def check() -> np.float64:
        return np.float64(refattn.testing.check(mechanism, mechanism, level=level, seed=seed).passed)

    def kernel() -> np.float64:
        for case in cases:
            y, pullback = mechanism.vjp(**case.arguments)
            pullback(*refattn.testing.cotangents(y))
        return np.float64(1)

    return {"check": check, "kernel": kernel}


CASES = tuple(
    Case(f"{name}, {level}", partial(checked, name, level), tolerance=0, quick=level == "quick")
    for level in ("quick", "full")
    for name in NAMES
)
