"""The error function to any number of components: `refattn.erf` stops at the digits of an 80-bit longdouble."""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import Any

import numpy as np

from refattn.exact import sums
from refattn.exact.constants import constant, constants, exp_of, pi
from refattn.exact.elementary import absolute, head, inverse_factorial, replaced, series, terms_needed, widened
from refattn.exact.expansion import Expanded, expansion_of, selected

NEAR = 0.5
FAR = 30.0
"""The complement is 0 in float64 from here on."""


@functools.cache
def _step(components: int) -> Fraction:
    """Of the trapezoidal rule, whose relative error is exp(-pi**2 / step**2): less than the last component."""
    return Fraction(math.isqrt(4096 * 1423 // (100 * (53 * components + 8))), 64)  # pi**2 / log(2) is 14.23...


@functools.cache
def _nodes(components: int) -> tuple[Expanded, Expanded]:
    """The squares of the rule's places, and exp(-square), down to what the last component does not hold."""
    step = _step(components)
    count = math.isqrt(math.ceil(Fraction(7 * (53 * components + 8), 10) / step**2)) + 1  # log(2) is below 7/10
    squares = [(k * step) ** 2 for k in range(1, count + 1)]
    return constants(squares, components), constants([exp_of(-s) for s in squares], components)


@functools.cache
def _coefficients(components: int) -> tuple[Expanded, ...]:
    """Of the power series of ``sqrt(pi) / 2 erf(x) / x`` in x ** 2."""
    count = terms_needed(Fraction(NEAR) ** 2, components, inverse_factorial)
    return tuple(constant(Fraction((-1) ** k, math.factorial(k) * (2 * k + 1)), components) for k in range(count + 1))


@functools.cache
def _twice_over_root_pi(components: int) -> Expanded:
    return 2 / np.sqrt(constant(pi(), components))


def _series(x: Expanded) -> Expanded:
    """Erf for ``|x| < NEAR``."""
    n = x.components
    y = _twice_over_root_pi(n) * x * series(x * x, _coefficients(n))
    return widened(y, np.abs(head(y)) * 2.0 ** -(53 * n + 6))


def _trapezoid(x: Expanded) -> Expanded:
    """Erfc for ``x >= NEAR``: the rule, less the residue of its poles where they are near."""
    n, step = x.components, constant(_step(x.components), x.components)
    squares, weights = (c.reshape(-1, *(1,) * x.ndim) for c in _nodes(n))
    square: Any = x * x
    terms = weights / (squares + square)
    total = 1 / square + expansion_of(sums.total(terms.number)) * 2
    value = step * x / constant(pi(), n) * np.exp(-square) * total
    circle = constant(2 * pi() / _step(n), n)
    near = head(x) < math.pi / float(_step(n))
    residue = 2 / np.expm1(circle * replaced(x, ~near, 1.0))
    y = value - selected(near, residue, expansion_of(constant(Fraction(0), n).number))
    return widened(y, np.abs(head(value)) * 2.0 ** -(53 * n + 4))


def erf_and_complement(x: Expanded) -> tuple[Expanded, Expanded]:
    """Erf and erfc, neither as 1 less the other where that would cancel."""
    size = absolute(x)
    size = replaced(size, head(size) > FAR, FAR)
    small = head(size) < NEAR
    near, tail = _series(replaced(size, ~small, 0.0)), _trapezoid(replaced(size, small, NEAR))
    erf_size, erfc_size = selected(small, near, 1 - tail), selected(small, 1 - near, tail)
    negative = head(x) < 0
    return selected(negative, -erf_size, erf_size), selected(negative, 1 + erf_size, erfc_size)


def slope(x: Expanded) -> Expanded:
    """The derivative of erf."""
    return _twice_over_root_pi(x.components) * np.exp(-(x * x))
