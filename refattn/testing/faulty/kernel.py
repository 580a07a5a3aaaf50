"""What all honest kernels share, and what a fault is: one method of an honest kernel, replaced."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

import refattn
from refattn._core import Array, Booleans, Mechanism
from refattn._core.arrays import as_array, is_real
from refattn.testing.precision import Format, named_format

Direction: TypeAlias = Literal["forward", "backward"]
Arguments: TypeAlias = SimpleNamespace
"""The arguments of one call by name: real arrays in the precision of the accumulator, what was not given as its default."""


@dataclass(frozen=True)
class Fault:
    """One way in which a kernel can be wrong.

    Attributes
    ----------
    name : str
        The name of the function that makes it, with spaces.
    what : str
        One sentence.
    family : str
        ``"attention"``, ``"convolution"`` or ``"linear"``.
    direction : {"forward", "backward"}
        Whether outputs are wrong, or gradients alone.
    needs : tuple of str
        Options and properties of a call without which it may not show.
    mirrors : str
        A public issue about such a fault, as ``owner/name#number``, or "".
    mechanisms : tuple of str
        Where it can be planted; empty is everywhere in the family.
    change : mapping of str to callable
        Methods of the honest kernel, by name, and what stands in their place.
    """

    name: str
    what: str
    family: str
    direction: Direction
    needs: tuple[str, ...] = ()
    mirrors: str = ""
    mechanisms: tuple[str, ...] = ()
    change: Mapping[str, Callable[..., Any]] = field(default_factory=dict, repr=False)


class Kernel:
    """An honest kernel that computes in tiles, in low precision with wider accumulators.

    Called with the arguments of the mechanism whose name it is given; `vjp` is its backward pass. It takes any real arrays, which
    hold numbers of its format already, and returns arrays of the accumulator's precision that hold numbers of its format.

    Parameters
    ----------
    mechanism : str
        What it computes.
    dtype : str, dtype or None
        Its format; None is that of the first argument.
    tile : int
        Positions of a tile; 0 is the family's own size.
    reverse : bool
        Go through tiles from the last to the first, where the order is free.
    store : bool
        Round what a matrix unit reads (weights, gradients of scores) to the format.
    """

    family: ClassVar[str]
    unsupported: ClassVar[frozenset[str]] = frozenset()
    own_tile: ClassVar[int] = 64

    def __init__(self, mechanism: str, dtype: Any = None, *, tile: int = 0, reverse: bool = False, store: bool = True) -> None:
        self.mechanism = mechanism_named(mechanism)
        self.format: Format = named_format("float64" if dtype is None else dtype)
        self.follows = dtype is None
        self.tile, self.reverse, self.store = tile or self.own_tile, reverse, store
        signature = self.mechanism.spec.signature
        kept = [p for p in signature.parameters.values() if p.name not in self.unsupported]
        self.__signature__ = signature.replace(parameters=kept, return_annotation=inspect.Signature.empty)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs: one, or a tuple."""
        return self.vjp(*args, **kwargs)[0]

    def vjp(self, *args: Any, **kwargs: Any) -> tuple[Any, Callable[..., dict[str, Array]]]:
        """The outputs, and a function from their cotangents to gradients by name."""
        given = self._arguments(*args, **kwargs)
        with np.errstate(all="ignore"):
            outputs, saved = self.forward(given)

        def pullback(*ds: Any) -> dict[str, Array]:
            with np.errstate(all="ignore"):
                grads = self.backward(given, saved, *(self._array(d) for d in ds))
            return {name: self.rounded(g) for name, g in grads.items() if g is not None}

        return outputs[0] if len(outputs) == 1 else outputs, pullback

    def forward(self, a: Arguments) -> tuple[tuple[Array, ...], Any]:
        """The outputs, rounded as they are stored, and what the backward pass needs of them."""
        raise NotImplementedError

    def backward(self, a: Arguments, saved: Any, *ds: Array) -> dict[str, Array | None]:
        """The gradients of all differentiable arguments by name; None of one that was not given."""
        raise NotImplementedError

    def tiles(self, length: int) -> list[slice]:
        """Parts of an axis; the last one may be shorter."""
        found = [slice(i, min(i + self.tile, length)) for i in range(0, length, self.tile)]
        return found[::-1] if self.reverse else found

    def rounded(self, x: Array) -> Array:
        """The nearest numbers of the format."""
        return self.format.round(x).astype(self.wide)

    def stored(self, x: Array) -> Array:
        """What a matrix unit reads."""
        return self.rounded(x) if self.store else x

    @property
    def wide(self) -> type[np.floating[Any]]:
        """The precision of accumulators."""
        return np.float64 if self.format.accumulator < 2.0**-24 else np.float32

    def _arguments(self, *args: Any, **kwargs: Any) -> Arguments:
        bound = self.__signature__.bind(*args, **kwargs)
        bound.apply_defaults()
        if self.follows:
            self.format = named_format(as_array(next(iter(bound.arguments.values()))).dtype)
        return Arguments(**{name: self._array(x) for name, x in bound.arguments.items()})

    def _array(self, x: Any) -> Any:
        if x is None or isinstance(x, (bool, int, float, str, tuple)):
            return x
        array = as_array(x)
        return array.astype(self.wide) if is_real(array.dtype) else array


def mechanism_named(name: str) -> Mechanism[..., Any]:
    """The mechanism; LookupError where there is none."""
    known = {m.__name__: m for m in refattn.mechanisms()}
    if name not in known:
        raise LookupError(f"no mechanism is named {name!r}")
    return known[name]


def times(a: Array, b: Array, allowed: Booleans) -> Array:
    """The matrix product of which only allowed terms count, whatever stands in b elsewhere: 0 * NaN is NaN."""
    if np.isfinite(b).all():
        return np.where(allowed, a, 0) @ b
    terms = np.where(allowed[..., None], a[..., None] * b[..., None, :, :], 0)
    return terms.sum(axis=-2, dtype=a.dtype)


class Faults:
    """The faults of one family and direction, in the order in which they stand in a file."""

    def __init__(self, family: str, direction: Direction) -> None:
        self.family: str = family
        self.direction: Direction = direction
        self.found: list[Fault] = []

    def __iter__(self) -> Iterator[Fault]:
        return iter(self.found)

    def __call__(self, method: str, *, needs: str = "", mirrors: str = "", mechanisms: str = "") -> Callable[[Any], Any]:
        """A decorator: the function takes the place of this method; its name and docstring are the fault's."""

        def add(function: Callable[..., Any]) -> Callable[..., Any]:
            name, what = function.__name__.replace("_", " ").strip(), (function.__doc__ or "").strip()
            fault = Fault(
                name, what, self.family, self.direction, tuple(needs.split()), mirrors, tuple(mechanisms.split()), {method: function}
            )
            self.found.append(fault)
            return function

        return add
