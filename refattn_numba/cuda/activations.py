"""ReLU, SiLU and GELU of numbers in registers, and their gradients, by the codes of the fast convolutions in main memory.

Errors are a few units in the last place of float32, and grow with the exponent where a tail is small, to 2**-15 of a tail of 1e-36; smaller ones are 0. At
plus and minus infinity all have their limits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refattn_numba._activations import CODES, DENSITY, SINGLE, SINGLE_K
from refattn_numba.cuda.fragments import LOG2_E, each
from refattn_numba.cuda.operations import Many

FAR, FAR_LOGISTIC = 15.0, 104.0
"""Where the tail of the normal distribution, and that of the logistic one, are 0 in float32."""


def _relu(e: Any, x: Any) -> Any:
    return e.select(x < 0.0, e.number(0.0), x)


def _size(e: Any, x: Any, most: float) -> Any:
    """``abs(x)``, but not more than that."""
    size = e.select(x < 0.0, e.number(0.0) - x, x)
    return e.select(size > most, e.number(most), size)


def _logistic(e: Any, x: Any) -> tuple[Any, Any, Any]:
    """Size of x, ``exp(-size)``, and the logistic function of the size."""
    t = _size(e, x, FAR_LOGISTIC)
    small = e.exp2(t * -LOG2_E)
    return t, small, e.reciprocal(small + 1.0)


def _silu(e: Any, x: Any) -> Any:
    t, small, share = _logistic(e, x)
    return e.select(x < 0.0, (e.number(0.0) - t) * small, x) * share


def _normal(e: Any, x: Any) -> tuple[Any, Any, Any]:
    """Size of x, ``exp(-size**2 / 2)``, and the upper tail of the normal distribution there (see `_activations`)."""
    t = _size(e, x, FAR)
    bell = e.exp2(t * t * (-0.5 * LOG2_E))
    u = (t - SINGLE_K) * e.reciprocal(t + SINGLE_K)
    series = e.number(SINGLE[0])
    for coefficient in SINGLE[1:]:
        series = e.multiply_add(series, u, e.number(coefficient))
    return t, bell, bell * series * e.reciprocal(e.multiply_add(t, e.number(1.25), e.number(1.0)))


def _gelu(e: Any, x: Any) -> Any:
    t, _, tail = _normal(e, x)
    return e.select(x < 0.0, (e.number(0.0) - t) * tail, x * (1.0 - tail))


def _relu_back(e: Any, x: Any, dy: Any) -> Any:
    return e.select(x <= 0.0, e.number(0.0), dy)


def _silu_back(e: Any, x: Any, dy: Any) -> Any:
    t, small, share = _logistic(e, x)
    signed = e.select(x < 0.0, e.number(0.0) - t, t)
    return dy * e.multiply_add(signed * small, share * share, e.select(x < 0.0, small, e.number(1.0)) * share)


def _gelu_back(e: Any, x: Any, dy: Any) -> Any:
    t, bell, tail = _normal(e, x)
    signed = e.select(x < 0.0, e.number(0.0) - t, t)
    return dy * e.multiply_add(signed * DENSITY, bell, e.select(x < 0.0, tail, 1.0 - tail))


FORWARD = {"relu": _relu, "silu": _silu, "gelu": _gelu}
BACKWARD = {"relu": _relu_back, "silu": _silu_back, "gelu": _gelu_back}


def activated(ops: Any, kind: Many) -> Callable[..., Any]:
    """The function of some numbers and a code."""
    relu, silu, gelu = (ops(each(kind, function)) for function in (_relu, _silu, _gelu))
    of_relu, of_silu = CODES["relu"], CODES["silu"]

    def run(x: Any, code: Any) -> Any:
        if code == of_relu:
            x = relu(x)
        elif code == of_silu:
            x = silu(x)
        elif code > of_silu:
            x = gelu(x)
        return x

    return ops.function(run)


def fused(ops: Any, kind: Many) -> Callable[..., Any]:
    """The same without GELU, whose length nobody wants after each sum of a tile."""
    relu, silu = ops(each(kind, _relu)), ops(each(kind, _silu))
    of_relu, of_silu = CODES["relu"], CODES["silu"]

    def run(x: Any, code: Any) -> Any:
        if code == of_relu:
            x = relu(x)
        elif code == of_silu:
            x = silu(x)
        return x

    return ops.function(run)


def pulled_back(ops: Any, kind: Many) -> Callable[..., Any]:
    """The cotangent of some numbers, from them, that of the result, and a code. ReLU may be given its result: it passes nothing at 0."""
    relu, silu, gelu = (ops(each(kind, function, kind)) for function in (_relu_back, _silu_back, _gelu_back))
    of_relu, of_silu = CODES["relu"], CODES["silu"]

    def run(x: Any, dy: Any, code: Any) -> Any:
        if code == of_relu:
            dy = relu(x, dy)
        elif code == of_silu:
            dy = silu(x, dy)
        elif code > of_silu:
            dy = gelu(x, dy)
        return dy

    return ops.function(run)
