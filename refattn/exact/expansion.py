"""An array whose elements are sums of several float64: a subclass of `numpy.ndarray` that carries a call through any body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, cast

import numpy as np

from refattn._core import Array
from refattn.exact.number import Number, chosen, lifted

Expanded: TypeAlias = Any
"""An `Expansion`, for type checkers: NumPy's stubs say of its operators that they return plain arrays."""


def _moving(name: str) -> Any:
    """The method of that name, of each component alike."""

    def method(self: Expansion, *args: Any, **kwargs: Any) -> Expansion:
        return self.moved(lambda p: getattr(p, name)(*args, **kwargs))

    return method


def _function(name: str) -> Any:
    """The method that the function of that name is."""

    def method(self: Expansion, *args: Any, **kwargs: Any) -> Any:
        return getattr(np, name)(self, *args, **kwargs)

    return method


def _astype(self: Expansion, dtype: Any, **options: Any) -> Any:
    """An expansion stays one, as no wider format is asked for; booleans and integers come from the nearest float64."""
    if np.dtype(dtype) == np.float64:
        return self.copy() if options.get("copy", True) else self
    if np.dtype(dtype).kind == "f":
        raise TypeError(f"an expansion cannot become {np.dtype(dtype)}: refattn.exact computes in sums of float64 alone")
    return self.view(np.ndarray).astype(dtype, **options)


class Expansion(np.ndarray):
    """Its own memory holds the nearest float64; arrays of the same shape hold the other components and the error bound.

    A view is a view of all of them, so that assignment to a part of an array works. What NumPy makes without asking has no
    further components (`low` is None), and the next operation on it is an error, never a loss.
    """

    low: tuple[Array, ...] | None
    error: Array

    def __array_finalize__(self, source: Any) -> None:
        """A new array has no components until `expansion_of` gives it some."""
        self.low = None

    @property
    def number(self) -> Number:
        """Its components and error as plain arrays, which share memory with it."""
        if self.low is None:
            raise TypeError("an operation of NumPy that refattn.exact does not know has dropped the components of an array")
        return Number((self.view(np.ndarray), *self.low), self.error)

    @property
    def components(self) -> int:
        """How many float64 an element is."""
        return len(self.number.parts)

    def moved(self, move: Callable[[Array], Any]) -> Expansion:
        """Another arrangement of the elements: of each component alike."""
        parts, error = self.number
        return expansion_of(Number(tuple(move(p) for p in parts), move(error)))

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: tuple[Any, ...] | None = None, **kwargs: Any) -> Any:
        """By the table of `refattn.exact.operations`."""
        from refattn.exact.operations import operate  # noqa: PLC0415  # which makes expansions

        with np.errstate(all="ignore"):
            result = operate(ufunc, method, inputs, kwargs)
        if out is None:
            return result
        (target,) = out
        if isinstance(result, Expansion) and not isinstance(target, Expansion):
            raise TypeError(f"{ufunc.__name__}: an array of float64 cannot take an expansion")
        target[...] = result
        return target

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """By the table of `refattn.exact.functions`."""
        from refattn.exact.functions import FUNCTIONS  # noqa: PLC0415

        if function not in FUNCTIONS:
            raise TypeError(f"refattn.exact has no {function.__name__} of expansions")
        with np.errstate(all="ignore"):
            return FUNCTIONS[function](*args, **kwargs)

    def __getitem__(self, key: Any) -> Expansion:
        """A view, or for an index array a copy, of each component."""
        return self.moved(lambda p: p[key])

    def __setitem__(self, key: Any, value: Any) -> None:
        """Each component is assigned."""
        parts, error = number_of(value, self.components)
        for target, given in zip((*self.number.parts, self.error), (*parts, error), strict=True):
            target[key] = given

    def __bool__(self) -> bool:
        """Whether it is not 0: the nearest float64 of nothing else is 0."""
        return bool(self.view(np.ndarray))

    @property
    def T(self) -> Any:  # noqa: N802
        """All axes in reverse order."""
        return self.moved(lambda p: p.T)

    reshape: Any = _moving("reshape")
    swapaxes: Any = _moving("swapaxes")
    transpose: Any = _moving("transpose")
    repeat: Any = _moving("repeat")
    ravel: Any = _moving("ravel")
    flatten: Any = _moving("flatten")
    squeeze: Any = _moving("squeeze")
    take: Any = _moving("take")
    copy: Any = _moving("copy")
    argmax: Any = _function("argmax")
    argmin: Any = _function("argmin")
    argsort: Any = _function("argsort")
    cumsum: Any = _function("cumsum")
    mean: Any = _function("mean")
    astype: Any = _astype


def expansion_of(number: Number) -> Expansion:
    """The array of these components."""
    parts, error = (np.asarray(p) for p in number.parts), np.asarray(number.error)
    head, *low = parts
    made = cast(Expansion, head.view(Expansion))
    made.low, made.error = tuple(low), error
    return made


def number_of(x: Any, components: int) -> Number:
    """The components of an expansion, or of numbers that are exact."""
    if isinstance(x, Expansion):
        return x.number
    return lifted(x, components)


def expansion(x: Any, components: int) -> Expansion:
    """A float64 array as expansions with components of their own, so that they can be assigned to."""
    head, error = np.array(lifted(x, components).head), np.zeros(np.shape(x))
    return expansion_of(Number((head, *(np.zeros(np.shape(x)) for _ in range(components - 1))), error))


def selected(where: Any, a: Any, b: Any) -> Expansion:
    """A where it says so, b elsewhere, one of which is an expansion."""
    components = next(x.components for x in (a, b) if isinstance(x, Expansion))
    return expansion_of(chosen(where, number_of(a, components), number_of(b, components)))
