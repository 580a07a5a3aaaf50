"""Sine and cosine: less whole quarters of a turn, with as many digits of pi as that takes."""

from __future__ import annotations

import functools
import math
from fractions import Fraction

import numpy as np

from refattn.exact.constants import constant, constants, inverse_factorials, pi
from refattn.exact.elementary import head, inverse_factorial, replaced, series, terms_needed, widened
from refattn.exact.expansion import Expanded, expansion_of, selected
from refattn.exact.number import Number
from refattn.exact.transforms import SLACK, TINY, distilled, two_product

FEW = 2.0**30
"""Quarters of a turn that are counted in float64; where there are more, whole numbers of Python do it."""


def sin(x: Expanded) -> Expanded:
    """The sine; NaN of infinity."""
    return _turned(x, 0)


def cos(x: Expanded) -> Expanded:
    """The cosine: the sine of a quarter more."""
    return _turned(x, 1)


def _turned(x: Expanded, more: int) -> Expanded:
    usual = np.isfinite(head(x))
    rest, quarters = _reduced(replaced(x, ~usual, 0.0))
    place = (quarters + more) % 4
    y = selected(place % 2 == 0, _sin_series(rest), _cos_series(rest))
    return replaced(selected(place < 2, y, -y), ~usual, np.nan)


def _reduced(x: Expanded) -> tuple[Expanded, np.ndarray]:
    """Less a multiple of a quarter of a turn; and the multiple, up to whole turns."""
    n = x.components
    count = np.rint(head(x) * (2 / math.pi))
    far = np.abs(count) > FEW
    count = np.where(far, 0, count)
    quarter = constant(pi() / 2, n + 2).number
    products = [two_product(-count, np.broadcast_to(p, count.shape)) for p in quarter.parts]
    pairs = [p for pair in products for p in pair]
    parts, dropped = distilled([*x.number.parts, *pairs], n + 2)  # beside a whole quarter, the first ones cancel
    error = x.error + np.abs(count) * quarter.error + dropped + np.abs(parts[n]) + np.abs(parts[n + 1])
    error = (error + len(pairs) * TINY * (count != 0)) * SLACK
    rest, quarters = expansion_of(Number(tuple(parts[:n]), error)), count.astype(np.int64)
    for at in zip(*np.nonzero(np.atleast_1d(far)), strict=True):
        key = at if x.ndim else ()
        rest[key], quarters[key] = _by_fractions(x[key])
    return rest, quarters


def _by_fractions(x: Expanded) -> tuple[Expanded, int]:
    parts, error = x.number
    exact = sum((Fraction(float(p)) for p in parts), Fraction(0))
    quarter = _long_pi() / 2
    quarters = round(exact / quarter)
    rest = constants([exact - quarters * quarter], x.components)[0]
    return widened(rest, error + TINY), quarters % 4


@functools.cache
def _long_pi() -> Fraction:
    """With 2,600 places: 1,024 for the largest float64, as many for a rest as small as float64 holds, and more than for 8 components."""
    one = 1 << 2600

    def arctan(inverse: int) -> int:
        term = total = one // inverse
        k = 1
        while term not in {0, -1}:
            k += 2
            term //= -(inverse**2)
            total += term // k
        return total

    return Fraction(16 * arctan(5) - 4 * arctan(239), one)


def _sin_series(x: Expanded) -> Expanded:
    """For numbers up to an eighth of a turn."""
    n = x.components
    count = terms_needed(Fraction(4, 5), n, inverse_factorial) // 2 + 1
    signed = [c if k % 2 == 0 else -c for k, c in enumerate(inverse_factorials(n)[1 : 2 * count + 2 : 2])]
    y = x * series(x * x, signed)
    return widened(y, np.abs(head(y)) * 2.0 ** -(53 * n + 7))


def _cos_series(x: Expanded) -> Expanded:
    """For numbers up to an eighth of a turn."""
    n = x.components
    count = terms_needed(Fraction(4, 5), n, inverse_factorial) // 2 + 1
    signed = [c if k % 2 == 0 else -c for k, c in enumerate(inverse_factorials(n)[0 : 2 * count + 2 : 2])]
    y = series(x * x, signed)
    return widened(y, np.asarray(2.0 ** -(53 * n + 7)))
