"""How an alternative is written down: a change of one reference call to another.

A call takes arguments by name and returns outputs by name, and a function from cotangents to gradients by name. An alternative
makes another such call of it, mostly by changing what goes in or what comes out; two of them combine by making one of the
other's. A map that changes an array names its adjoint too, so that gradients follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from refattn._core import Array

Arguments: TypeAlias = Mapping[str, Any]
Named: TypeAlias = Mapping[str, Array]
Call: TypeAlias = Callable[[Arguments], tuple[Named, Callable[[Named], Named]]]
Change: TypeAlias = Callable[[Call], Call]
Function: TypeAlias = Callable[[Any], Any]


class DoesNotApply(Exception):  # noqa: N818  # it is an answer, not an error
    """There is nothing in this call for an alternative to change."""


@dataclass(frozen=True)
class Alternative:
    """One convention that somebody may have followed instead.

    Attributes
    ----------
    said : str
        What stands after "matches if".
    about : str
        What it changes: two that change the same are not combined.
    change : callable
        From a call to the other one.
    """

    said: str
    about: str
    change: Change


class Map(NamedTuple):
    """A linear map of an array, and its adjoint."""

    there: Function
    back: Function


def factor(c: Any) -> Map:
    """A product with a number."""
    return Map(lambda x: x * c, lambda d: d * c)


def swapped(i: int, j: int) -> Map:
    """Two axes in each other's place."""
    return Map(lambda x: x.swapaxes(i, j), lambda d: d.swapaxes(i, j))


def flipped(axes: tuple[int, ...]) -> Map:
    """Axes in reverse order."""
    return Map(lambda x: np.flip(x, axes), lambda d: np.flip(d, axes))


def reordered(order: Any, axis: int) -> Map:
    """A permutation along an axis."""
    back = np.argsort(order)
    return Map(lambda x: np.take(x, order, axis), lambda d: np.take(d, back, axis))


def reread(shape: tuple[int, ...], axes: tuple[int, ...]) -> Map:
    """The same memory read in another shape, whose axes then stand in this order."""
    back = tuple(np.argsort(axes))
    return Map(lambda x: x.reshape(shape).transpose(axes), lambda d: d.transpose(back))


def given(change: Callable[[Arguments], Mapping[str, Any] | None]) -> Change:
    """The same call with other options; an array among them has no gradient."""

    def changed(call: Call) -> Call:
        def other(arguments: Arguments) -> tuple[Named, Callable[[Named], Named]]:
            more = change(arguments)
            if not more or all(arguments.get(n) is x for n, x in more.items()):
                raise DoesNotApply
            y, pullback = call({**arguments, **more})
            lost = {n for n, x in more.items() if isinstance(x, np.ndarray) or x is None}
            return y, lambda ds: {n: g for n, g in pullback(ds).items() if n.partition(".")[0] not in lost}

        return other

    return changed


def into(maps: Callable[[Arguments], Mapping[str, Map] | None]) -> Change:
    """The same call with arrays that a map has changed."""

    def changed(call: Call) -> Call:
        def other(arguments: Arguments) -> tuple[Named, Callable[[Named], Named]]:
            found = maps(arguments) or {}
            mapped = {n: m for n, m in found.items() if isinstance(arguments.get(n), np.ndarray)}
            if not mapped:
                raise DoesNotApply
            y, pullback = call({**arguments, **{n: m.there(arguments[n]) for n, m in mapped.items()}})

            def back(ds: Named) -> Named:
                return {n: mapped[n].back(g).reshape(arguments[n].shape) if n in mapped else g for n, g in pullback(ds).items()}

            return y, back

        return other

    return changed


def out_of(maps: Callable[[Arguments], Mapping[str, Map] | None]) -> Change:
    """The same call, of which a map has changed the outputs."""

    def changed(call: Call) -> Call:
        def other(arguments: Arguments) -> tuple[Named, Callable[[Named], Named]]:
            mapped = maps(arguments) or {}
            y, pullback = call(arguments)
            if not mapped.keys() & y.keys():
                raise DoesNotApply
            made = {n: mapped[n].there(x) if n in mapped else x for n, x in y.items()}
            return made, lambda ds: pullback({n: mapped[n].back(d).reshape(y[n].shape) if n in mapped else d for n, d in ds.items()})

        return other

    return changed


def gradient_of(change: Callable[[Arguments, Named], Named]) -> Change:
    """The same outputs with other gradients."""

    def changed(call: Call) -> Call:
        def other(arguments: Arguments) -> tuple[Named, Callable[[Named], Named]]:
            y, pullback = call(arguments)
            return y, lambda ds: {**(found := pullback(ds)), **change(arguments, found)}

        return other

    return changed


def both(first: Change, second: Change) -> Change:
    """One change after the other."""
    return lambda call: second(first(call))


def without_gradients(function: Callable[[Call, Arguments], Named]) -> Change:
    """Outputs that are computed from other calls; what their gradients would be is not asked."""

    def changed(call: Call) -> Call:
        def other(arguments: Arguments) -> tuple[Named, Callable[[Named], Named]]:
            return function(call, arguments), lambda ds: {}

        return other

    return changed


def when(condition: Callable[[Arguments], bool], change: Change) -> Change:
    """Only where there is something to change."""

    def changed(call: Call) -> Call:
        def other(arguments: Arguments) -> tuple[Named, Callable[[Named], Named]]:
            if not condition(arguments):
                raise DoesNotApply
            return change(call)(arguments)

        return other

    return changed


def family(about: str, changes: Iterable[tuple[str, Change]]) -> tuple[Alternative, ...]:
    """Alternatives that change the same thing."""
    return tuple(Alternative(said, about, change) for said, change in changes)
