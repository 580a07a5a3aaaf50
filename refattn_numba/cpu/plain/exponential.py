r"""Exponential and hyperbolic tangent as short polynomials: LLVM vectorises these, but not calls into the C library.

With :math:`x = n \ln 2 + r` and :math:`|r| \le \tfrac12 \ln 2`, both need :math:`2^n` and :math:`e^r - 1`. Adding
:math:`1.5 \cdot 2^m`, m the bits of the mantissa, to :math:`x / \ln 2` rounds it to n, and leaves n in the low bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from refattn_numba.cpu.jit import EXACT, compiled

LN2 = 0.6931471805599453
Real = Callable[[Any], Any]


def _in_precision(dtype: Any, integer: Any, mantissa: int, bias: int, high: float, low: float, terms: int) -> tuple[Real, Real]:
    """`exp` and `tanh` of one type: ln 2 is ``high + low``, n times `high` is exact, the Taylor series has `terms` terms."""
    high, low, per_ln2, magic, lowest = (dtype(x) for x in (high, low, 1 / LN2, 1.5 * 2.0**mantissa, (1 - bias) * LN2))
    zero, one, two = dtype(0), dtype(1), dtype(2)
    series = tuple(dtype(1 / math.factorial(k)) for k in range(terms, 0, -1))

    @compiled
    def parts(x: Any) -> Any:
        """2**n and e**r - 1, both 0 where the exponential is below the normal numbers."""
        bounded = max(lowest, x)  # NaN too: no number could be read from its bits
        rounded = bounded * per_ln2 + magic
        n = rounded - magic
        r = (x - n * high) - n * low
        polynomial = series[0]
        for k in range(1, terms):
            polynomial = polynomial * r + series[k]
        power = integer((dtype(rounded).view(integer) + bias) << mantissa).view(dtype)
        return (zero, zero) if x < lowest else (power, polynomial * r)

    def exp_of(x: Any) -> Any:
        power, expm1_r = parts(x)
        return power * expm1_r + power

    def tanh_of(x: Any) -> Any:
        power, expm1_r = parts(-two * abs(x))
        expm1 = power * expm1_r + (power - one)
        return math.copysign(expm1 / (two + expm1), x)

    return exp_of, tanh_of


# ln 2 is cut after 15 bits, and after 32
_EXP_32, _TANH_32 = _in_precision(np.float32, np.int32, 23, 127, 0.693145751953125, 1.4286068203094173e-06, 7)
_EXP_64, _TANH_64 = _in_precision(np.float64, np.int64, 52, 1023, 0.69314718036912381649, 1.9082149292705877e-10, 13)


def exp(x: Any) -> Any:
    """Exponential of a number that is not above 0; below the normal numbers it is 0."""
    raise NotImplementedError("only compiled code calls this")


def tanh(x: Any) -> Any:
    """Hyperbolic tangent, as exact near 0 as elsewhere."""
    raise NotImplementedError("only compiled code calls this")


@overload(exp, jit_options={"fastmath": EXACT, "error_model": "numpy"})
def _exp(x: Any) -> Any:
    return {types.float32: _EXP_32, types.float64: _EXP_64}.get(x)


@overload(tanh, jit_options={"fastmath": EXACT, "error_model": "numpy"})
def _tanh(x: Any) -> Any:
    return {types.float32: _TANH_32, types.float64: _TANH_64}.get(x)
