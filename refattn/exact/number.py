"""Numbers of several components, each with a bound of its error, and the four operations and the square root of them.

A number is an unevaluated sum of float64, the largest first, that is at most ``error`` away from what it stands for. Bounds are
computed with each operation from what it drops, so that no theorem about the whole calculation is needed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn._core import Array
from refattn.exact.transforms import SLACK, TINY, UNIT, distilled, halves, product_of_halves


class Number(NamedTuple):
    """Components, the largest first, and a bound of the distance to the true number; plain arrays of one shape."""

    parts: tuple[Array, ...]
    error: Array

    @property
    def head(self) -> Array:
        """The nearest float64."""
        return self.parts[0]


def lifted(x: Any, components: int) -> Number:
    """A float64, integer or boolean array as it is, without error."""
    head = np.asarray(x)
    if head.dtype.kind not in "fiub" or head.dtype.itemsize > 8:
        raise TypeError(f"an array of {head.dtype} among expansions, which are sums of float64")
    head = head.astype(np.float64, copy=False)
    nothing = np.broadcast_to(0.0, head.shape)
    return Number((head, *(nothing,) * (components - 1)), nothing)


def negative(a: Number) -> Number:
    """Minus a."""
    return Number(tuple(-p for p in a.parts), a.error)


def add(a: Number, b: Number) -> Number:
    """A + b."""
    terms = [p for pair in zip(a.parts, b.parts, strict=True) for p in pair]
    parts, dropped = distilled(terms, len(a.parts))
    return settled(parts, (a.error + b.error + dropped) * SLACK, a.head + b.head)


def subtract(a: Number, b: Number) -> Number:
    """A - b."""
    return add(a, negative(b))


def multiply(a: Number, b: Number) -> Number:
    """A * b: products of components by the sum of their places; the last place without its rounding error, and none behind it."""
    count = len(a.parts)
    split_a, split_b = ([halves(p) for p in x.parts[: count - 1]] for x in (a, b))
    terms: list[Array] = []
    places: list[int] = []
    behind: list[Array] = []
    for place in range(count - 1):
        pairs = [product_of_halves(a.parts[i], split_a[i], b.parts[place - i], split_b[place - i]) for i in range(place + 1)]
        terms += [*behind, *(p for p, _ in pairs)]
        places += [place] * (len(terms) - len(places))
        behind = [e for _, e in pairs]
    last = [a.parts[i] * b.parts[count - 1 - i] for i in range(count)]
    terms += [*behind, *last]
    parts, dropped = distilled(terms, count, places + [count - 1] * (len(terms) - len(places)))
    rounding = sum((np.abs(p) for p in last[1:]), np.abs(last[0])) * UNIT
    for i in range(1, count):  # what is behind the last place; places further back are 2**-52 of it and less
        rounding = rounding + np.abs(a.parts[i] * b.parts[count - i]) * (1 + 2.0**-50)
    error = np.abs(a.head) * b.error + np.abs(b.head) * a.error + a.error * b.error
    return settled(parts, (error * (1 + 2.0**-50) + rounding + dropped + TINY) * SLACK, a.head * b.head)


def scaled(a: Number, factor: Array) -> Number:
    """A times a power of two: exact above the subnormal numbers."""
    grown = np.all(factor >= 1)
    return settled([p * factor for p in a.parts], a.error * factor + (0 if grown else TINY), a.head * factor)


def divide(a: Number, b: Number) -> Number:
    """A / b, by long division; its error is what the rest says."""
    factor = np.where(np.abs(b.head) < 2.0**-700, 2.0**500, 1)
    if np.any(factor != 1):
        a, b = scaled(a, factor), scaled(b, factor)
    count, rest, digits = len(a.parts), a, []
    for _ in range(count + 1):
        digits.append(rest.head / b.head)
        rest = subtract(rest, multiply(b, lifted(digits[-1], count)))
    parts, dropped = distilled(digits, count)
    error = (np.abs(rest.head) * (1 + 2.0**-50) + rest.error) / below(b) + dropped + TINY
    plain = a.head / b.head
    usual = np.isfinite(a.head) & np.isfinite(b.head) & (b.head != 0)
    return settled(parts, error * SLACK, plain, usual & np.isfinite(plain))


def sqrt(a: Number) -> Number:
    """The root, by Newton's iteration from the float64 root; its error is what the square lacks."""
    count, head = len(a.parts), np.sqrt(a.head)
    usual = np.isfinite(a.head) & (a.head > 0)
    small = usual & (a.head < 2.0**-500)
    if np.any(small):  # the square of its root would lose components
        factor = np.where(small, 2.0**600, 1)
        return scaled(sqrt(scaled(a, factor)), np.where(small, 2.0**-300, 1))
    y = lifted(np.where(usual, head, 1), count)
    x = Number(tuple(np.where(usual, p, 1 if i == 0 else 0) for i, p in enumerate(a.parts)), np.where(usual, a.error, 0))
    digits = 1
    while digits < count:
        y = add(y, scaled(divide(subtract(x, multiply(y, y)), y), np.asarray(0.5)))
        digits *= 2
    y = Number(y.parts, np.zeros_like(y.error))
    rest = subtract(x, multiply(y, y))
    error = (np.abs(rest.head) * (1 + 2.0**-50) + rest.error) / y.head + TINY
    unsure = np.where(a.head == 0, np.sqrt(a.error), 0)
    made = settled(list(y.parts), error * SLACK, head, usual)
    return Number(made.parts, np.where(usual, made.error, unsure))


