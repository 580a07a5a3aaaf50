"""Bias and activation after a convolution, and their gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn import gelu, relu, silu
from refattn._core import Array
from refattn_numba.cpu.conv.problem import Activation, Epilogue, Finished

FUNCTIONS: dict[Activation, Any] = {"relu": relu, "silu": silu, "gelu": gelu}


def finish(y: Array, epilogue: Epilogue) -> Finished:
    """In passes over the output, which is overwritten."""
    if epilogue.bias is not None:
        y += epilogue.bias[:, None, None, None]
    if epilogue.activation is None:
        return Finished(y, y)
    if epilogue.activation == "relu":
        np.maximum(y, 0, out=y)
        return Finished(y, y)
    return Finished(FUNCTIONS[epilogue.activation](y), y)


def before_activation(done: Finished, activation: Activation | None, dy: Array) -> Array:
    """The cotangent of what the activation is given."""
    if activation is None:
        return dy
    if activation == "relu":
        return np.where(done.output > 0, dy, 0)
    return FUNCTIONS[activation].vjp(done.before)[1](dy)["x"]
