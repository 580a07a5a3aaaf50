"""What the universal functions of NumPy do with expansions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from refattn.exact import elementary, number, sums, trigonometry
from refattn.exact.expansion import Expansion, expansion_of, number_of
from refattn.exact.number import Number

ARITHMETIC: Mapping[Any, Callable[..., Number]] = {
    np.add: number.add,
    np.subtract: number.subtract,
    np.multiply: number.multiply,
    np.divide: number.divide,
    np.reciprocal: lambda a: number.divide(number.lifted(np.ones(a.head.shape), len(a.parts)), a),
    np.negative: number.negative,
    np.positive: lambda a: a,
    np.square: lambda a: number.multiply(a, a),
    np.sqrt: number.sqrt,
    np.maximum: number.larger,
    np.minimum: number.smaller,
    np.matmul: sums.matrix_product,
}

ELEMENTARY: Mapping[Any, Callable[[Any], Any]] = {
    np.absolute: elementary.absolute,
    np.exp: elementary.exp,
    np.expm1: elementary.expm1,
    np.log: elementary.log,
    np.log1p: elementary.log1p,
    np.tanh: elementary.tanh,
    np.sin: trigonometry.sin,
    np.cos: trigonometry.cos,
    np.sign: elementary.sign,
    np.floor: elementary.floor,
}

COMPARISONS: Mapping[Any, Callable[[Number, Number], Any]] = {
    np.less: number.less,
    np.less_equal: lambda a, b: number.less(a, b, or_equal=True),
    np.greater: lambda a, b: number.less(b, a),
    np.greater_equal: lambda a, b: number.less(b, a, or_equal=True),
    np.equal: number.equal,
    np.not_equal: lambda a, b: np.logical_not(number.equal(a, b)),
}

HEADS = frozenset({np.isfinite, np.isnan, np.isinf, np.signbit, np.logical_and, np.logical_or, np.logical_not})
"""These look at the nearest float64 alone, which is 0, infinite or NaN where the number is."""

REDUCED = {np.add: 0.0, np.maximum: -np.inf, np.minimum: np.inf, np.multiply: 1.0}
"""What can be reduced, and to what if there is nothing."""


def operate(ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The result of one call: an expansion, or plain booleans."""
    components = next((x.components for x in inputs if isinstance(x, Expansion)), 2)
    if ufunc in HEADS:
        return getattr(ufunc, method)(*(x.view(np.ndarray) if isinstance(x, Expansion) else x for x in inputs), **kwargs)
    if method == "__call__" and not kwargs.keys() - {"casting", "dtype", "subok", "axes"} and "axes" not in kwargs:
        return _called(ufunc, inputs, components)
    if method == "reduce" and ufunc in REDUCED:
        return _reduced(ufunc, number_of(inputs[0], components), **kwargs)
    if method == "at" and ufunc in ARITHMETIC:
        return _at(ufunc, *inputs)
    raise TypeError(f"refattn.exact has no numpy.{ufunc.__name__}.{method} of expansions with {', '.join(kwargs) or 'these arguments'}")


def _called(ufunc: np.ufunc, inputs: tuple[Any, ...], components: int) -> Any:
    if ufunc is np.power:
        x, y = inputs
        return elementary.power(x if isinstance(x, Expansion) else expansion_of(number_of(x, components)), y)
    if ufunc in ELEMENTARY:
        return ELEMENTARY[ufunc](*inputs)
    numbers = [number_of(x, components) for x in inputs]
    if ufunc in COMPARISONS:
        return COMPARISONS[ufunc](*numbers)
    if ufunc in ARITHMETIC:
        return expansion_of(ARITHMETIC[ufunc](*numbers))
    if ufunc.__name__ == "_ones_like":  # what NumPy 2.0 makes of ``x ** 0``; it has no public name
        return expansion_of(number.lifted(np.ones(np.shape(inputs[0])), components))
    raise TypeError(f"refattn.exact has no numpy.{ufunc.__name__} of expansions")


def _reduced(
    ufunc: np.ufunc,
    x: Number,
    *,
    axis: Any = 0,
    keepdims: bool = False,
    initial: Any = None,
    where: Any = True,
    dtype: Any = None,
) -> Expansion:
    """Over some axes, taken as one in the order of indices: memory has no say."""
    if where is not True:
        raise TypeError(f"refattn.exact has no numpy.{ufunc.__name__}.reduce with where")
    ndim = x.head.ndim
    axes = tuple(range(ndim)) if axis is None else (axis,) if isinstance(axis, (int, np.integer)) else tuple(axis)
    over = tuple(sorted(a % ndim for a in axes))
    kept = tuple(a for a in range(ndim) if a not in over)

    def in_front(p: Any) -> Any:
        moved = p.transpose(*over, *kept)
        return moved.reshape(int(np.prod(moved.shape[: len(over)], dtype=int)), *moved.shape[len(over) :])

    rows = Number(tuple(in_front(p) for p in x.parts), in_front(x.error))
    if ufunc in {np.maximum, np.minimum} and initial is None and not len(rows.head):
        raise ValueError(f"zero-size array to reduction operation {ufunc.__name__} which has no identity")
    made = sums.folded(rows, ARITHMETIC[ufunc], REDUCED[ufunc])
    if initial is not None and initial != REDUCED[ufunc]:
        made = ARITHMETIC[ufunc](made, number_of(np.broadcast_to(initial, made.head.shape), len(made.parts)))
    result = expansion_of(made)
    return result.reshape(tuple(1 if a in over else n for a, n in enumerate(x.head.shape))) if keepdims else result


def _at(ufunc: np.ufunc, target: Any, indices: Any, values: Any) -> None:
    """In place, one index after the other."""
    if not isinstance(target, Expansion):
        raise TypeError(f"{ufunc.__name__}.at: an array of float64 cannot take expansions")
    keys = np.broadcast_arrays(*indices) if isinstance(indices, tuple) else [np.asarray(indices)]
    shape = keys[0].shape
    wanted = (*shape, *target.shape[len(keys) :])
    given = number_of(values, target.components)
    update = expansion_of(given).moved(lambda p: np.broadcast_to(p, wanted))
    for i in np.ndindex(shape):
        key = tuple(k[i] for k in keys)
        target[key] = ufunc(target[key], update[i])
