"""Another arithmetic for a whole call: every operation rounded, or disturbed as rounding might."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from refattn._core import Array
from refattn._core.hook import PATH, Result, hooked
from refattn._core.mechanism import using
from refattn._core.random import Random
from refattn.testing.precision import Format, named_format
from refattn.testing.stored import POINTWISE, stored_forms

EXACT = {np.negative, np.positive, np.absolute, np.maximum, np.minimum, np.sign, np.floor, np.ceil, np.conjugate}
ADDITIONS = {np.add, np.subtract}
SUMS = {"sum", "mean", "cumsum"}
TRANSFORMS = {"rfft2", "irfft2"}
DRAWS = 4096
FIRST, MOST = 2**16, 2**19
"""Random numbers that are kept for the next call: what most of them use, and as many as one has used, up to 4 MB for each seed."""


class Inexact(np.ndarray):
    """An array whose every operation passes through `after(result, magnitude)`.

    The magnitude is what rounding is relative to: the result, or for a sum of n terms the sum of their magnitudes times
    ``4 + sqrt(n)``, which covers any order of summation of random or of equal signs.
    """

    after: Arithmetic
    given: bool = False
    """Whether these are numbers that were given or stored, their differences (scores less their largest), or running sums."""
    backward: bool = False
    """Whether they were made in the backward pass."""

    def __array_finalize__(self, source: Any) -> None:
        """Views and copies keep the arithmetic."""
        if isinstance(source, Inexact):
            self.__dict__.update(source.__dict__)

    def _made(self, result: Any, magnitude: Any, given: bool = False) -> Any:
        if type(result) is np.ndarray and result.dtype.kind == "f":  # as most are
            return wrapped(result if magnitude is None else self.after(result, magnitude), self.after, given=given)
        if isinstance(result, (tuple, list)):
            parts = [None] * len(result) if magnitude is None else magnitude
            return type(result)(self._made(r, m, given) for r, m in zip(result, parts, strict=True))
        result = np.asarray(result)
        if result.dtype.kind not in "fc":
            return result
        if magnitude is None:
            return wrapped(result, self.after, given=given)
        if result.dtype.kind == "f":
            return wrapped(self.after(result, np.asarray(magnitude)), self.after, given=given)
        real, imaginary = (np.asarray(self.after(part, np.asarray(magnitude))) for part in (result.real, result.imag))
        made: Any = real + 1j * imaginary
        return wrapped(made, self.after)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: tuple[Any, ...] | None = None, **kwargs: Any) -> Any:
        """Compute on plain arrays, then round."""
        after = self.after
        plain = [x.view(np.ndarray) if isinstance(x, Inexact) else x for x in inputs]
        if method == "at":
            return after.scatter(ufunc, *plain)
        plain = after.operands(ufunc, inputs, plain)
        result = getattr(ufunc, method)(*plain, **_plain(kwargs)) if kwargs else getattr(ufunc, method)(*plain)
        differs = ufunc in ADDITIONS and method == "__call__" and not after.backward
        given = method == "accumulate" or ((differs or ufunc in EXACT) and _all_given(inputs))
        made = self._made(result, _magnitude(ufunc, method, plain, kwargs, result), given)
        if out is None:
            return made
        out[0][...] = after.stored(made) if ufunc in ADDITIONS else made
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
            magnitude = None
        return self._made(result, magnitude, name == "cumsum" or (name not in SUMS and name != "einsum" and _all_given(args)))


class Arithmetic:
    """What becomes of each result, and of what is stored between operations; this one is exact."""

    backward = False

    def __call__(self, x: Array, magnitude: Array) -> Array:
        """The result of an operation that is this large."""
        return x

    def operands(self, ufunc: np.ufunc, inputs: tuple[Any, ...], plain: list[Any]) -> list[Any]:
        """The operands as they are read."""
        return plain

    def stored(self, x: Any) -> Any:
        """A sum that is kept in place while more is added."""
        return x

    def scatter(self, ufunc: np.ufunc, total: Array, indices: Any, *values: Any) -> None:
        """What `ufunc.at` does in place."""
        ufunc.at(total, indices, *values)


def wrapped(x: Array, after: Arithmetic, *, given: bool = False) -> Inexact:
    """A view of the array in this arithmetic."""
    view = (x if type(x) is np.ndarray else np.asarray(x)).view(Inexact)
    view.after, view.given, view.backward = after, given, after.backward
    return view


def _all_given(inputs: Any) -> bool:
    """Whether no number among these was operated on."""
    for x in inputs:
        if isinstance(x, Inexact):
            if not x.given:
                return False
        elif isinstance(x, (tuple, list)) and not _all_given(x):
            return False
    return True


def _plain(x: Any) -> Any:
    if isinstance(x, Inexact):
        return x.view(np.ndarray)
    if isinstance(x, (tuple, list)):
        return type(x)(map(_plain, x))
    return {k: _plain(part) for k, part in x.items()} if isinstance(x, dict) else x


def _all_finite(x: Array) -> bool:
    """Whether all are, or False where the sum of their squares overflows: a third of what `isfinite` and `all` take."""
    return math.isfinite(np.vdot(x, x))


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
        return (a @ b) * (4 + math.sqrt(max(1, a.shape[-1])))
    if method != "__call__":
        if ufunc is not np.add:
            return None
        summed = getattr(ufunc, method)(np.abs(inputs[0]), *inputs[1:], **{**kwargs, "axis": kwargs.get("axis", 0)})
        return summed * _growth(inputs[0], result)
    if ufunc in ADDITIONS:  # what is added may have been scaled before, each by itself
        return np.abs(inputs[0]) + np.abs(inputs[1])
    if ufunc is np.exp:
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

    class Nearest(Arithmetic):
        def __call__(self, x: Array, magnitude: Array) -> Array:
            return target.round(x)

    def passing(result: Result) -> Any:  # a mask has nothing to round
        return wrapped(target.round(result.value), Nearest()) if np.asarray(result.value).dtype.kind == "f" else result.value

    with hooked(passing):
        yield


class Disturbance(Arithmetic):
    """Errors at random, as an honest kernel of a format may make them.

    Every operation errs by the accumulator's unit roundoff e, which is taken as the standard deviation of a bell-shaped error:
    libraries' exponentials and the like err by more than one rounding. A number that is stored in the format errs by at most its
    unit roundoff u, evenly between -u and u, which has the standard deviation u / sqrt(3) that a rounding can have at most.
    Stored are

    - what passes from one mechanism to the next,
    - forward, what was computed before something given is added to it or subtracted from it: a product before its bias, a mean,
      a normalised number before its shift; but nothing inside a function of single numbers; and a sum before its logarithm,
    - a sum that is accumulated in place, after each addition: overlapping parts of a transposed convolution,
    - backward, whatever an operation computes, as automatic differentiation stores it, and a gradient once before the last rounding:
      parts of it are added, of threads or of uses.
    """

    def __init__(self, target: Format, seed: int, choices: Iterable[Array] = ()) -> None:
        self.unit, self.floor, self.accumulator = target.unit, target.floor, target.accumulator
        self.choices = iter(choices)
        self.noise, self.storage = _noise(seed, Random.normal, self.accumulator), _noise(seed, _even, self.unit)
        self.least = self.floor / self.unit

    def __call__(self, x: Array, magnitude: Array) -> Array:
        """What is not finite stays as it is."""
        by = magnitude if _all_finite(magnitude) else np.where(np.isfinite(magnitude), magnitude, 0)
        error = by * self.noise(x.size).reshape(x.shape)
        error += x
        return error

    def stored(self, x: Any) -> Any:
        """As read back from memory: zero is stored as it is, so that what is divided by it, or not, stays so."""
        plain = np.asarray(x)
        size = np.abs(plain) if _all_finite(plain) else np.where(np.isfinite(plain), np.abs(plain), 0)
        size += self.least if np.count_nonzero(plain) == plain.size else self.least * (plain != 0)
        size *= self.storage(plain.size).reshape(plain.shape)
        size += plain
        return size

    def scatter(self, ufunc: np.ufunc, total: Array, indices: Any, *values: Any) -> None:
        """Sums that are kept in place: what n numbers are added to has been stored n - 1 times."""
        size, terms = np.abs(total), np.zeros_like(total)
        super().scatter(ufunc, total, indices, *values)
        if ufunc is np.add and total.dtype.kind == "f":
            np.add.at(size, indices, np.abs(values[0]))
            np.add.at(terms, indices, np.ones_like(values[0], total.dtype))
            again = np.sqrt(np.maximum(terms - 1, 0)) * self.storage(total.size).reshape(total.shape)
            total += size * (again + (4 + np.sqrt(terms)) * self.noise(total.size).reshape(total.shape))

    def kept(self, y: Any) -> Array:
        """An output that the pullback will read: inside of a call it was stored already, as it was passed on."""
        return y if isinstance(y, Inexact) else wrapped(self.stored(y), self, given=True)

    def given(self, x: Any) -> Array:
        """A number that is exact, in this arithmetic."""
        return x if isinstance(x, Inexact) else wrapped(np.asarray(x), self, given=True)

    def turn(self) -> None:
        """The backward pass begins."""
        self.backward = True

    def next_choice(self) -> Array | None:
        """The exact input of the next function that chooses; None where it is not known."""
        return next(self.choices, None)

    def operands(self, ufunc: np.ufunc, inputs: tuple[Any, ...], plain: list[Any]) -> list[Any]:
        """Where an operand may have been stored, as read back."""
        if not self.backward and ufunc is not np.log:
            joins = ufunc in ADDITIONS and any(isinstance(x, Inexact) and x.given for x in inputs)
            if not joins or (PATH.get() or ("",))[-1] in POINTWISE:
                return plain
        return [
            self.stored(p) if isinstance(x, Inexact) and not x.given and p.dtype.kind == "f" else p
            for x, p in zip(inputs, plain, strict=True)
        ]

    def passing(self, result: Result) -> Array:
        """The hook: what the outermost mechanism takes and returns is exact, or rounded once, which is no part of this."""
        x = np.asarray(result.value)
        self.backward = self.backward or result.kind in {"cotangent", "gradient"}
        if x.dtype.kind != "f":
            return x
        outermost = len(result.path) == 1
        if outermost and (result.kind == "output" or (result.kind == "gradient" and result.path[0] in POINTWISE)):
            return x
        exact = outermost and result.kind in {"argument", "cotangent"}
        return wrapped(x if exact else self.stored(x), self, given=True)


@contextmanager
def disturbed(target: Format, seed: int) -> Iterator[Disturbance]:
    """Within the block, each operation errs at random as an honest kernel of this format may: see `Disturbance`."""
    arithmetic = Disturbance(target, seed)
    with within(arithmetic):
        yield arithmetic


@contextmanager
def within(arithmetic: Disturbance) -> Iterator[None]:
    """Within the block, a call or its pullback goes on in this arithmetic."""
    with hooked(arithmetic.passing), using(**stored_forms(arithmetic)):
        yield


def _even(random: Random, count: int) -> Array:
    return random.uniform(-1, 1, count)


def _noise(seed: int, draw: Callable[[Random, int], Array], scale: float) -> Callable[[int], Array]:
    """As many numbers as asked for, times a power of 2: a call of NumPy costs as much as hundreds of them."""
    kept, used = _drawn(seed, draw, scale), 0
    drawn = kept.numbers
    random: Random | None = None

    def following(count: int) -> Array:
        nonlocal random, drawn, used
        if used + count > drawn.size:
            if random is None and used + count <= MOST:
                drawn = kept.first(used + count)
            else:
                if random is None:
                    random = Random(seed)
                    draw(random, drawn.size)
                drawn, used = np.concatenate([drawn[used:], scale * draw(random, max(count, DRAWS))]), 0
        used += count
        return drawn[used - count : used]

    return following


class _Drawn:
    """The numbers with which each call begins."""

    def __init__(self, seed: int, draw: Callable[[Random, int], Array], scale: float) -> None:
        self._random, self._draw, self._scale, self._lock = Random(seed), draw, scale, threading.Lock()
        self.numbers = self._more(FIRST)

    def first(self, count: int) -> Array:
        """At least so many."""
        with self._lock:
            if (lacking := count - self.numbers.size) > 0:
                self.numbers = np.concatenate([self.numbers, self._more(max(lacking, self.numbers.size // 2))])
                self.numbers.flags.writeable = False
            return self.numbers

    def _more(self, count: int) -> Array:
        made = self._scale * self._draw(self._random, count)
        made.flags.writeable = False
        return made


_drawn = functools.lru_cache(maxsize=64)(_Drawn)
