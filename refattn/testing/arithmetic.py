"""Another arithmetic for a whole call: every operation rounded, or disturbed as rounding might."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from refattn._core import Array
from refattn._core.hook import Result, hooked
from refattn._core.random import Random
from refattn.testing.precision import Format, named_format

EXACT = {np.negative, np.positive, np.absolute, np.maximum, np.minimum, np.sign, np.floor, np.ceil, np.conjugate}
SUMS = {"sum", "mean", "cumsum"}
TRANSFORMS = {"rfft2", "irfft2"}
DRAWS = 4096


class Inexact(np.ndarray):
    """An array whose every operation passes through `after(result, magnitude)`.

    The magnitude is what rounding is relative to: the result, or for a sum of n terms the sum of their magnitudes times
    ``4 + sqrt(n)``, which covers any order of summation of random or of equal signs.
    """

    after: Callable[[Array, Array], Array]

    def __array_finalize__(self, source: Any) -> None:
        """Views and copies keep the arithmetic."""
        if isinstance(source, Inexact):
            self.after = source.after

    def _made(self, result: Any, magnitude: Any) -> Any:
        if isinstance(result, (tuple, list)):
            return type(result)(self._made(r, m) for r, m in zip(result, magnitude, strict=True))
        result = np.asarray(result)
        if result.dtype.kind not in "fc":
            return result
        if magnitude is None:
            return wrapped(result, self.after)
        if result.dtype.kind == "f":
            return wrapped(self.after(result, np.asarray(magnitude)), self.after)
        real, imaginary = (np.asarray(self.after(part, np.asarray(magnitude))) for part in (result.real, result.imag))
        made: Any = real + 1j * imaginary
        return wrapped(made, self.after)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: tuple[Any, ...] | None = None, **kwargs: Any) -> Any:
        """Compute on plain arrays, then round."""
        plain = [x.view(np.ndarray) if isinstance(x, Inexact) else x for x in inputs]
        result = getattr(ufunc, method)(*plain, **{k: _plain(v) for k, v in kwargs.items()} if kwargs else kwargs)
        if method == "at":  # in place, and few terms each
            return None
        made = self._made(result, _magnitude(ufunc, method, plain, kwargs, result))
        if out is None:
            return made
        out[0][...] = made
        return out[0]

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Functions that move numbers are exact; sums and products of arrays round."""
        name = function.__name__
        plain, named = _plain(args), _plain(kwargs)
        result = function(*plain, **named)
        if name in SUMS:
            magnitude = function(np.abs(plain[0]), *plain[1:], **named) * _growth(plain[0], result)
        elif name == "einsum":
            factors = [np.abs(x) if isinstance(x, np.ndarray) else x for x in plain]
            magnitude = function(*factors, **named) * _growth(max((x for x in plain if isinstance(x, np.ndarray)), key=np.size), result)
        elif name in TRANSFORMS:
            magnitude = _spread_over(plain[0], result)
        else:
            magnitude = _tree(lambda _: None, result)
        return self._made(result, magnitude)


def wrapped(x: Array, after: Callable[[Array, Array], Array]) -> Inexact:
    """A view of the array in this arithmetic."""
    view = np.asarray(x).view(Inexact)
    view.after = after
    return view


def _tree(function: Callable[[Any], Any], x: Any) -> Any:
    if isinstance(x, (tuple, list)):
        return type(x)(_tree(function, part) for part in x)
    if isinstance(x, dict):
        return {k: _tree(function, part) for k, part in x.items()}
    return function(x)


def _plain(x: Any) -> Any:
    return _tree(lambda leaf: leaf.view(np.ndarray) if isinstance(leaf, Inexact) else leaf, x)


def _growth(terms: Array, result: Any) -> float:
    return 4 + math.sqrt(max(1.0, np.size(terms) / max(np.size(result), 1)))


