"""Elementary functions of expansions: reduced by tables, then power series, in the arithmetic of expansions itself.

Nothing here asks NumPy for an exponential or a logarithm, whose last bits differ between processors, not even for a first guess.
The rest of a series that is cut off is added to the error bound, which the operations carry along.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from refattn._core import Array, Integers
from refattn.exact.constants import STEPS, inverse_factorials, inverses, log_two, logs, powers_of_two, step_of_exp
from refattn.exact.expansion import Expanded, Expansion, expansion_of, selected
from refattn.exact.number import Number, lifted
from refattn.exact.number import scaled as scaled_number

PER_UNIT = 64 / 0.6931471805599453
BOUND = 800.0
"""Exponentials of more overflow, of less underflow, by far."""
NEAR = 2.0**-7
HALF_STEP = Fraction(13, 1600)
"""Three quarters of log(2) / STEPS: half a step, and more than rounding adds to it."""


def head(x: Expanded) -> Array:
    """The nearest float64, as a plain array."""
    return x.view(np.ndarray)


def series(x: Expanded, coefficients: Sequence[Expanded]) -> Expanded:
    """The polynomial, by Horner's rule."""
    total: Any = coefficients[-1]
    for c in coefficients[-2::-1]:
        total = total * x + c
    return total


@functools.cache
def terms_needed(largest: Fraction, components: int, coefficient: Callable[[int], Fraction]) -> int:
    """How many terms of a power series reach past the last component: in fractions, so that the count is the same everywhere."""
    last = Fraction(1, 1 << (53 * components + 10))
    k = 1
    while largest**k * coefficient(k) >= last:
        k += 1
    return k


def inverse_factorial(k: int) -> Fraction:
    """1 / k!."""
    return Fraction(1, math.factorial(k))


def one(k: int) -> Fraction:
    """1, of a series whose coefficients do not fall."""
    return Fraction(1)


def widened(x: Expanded, by: Array) -> Expanded:
    """With more error."""
    parts, error = x.number
    return expansion_of(Number(parts, error + by))


def replaced(x: Expanded, where: Any, value: Any) -> Expanded:
    """With a plain value, which is exact, at some places."""
    return selected(where, value, x) if np.any(where) else x


def times_power_of_two(x: Expanded, exponents: Integers) -> Expanded:
    """``x * 2 ** exponents`` in two steps, since a single power might overflow where the product does not."""
    first = exponents // 2
    number = scaled_number(scaled_number(x.number, _power_of_two(first)), _power_of_two(exponents - first))
    return expansion_of(number)


def _power_of_two(exponents: Integers) -> Array:
    return np.asarray((np.clip(exponents, -1022, 1023).astype(np.int64) + 1023) << 52).view(np.float64)


def _exp_parts(x: Expanded) -> tuple[Expanded, Expanded, Integers]:
    """``exp(x) = 2**k (t + t p)`` for x within `BOUND`, t from the table, and p between -1/100 and 1/100."""
    n = x.components
    steps = np.rint(head(x) * PER_UNIT)
    rest = x - steps * step_of_exp(n)
    count = terms_needed(HALF_STEP, n, inverse_factorial)
    p = rest * series(rest, inverse_factorials(n)[1 : count + 1])
    p = widened(p, np.abs(head(p)) * 2.0 ** -(53 * n + 8))
    whole = steps.astype(np.int64)
    t = powers_of_two(n)[whole % STEPS]
    return t, t * p, whole // STEPS


def _within(x: Expanded) -> Expanded:
    """Numbers within `BOUND`, so that all steps are whole numbers; the others come out right without their values."""
    large = ~(np.abs(head(x)) <= BOUND)
    return replaced(x, large, np.where(head(x) > 0, BOUND, np.where(head(x) < 0, -BOUND, 0)))


def exp(x: Expanded) -> Expanded:
    """The exponential."""
    t, more, k = _exp_parts(_within(x))
    y = times_power_of_two(t + more, k)
    return replaced(replaced(y, np.isneginf(head(x)), 0.0), np.isnan(head(x)), np.nan)


def expm1(x: Expanded) -> Expanded:
    """The exponential less 1: near 0, where table and power are 1, it is the series alone."""
    t, more, k = _exp_parts(_within(x))
    y = times_power_of_two(more, k) + (times_power_of_two(t, k) - 1)
    y = selected(head(x) > BOUND, np.inf, y)
    return replaced(replaced(y, np.isneginf(head(x)), -1.0), np.isnan(head(x)), np.nan)


