"""The error function and its complement, to the last digits of float64 and of an 80-bit longdouble."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refattn._core import Array, Grads, Pullback, Random, Sample, like, mechanism

PI = "3.1415926535897932384626433832795028841971693993751058209749445923078164062862089986280348253421170679"
STEP = 7 / 16  # of the trapezoidal rule: its error, exp(-pi**2 / STEP**2), is 4e-23
NEAR = 0.5  # where the two formulas meet
FAR = 110.0  # exp(-FAR**2) is 0 in every format of 64 or 80 bits


def _series(x: Array) -> Array:
    """The Maclaurin series of erf, for ``|x| <= NEAR``."""
    term = 2 * x / np.sqrt(like(x, PI))
    total = term
    for n in range(1, 16):
        term = -term * x**2 / n
        total = total + term / (2 * n + 1)
    return total


def _trapezoid(x: Array) -> Array:
    """Erfc for ``x >= NEAR``: the trapezoidal rule, less the residue of its poles at ``± i x`` where they are near."""
    pi = like(x, PI)
    total = 1 / x**2
    for n in range(1, 18):
        node = x.dtype.type((n * STEP) ** 2)
        total = total + 2 * np.exp(-node) / (node + x**2)
    residue = 2 / np.expm1(2 * pi * np.minimum(x, pi / STEP) / STEP)
    return STEP * x / pi * np.exp(-(x**2)) * total - np.where(x < pi / STEP, residue, 0)


def _both(x: Array) -> tuple[Array, Array]:
    """Erf and erfc, neither as 1 less the other where that would cancel."""
    size = np.minimum(np.abs(x), FAR)
    near, tail = _series(np.minimum(size, NEAR)), _trapezoid(np.maximum(size, NEAR))
    small = size < NEAR
    erf_size, erfc_size = np.where(small, near, 1 - tail), np.where(small, 1 - near, tail)
    return np.where(x < 0, -erf_size, erf_size), np.where(x < 0, 1 + erf_size, erfc_size)


def _slope(x: Array) -> Array:
    return 2 / np.sqrt(like(x, PI)) * np.exp(-(np.minimum(np.abs(x), FAR) ** 2))


def _samples(random: Random) -> Iterator[Sample]:
    yield Sample("both formulas", {"x": random.normal((3, 8))})
    yield Sample("far from zero", {"x": 10 * random.normal((3, 8))})


@mechanism(samples=_samples)
def erf(x: Array) -> tuple[Array, Pullback]:
    r"""Error function: the probability that a normal variable of variance 1/2 lies between -x and x.

    Parameters
    ----------
    x : array, shape (...)
        Input.

    Returns
    -------
    array, shape (...)
        Between -1 and 1.

    Notes
    -----
    Accurate to some units in the last place of float64 and of an 80-bit longdouble; to 20 digits in wider formats.

    .. math::

        y = \frac{2}{\sqrt\pi} \int_0^x e^{-t^2} dt, \qquad \bar x = \frac{2}{\sqrt\pi} e^{-x^2}\, \bar y

    References
    ----------
    .. [1] NIST Digital Library of Mathematical Functions, eqs. (7.2.1) and (7.6.1).
    .. [2] Al Azah, Chandler-Wilde, "Computation of the Complex Error Function Using Modified Trapezoidal Rules", SIAM Journal on
       Numerical Analysis 59, 2021: the trapezoidal rule, corrected for poles. arXiv:2010.05659.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.erf(np.array([0.0, np.inf, -np.inf]))
    array([ 0.,  1., -1.])
    """

    def pullback(dy: Array) -> Grads:
        return {"x": _slope(x) * dy}

    return _both(x)[0], pullback


@mechanism(samples=_samples)
def erfc(x: Array) -> tuple[Array, Pullback]:
    r"""Complementary error function, without the cancellation of ``1 - erf(x)``.

    Parameters
    ----------
    x : array, shape (...)
        Input.

    Returns
    -------
    array, shape (...)
        Between 0 and 2.

    Notes
    -----
    In the tail the relative error grows as :math:`x^2` units in the last place, which is that of :math:`e^{-x^2}`.

    .. math::

        y = \frac{2}{\sqrt\pi} \int_x^\infty e^{-t^2} dt, \qquad \bar x = -\frac{2}{\sqrt\pi} e^{-x^2}\, \bar y

    References
    ----------
    .. [1] NIST Digital Library of Mathematical Functions, eq. (7.2.2).
    .. [2] Al Azah, Chandler-Wilde, "Computation of the Complex Error Function Using Modified Trapezoidal Rules", SIAM Journal on
       Numerical Analysis 59, 2021: the trapezoidal rule, corrected for poles. arXiv:2010.05659.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> refattn.erfc(np.array([0.0, np.inf, -np.inf]))
    array([1., 0., 2.])
    """

    def pullback(dy: Array) -> Grads:
        return {"x": -_slope(x) * dy}

    return _both(x)[1], pullback