def _spread_over(x: Array, result: Array) -> Any:
    """What the error of a fast Fourier transform is relative to: the same for all that it makes, and one step for each doubling."""
    size = math.prod(max(x.shape, result.shape, key=lambda shape: shape[-1])[-2:])
    power = np.sqrt((np.abs(x) ** 2).sum(axis=(-2, -1), keepdims=True))
    power = power if result.dtype.kind == "c" else power * math.sqrt(2) / size  # back from half of a spectrum
    return np.broadcast_to(power * (4 + math.log2(max(size, 1))), result.shape)


def _magnitude(ufunc: np.ufunc, method: str, inputs: list[Any], kwargs: dict[str, Any], result: Any) -> Any:
    if ufunc in EXACT:
        return None
    if ufunc is np.matmul:
        a, b = (np.abs(x) for x in inputs)
        with np.errstate(invalid="ignore"):
            return (a @ b) * (4 + math.sqrt(max(1, a.shape[-1])))
    if method in {"reduce", "accumulate"}:
        if ufunc is not np.add:
            return None
        return getattr(ufunc, method)(np.abs(inputs[0]), **{**kwargs, "axis": kwargs.get("axis", 0)}) * _growth(inputs[0], result)
    if ufunc is np.exp:
        with np.errstate(invalid="ignore"):
            return np.abs(result) * np.where(result == 0, 0, 2 + np.abs(inputs[0]))  # its argument is rounded too
    return np.abs(result)


@contextmanager
def rounding(dtype: Any) -> Iterator[None]:
    """Within the block, round the result of every single operation of every mechanism to a format.

    Parameters
    ----------
    dtype : str or dtype
        ``"float32"``, ``"float16"`` or ``"bfloat16"``.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> with refattn.testing.rounding("bfloat16"):
    ...     refattn.linear(np.array([1.0, 0.001]), np.ones((1, 2)))
    array([1.])
    """
    target = named_format(dtype)

    def nearest(x: Array, magnitude: Array) -> Array:
        return target.round(x)

    def passing(result: Result) -> Any:  # a mask has nothing to round
        return wrapped(target.round(result.value), nearest) if np.asarray(result.value).dtype.kind == "f" else result.value

    with hooked(passing):
        yield


@contextmanager
def disturbed(target: Format, seed: int, *, arguments: bool) -> Iterator[None]:
    """Within the block, each operation errs at random as an honest kernel of this format may.

    An operation errs by the accumulator's unit roundoff; what passes from one mechanism to the next, which a kernel may
    store, by the format's; with `arguments`, so do the arguments.
    """
    noise = _noise(seed)

    def moved(x: Array, relative: float, magnitude: Array, floor: float) -> Array:
        """What is not finite stays as it is."""
        by = relative * (magnitude if np.isfinite(magnitude).all() else np.where(np.isfinite(magnitude), magnitude, 0))
        return x + (by + floor) * noise(x.size).reshape(x.shape)

    def operation(x: Array, magnitude: Array) -> Array:
        return moved(x, target.accumulator, magnitude, 0.0)

    def passing(result: Result) -> Array:
        x = np.asarray(result.value)
        if result.kind == "cotangent" or (result.kind == "argument" and not arguments):
            return wrapped(x, operation) if x.dtype.kind == "f" else x
        return wrapped(moved(x, target.unit, np.abs(x), target.floor), operation) if x.dtype.kind == "f" else x

    with hooked(passing):
        yield


def _noise(seed: int) -> Callable[[int], Array]:
    """As many numbers as asked for, the next of `Random.normal`: drawn many at a time, since a call of NumPy costs as much as hundreds."""
    random, drawn, used = Random(seed), np.empty(0), 0

    def following(count: int) -> Array:
        nonlocal drawn, used
        if used + count > drawn.size:
            drawn, used = np.concatenate([drawn[used:], random.normal(max(count, DRAWS))]), 0
        used += count
        return drawn[used - count : used]

    return following