def below(b: Number) -> Array:
    """A lower bound of |b|; 0 where it may be 0."""
    return np.maximum(np.abs(b.head) * (1 - 2.0**-50) - b.error * SLACK, 0)


def settled(parts: list[Array], error: Array, plain: Array, usual: Any = None) -> Number:
    """The number; where it is not a usual one, as an infinity or NaN is not, what float64 gives, without error.

    Components of a usual number that are not finite, which happens beside the largest float64, have an infinite error.
    """
    usual = np.isfinite(plain) if usual is None else usual
    fine = usual & np.isfinite(parts[0]) & ~np.isnan(error)
    if np.all(fine):
        return Number(tuple(parts), error)
    lost = np.where(usual, np.inf, 0)
    return Number((np.where(fine, parts[0], plain), *(np.where(fine, p, 0) for p in parts[1:])), np.where(fine, error, lost))


def chosen(where: Any, a: Number, b: Number) -> Number:
    """A where it says so, b elsewhere."""
    return Number(tuple(np.where(where, p, q) for p, q in zip(a.parts, b.parts, strict=True)), np.where(where, a.error, b.error))


def less(a: Number, b: Number, *, or_equal: bool = False) -> Array:
    """Whether a is less than b: the first components that differ decide, for each is the nearest float64 to what is left."""
    result: Any = np.full(np.broadcast_shapes(a.head.shape, b.head.shape), or_equal)
    for p, q in zip(reversed(a.parts), reversed(b.parts), strict=True):
        result = (p < q) | ((p == q) & result)
    return result


def equal(a: Number, b: Number) -> Array:
    """Whether all components are the same."""
    result: Any = a.head == b.head
    for p, q in zip(a.parts[1:], b.parts[1:], strict=True):
        result = result & (p == q)
    return result


def larger(a: Number, b: Number) -> Number:
    """The larger of two; NaN where one is. Which of two within their errors it is makes no difference beyond these."""
    made = chosen(less(b, a) | np.isnan(a.head), a, b)
    finite = np.isfinite(a.head) & np.isfinite(b.head)
    return Number(made.parts, np.where(finite, np.maximum(a.error, b.error), made.error))


def smaller(a: Number, b: Number) -> Number:
    """The smaller of two; NaN where one is."""
    return negative(larger(negative(a), negative(b)))
