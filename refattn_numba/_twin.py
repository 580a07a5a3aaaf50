"""`twin_of`: a fast function with the name, signature, docstring and checks of a reference."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np

from refattn import Mechanism
from refattn import using as using_these
from refattn._core import Pullback
from refattn._core.mechanism import with_vjp

P = ParamSpec("P")
Y = TypeVar("Y")

_TWINS: dict[str, Mechanism[..., Any]] = {}


@functools.cache
def precision(*dtypes: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype to compute and return in: float64 where an argument has it, float32 otherwise."""
    found = np.result_type(np.float32, *(d for d in dtypes if d.kind == "f"))
    if found not in {np.dtype(np.float32), np.dtype(np.float64)}:
        raise TypeError(f"an argument is {found}, but a compiled kernel takes at most float64: use the reference in refattn")
    return found


def twin_of(
    reference: Mechanism[P, Y], *, like: Callable[..., Any] | None = None, stored: bool = False, makes_new: bool = True
) -> Callable[[Callable[..., tuple[Y, Pullback]]], Mechanism[P, Y]]:
    """Give a fast rule its reference's face; refuse a rule whose parameters differ.

    Shapes, options and dtypes are checked as the reference's docstring states before the rule sees them, so that a kernel,
    which has no bounds checks, never reads or writes outside an array. With `like`, the rule takes ``*args, **kwargs`` for
    that function, whose parameters are compared in its place. With `stored`, it gets arrays in the types in which they are stored.
    Where it `makes_new`, it returns arrays that it has made, and nothing twice, so that they need no copy.
    """

    def decorate(rule: Callable[..., tuple[Y, Pullback]]) -> Mechanism[P, Y]:
        ours, theirs = (
            [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()] for f in (like or rule, cast("Any", reference))
        )
        if rule.__name__ != reference.__name__ or ours != theirs:
            raise TypeError(f"{rule.__module__}.{rule.__name__}: name or parameters differ from {reference.spec.module}")
        rule.__doc__ = reference.__doc__
        made = with_vjp(reference.spec, rule, precision=None if stored else precision, makes_new=makes_new)
        _TWINS[reference.__name__] = made
        return cast("Mechanism[P, Y]", made)

    return decorate


def twins() -> dict[str, Mechanism[..., Any]]:
    """All fast functions, by name.

    Returns
    -------
    dict of str to mechanism
        Each has the ``.vjp`` and ``.spec`` of its reference.
    """
    return dict(sorted(_TWINS.items()))


@contextmanager
def using() -> Iterator[None]:
    """Within the block, the mechanisms of `refattn` that are made of others call the fast ones.

    Examples
    --------
    >>> import numpy as np, refattn, refattn_numba
    >>> x, w = np.ones((1, 3, 4)), np.eye(4)
    >>> with refattn_numba.using():
    ...     y = refattn.multi_head_attention(x, x, x, w, w, w, w, num_heads=2)
    >>> y.shape
    (1, 3, 4)
    """
    with using_these(**_TWINS):
        yield
