"""Convolution in one to three dimensions; both directions are the gradients of input, weight and bias too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from . import LARGE, measured


def _problem(name: str, x: tuple[int, ...], weight: tuple[int, ...], *, twins_only: bool = False, **options: Any) -> measured.Problem:
    def arguments(random: np.random.Generator) -> Mapping[str, Any]:
        return measured.normal(x=x, weight=weight, bias=weight[:1])(random) | options

    return measured.Problem(name, arguments, twins_only=twins_only)


class Convolution(measured.Timed):
    about = "kernels of 3, and of 5 in one dimension, that keep the size unless strided"
    problems = {
        "1-D": _problem("conv1d", (2, 16, 256), (32, 16, 5), padding=2),
        "2-D": _problem("conv2d", (2, 16, 28, 28), (32, 16, 3, 3), padding=1),
        "2-D, strided": _problem("conv2d", (2, 16, 28, 28), (32, 16, 3, 3), padding=1, stride=2),
        "3-D": _problem("conv3d", (1, 8, 8, 14, 14), (16, 8, 3, 3, 3), padding=1),
        "depthwise": _problem("depthwise_conv2d", (2, 32, 28, 28), (32, 1, 3, 3), padding=1),
    }
    if LARGE:
        problems |= {
            "2-D, 64 channels, 56x56": _problem("conv2d", (8, 64, 56, 56), (64, 64, 3, 3), padding=1, twins_only=True),
            "2-D, 256 channels, 14x14": _problem("conv2d", (8, 256, 14, 14), (256, 256, 3, 3), padding=1, twins_only=True),
            "3-D, 32 channels, 16x28x28": _problem("conv3d", (2, 32, 16, 28, 28), (32, 32, 3, 3, 3), padding=1, twins_only=True),
            "depthwise, 256 channels, 56x56": _problem("depthwise_conv2d", (8, 256, 56, 56), (256, 1, 3, 3), padding=1, twins_only=True),
        }
