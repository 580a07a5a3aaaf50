"""What the functions of NumPy that bodies call do with expansions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from refattn.exact import sums
from refattn.exact.constants import constant
from refattn.exact.expansion import Expansion, expansion, expansion_of, number_of, selected
from refattn.exact.number import Number

ELLIPSIS = "ABCDEFGH"
"""Names of the axes that three dots stand for."""


def _moving(function: Callable[..., Any]) -> Callable[..., Any]:
    def moved(x: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(x, Expansion):
            return function(x, *args, **kwargs)
        return x.moved(lambda p: function(p, *args, **kwargs))

    return moved


def _joining(function: Callable[..., Any]) -> Callable[..., Any]:
    def joined(arrays: Any, *args: Any, **kwargs: Any) -> Any:
        components = next(x.components for x in arrays if isinstance(x, Expansion))
        numbers = [number_of(x, components) for x in arrays]
        parts = (function([x.parts[i] for x in numbers], *args, **kwargs) for i in range(components))
        return expansion_of(Number(tuple(parts), function([x.error for x in numbers], *args, **kwargs)))

    return joined


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of the nearest float64 alone: for shapes, and for what is 0, infinite or NaN."""

    def plain(*args: Any, **kwargs: Any) -> Any:
        return function(*(a.view(np.ndarray) if isinstance(a, Expansion) else a for a in args), **kwargs)

    return plain


def _where(condition: Any, *branches: Any) -> Any:
    condition = condition.view(np.ndarray) if isinstance(condition, Expansion) else condition
    if not any(isinstance(b, Expansion) for b in branches):
        return np.where(condition, *branches)
    return selected(condition, *branches)


def _full_like(x: Any, fill_value: Any, dtype: Any = None, order: Any = "K", subok: Any = True, shape: Any = None) -> Any:
    size = x.shape if shape is None else shape
    if dtype is not None and np.dtype(dtype).kind != "f":
        return np.full(size, fill_value, dtype)
    components = next(a.components for a in (x, fill_value) if isinstance(a, Expansion))
    made = expansion(np.zeros(size), components)
    made[...] = constant(Fraction(fill_value), components) if isinstance(fill_value, str) else fill_value
    return made


def _filled(value: float) -> Callable[..., Any]:
    def like(x: Any, dtype: Any = None, order: Any = "K", subok: Any = True, shape: Any = None) -> Any:
        return _full_like(x, value, dtype, order, subok, shape)

    return like


def _pad(x: Any, pad_width: Any, mode: Any = "constant", **options: Any) -> Any:
    if np.any(options.get("constant_values", 0)):
        raise TypeError("refattn.exact has no numpy.pad of expansions with constant_values")
    return x.moved(lambda p: np.pad(p, pad_width, mode, **options))


def _argsort(x: Any, axis: Any = -1, kind: Any = None, order: Any = None, *, stable: Any = None) -> Any:
    """Stable; the first components that differ decide."""
    return np.lexsort(tuple(reversed(x.number.parts)), axis=axis)


def _argmax(x: Any, axis: Any = None, out: Any = None, *, keepdims: Any = False) -> Any:
    flat = x.reshape(-1) if axis is None else x
    if np.isnan(flat.view(np.ndarray)).any():
        return np.argmax(x.view(np.ndarray), axis, keepdims=keepdims)
    largest = flat.max(axis=-1 if axis is None else axis, keepdims=True)
    found = np.argmax(flat == largest, axis=-1 if axis is None else axis)
    return np.expand_dims(found, axis) if keepdims and axis is not None else found


def _argmin(x: Any, axis: Any = None, out: Any = None, *, keepdims: Any = False) -> Any:
    return _argmax(-x, axis, keepdims=keepdims)


def _cumsum(x: Any, axis: Any = None, dtype: Any = None, out: Any = None) -> Any:
    flat = x.reshape(-1) if axis is None else x
    along = 0 if axis is None else axis
    rows = flat.moved(lambda p: np.moveaxis(p, along, 0))
    return expansion_of(sums.running(rows.number)).moved(lambda p: np.moveaxis(p, 0, along))


def _sum(x: Any, axis: Any = None, **options: Any) -> Any:
    return x.sum(axis=axis, **options)


def _mean(x: Any, axis: Any = None, **options: Any) -> Any:
    total = x.sum(axis=axis, **options)
    return total / (x.size // max(total.size, 1))


def _einsum(subscripts: str, *operands: Any, **options: Any) -> Any:
    """Of two operands, each letter once in each; letters that the result lacks are summed over, in their order."""
    inputs, _, result = subscripts.replace(" ", "").partition("->")
    names = inputs.split(",")
    if len(operands) != 2 or len(names) != 2 or not result or options:
        raise TypeError(f"refattn.exact has no numpy.einsum of {subscripts!r}")
    components = next(x.components for x in operands if isinstance(x, Expansion))
    unnamed = [np.ndim(x) - len(n.replace("...", "")) for x, n in zip(operands, names, strict=True)]
    first, second = (n.replace("...", ELLIPSIS[max(unnamed) - k : max(unnamed)]) for n, k in zip(names, unnamed, strict=True))
    result = result.replace("...", ELLIPSIS[: max(unnamed)])
    summed = "".join(c for c in dict.fromkeys(first + second) if c not in result)
    sizes = {c: size for x, n in zip(operands, (first, second), strict=True) for c, size in zip(n, np.shape(x), strict=True)}
    count = math.prod(sizes[c] for c in summed)

    def placed(x: Any, name: str) -> Number:
        """With the axes of the result, and one for all that is summed over; axes that it lacks have length 1."""
        order = [name.index(c) for c in result + summed if c in name]
        shape = [np.shape(x)[name.index(c)] if c in name else 1 for c in result + summed]
        outer, inner = shape[: len(result)], [sizes[c] for c in summed]

        def move(p: Any) -> Any:
            return np.broadcast_to(p.transpose(order).reshape(shape), (*outer, *inner)).reshape(*outer, count)

        parts, error = number_of(x, components)
        return Number(tuple(move(p) for p in parts), move(error))

    return expansion_of(sums.inner(placed(operands[0], first), placed(operands[1], second)))


FUNCTIONS: Mapping[Any, Callable[..., Any]] = {
    **{
        f: _moving(f)
        for f in (
            np.moveaxis,
            np.reshape,
            np.swapaxes,
            np.transpose,
            np.broadcast_to,
            np.flip,
            np.repeat,
            np.tile,
            np.take_along_axis,
            np.expand_dims,
            np.squeeze,
            np.ravel,
            np.copy,
        )
    },
    **{f: _joining(f) for f in (np.concatenate, np.stack)},
    **{f: _plain(f) for f in (np.shape, np.ndim, np.size, np.nonzero, np.isneginf, np.isposinf, np.result_type)},
    np.where: _where,
    np.full_like: _full_like,
    np.zeros_like: _filled(0.0),
    np.ones_like: _filled(1.0),
    np.pad: _pad,
    np.argsort: _argsort,
    np.argmax: _argmax,
    np.argmin: _argmin,
    np.cumsum: _cumsum,
    np.sum: _sum,
    np.mean: _mean,
    np.einsum: _einsum,
}
