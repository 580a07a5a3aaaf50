"""Constants to any number of components, from whole numbers: series are summed with 1,200 binary places, and cut once."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from refattn.exact.expansion import Expansion, expansion_of
from refattn.exact.number import Number
from refattn.exact.transforms import SLACK

PLACES = 1200
ONE = 1 << PLACES
STEPS = 64
"""Exponentials and logarithms are tabulated at so many places of a factor of 2."""


@functools.cache
def pi() -> Fraction:
    """Machin's formula: 16 arctan(1/5) - 4 arctan(1/239)."""
    return Fraction(16 * _arctan(5) - 4 * _arctan(239), ONE)


@functools.cache
def log_of(numerator: int, denominator: int) -> Fraction:
    """The natural logarithm of a fraction between 1/2 and 2: twice the inverse hyperbolic tangent of (n - d) / (n + d)."""
    ratio = Fraction(numerator - denominator, numerator + denominator)
    term = total = ONE * ratio.numerator // ratio.denominator
    for k in range(3, PLACES, 2):
        term = term * ratio.numerator**2 // ratio.denominator**2
        total += term // k
    return Fraction(2 * total, ONE)


@functools.cache
def exp_of(exponent: Fraction) -> Fraction:
    """The exponential of a fraction that is not large: by its series, at a 2**-k part of it, which is squared k times."""
    doublings = max(0, math.ceil(abs(exponent)).bit_length())
    term, total, k = ONE, ONE, 0
    while term not in {0, -1}:  # -1 is what a division rounds to from below
        k += 1
        term = term * exponent.numerator // (exponent.denominator * k << doublings)
        total += term
    for _ in range(doublings):
        total = total * total >> PLACES
    return Fraction(total, ONE)


def _arctan(inverse: int) -> int:
    term = total = ONE // inverse
    for k in range(3, PLACES, 2):
        term //= -(inverse**2)
        total += term // k
    return total


def constants(values: Sequence[Fraction], components: int) -> Expansion:
    """One expansion for each fraction; each component is the nearest float64 to what is left.

    What the fraction itself lacks, some 2**-1190, is nothing beside the least float64.
    """
    parts, errors = [], []
    for value in values:
        left, found = value, []
        for _ in range(components):
            found.append(left.numerator / left.denominator)  # correctly rounded, as all divisions of whole numbers in Python
            left -= Fraction(found[-1])
        parts.append(found)
        errors.append(abs(left.numerator / left.denominator) * SLACK)
    columns = np.array(parts).reshape(len(values), components).T
    return expansion_of(Number(tuple(columns.copy()), np.array(errors)))


@functools.cache
def constant(value: Fraction, components: int) -> Expansion:
    """One fraction as an expansion without axes."""
    return constants([value], components)[0]


@functools.cache
def log_two(components: int) -> Expansion:
    """The logarithm of 2."""
    return constant(log_of(2, 1), components)


@functools.cache
def step_of_exp(components: int) -> Expansion:
    """The logarithm of 2 over `STEPS`."""
    return constant(log_of(2, 1) / STEPS, components)


@functools.cache
def powers_of_two(components: int) -> Expansion:
    """2 ** (j / STEPS) for j from 0 to STEPS - 1."""
    root = ONE
    roots = [root]
    step = ONE * 2
    for _ in range(STEPS.bit_length() - 1):
        step = math.isqrt(step << PLACES)
    for _ in range(STEPS - 1):
        root = root * step >> PLACES
        roots.append(root)
    return constants([Fraction(r, ONE) for r in roots], components)


@functools.cache
def logs(components: int) -> Expansion:
    """The logarithm of j / STEPS, for j from STEPS / 2 to 3 / 2 STEPS."""
    return constants([log_of(j, STEPS) for j in range(STEPS // 2, 3 * STEPS // 2 + 1)], components)


@functools.cache
def inverse_factorials(components: int) -> tuple[Expansion, ...]:
    """1 / k! from k = 0 on: more than any series here has terms."""
    return tuple(constant(Fraction(1, math.factorial(k)), components) for k in range(20 * components + 20))


@functools.cache
def inverses(components: int) -> tuple[Expansion, ...]:
    """1 / k from k = 1 on, with 1 in the place of 1 / 0."""
    return tuple(constant(Fraction(1, max(k, 1)), components) for k in range(16 * components + 32))