def _twice_arctanh(s: Expanded) -> Expanded:
    """For ``|s|`` below `NEAR`."""
    n = s.components
    count = terms_needed(Fraction(NEAR) ** 2, n, one)
    y = s * series(s * s, inverses(n)[1 : 2 * count : 2])
    return widened(y + y, np.abs(head(y)) * 2.0 ** -(53 * n + 7))


def log(x: Expanded) -> Expanded:
    """The natural logarithm: of the power of 2, of a table's fraction, and of the quotient, which is near 1."""
    n = x.components
    usual = np.isfinite(head(x)) & (head(x) > 0)
    x_usual = replaced(x, ~usual, 1.0)
    mantissa, exponent = np.frexp(head(x_usual))
    k = (exponent - (mantissa < math.sqrt(0.5))).astype(np.int64)
    m = times_power_of_two(x_usual, -k)
    j = np.rint(head(m) * STEPS)
    c = j / STEPS
    y = _twice_arctanh((m - c) / (m + c)) + (logs(n)[j.astype(np.int64) - STEPS // 2] + k.astype(np.float64) * log_two(n))
    beside = np.where(head(x) == 0, -np.inf, np.where(head(x) > 0, np.inf, np.nan))
    return replaced(y, ~usual, beside)


def log1p(x: Expanded) -> Expanded:
    """The logarithm of 1 + x; near 0 of the quotient, which keeps what the sum would lose."""
    near = np.abs(head(x)) < NEAR
    x_near = replaced(x, ~near, 0.0)
    return selected(near, _twice_arctanh(x_near / (x_near + 2)), log(replaced(x, near, 1.0) + 1))


def tanh(x: Expanded) -> Expanded:
    """From the exponential of -2 |x|, which neither overflows nor cancels."""
    size = absolute(x)
    e = expm1(size * -2)
    y = -e / (e + 2)
    return selected(head(x) < 0, -y, y)


def absolute(x: Expanded) -> Expanded:
    """The number or its opposite; the sign of an expansion is that of its first component."""
    return selected(np.signbit(head(x)), -x, x)


def power(x: Expanded, y: Any) -> Expanded:
    """Whole powers up to 64 by multiplication, others as ``exp(y log x)``."""
    if isinstance(y, (int, float, np.number)) or (isinstance(y, np.ndarray) and not isinstance(y, Expansion) and y.ndim == 0):
        exponent = float(y)
        if abs(exponent) <= 64 and exponent == int(exponent):
            return _whole_power(x, int(exponent))
        if abs(exponent) == 0.5:
            root = replaced(np.sqrt(x), np.isneginf(head(x)), np.inf)  # as IEEE 754 has it of powers
            return root if exponent > 0 else 1 / root
    plain_y = head(y) if isinstance(y, Expansion) else np.asarray(y, np.float64)
    made = exp(log(absolute(x)) * y)
    whole = plain_y == np.floor(plain_y)
    odd = whole & (np.floor(plain_y / 2) * 2 != plain_y)
    made = selected(np.signbit(head(x)) & odd, -made, made)
    made = replaced(made, (head(x) < 0) & np.isfinite(head(x)) & ~whole, np.nan)
    return replaced(made, np.broadcast_to(plain_y == 0, made.shape), 1.0)


def _whole_power(x: Expanded, exponent: int) -> Expanded:
    if exponent < 0:
        return 1 / _whole_power(x, -exponent)
    made: Any = None
    while exponent:
        if exponent & 1:
            made = x if made is None else made * x
        exponent >>= 1
        x = x * x if exponent else x
    if made is None:
        return expansion_of(lifted(np.ones(x.shape), x.components))
    return made


def sign(x: Expanded) -> Expanded:
    """-1, 0 or 1: that of the first component."""
    return expansion_of(lifted(np.sign(head(x)), x.components))


def floor(x: Expanded) -> Expanded:
    """The whole number at or below: where one component is whole, the next decides."""
    made = expansion_of(lifted(np.zeros(x.shape), x.components))
    whole = np.ones(x.shape, bool)
    for part in x.number.parts:
        made = made + np.where(whole, np.floor(part), 0)
        whole = whole & (np.floor(part) == part)
    return made
