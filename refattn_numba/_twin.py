"""`twin_of`: a fast function with the name, signature, docstring and checks of a reference."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np

from refattn import Mechanism
from refattn import using as using_these
from refattn._core import Pullback, tree
from refattn._core.docstring import with_more_parameters
from refattn._core.mechanism import Spec, with_vjp
from refattn_numba._tensors import CODED, accepting_tensors

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


@functools.cache
def storage(*dtypes: np.dtype[Any]) -> np.dtype[Any]:
    """The one type of 16 bits that all arguments have; else the precision to compute in."""
    if len(set(dtypes)) == 1 and dtypes[0].name in {"float16", "bfloat16"}:
        return dtypes[0].newbyteorder("=")
    return precision(*dtypes)


def twin_of(
    reference: Mechanism[P, Y],
    *,
    like: Callable[..., Any] | None = None,
    stored: bool = False,
    narrow: bool = False,
    makes_new: bool = True,
    extras: Callable[..., None] | None = None,
    finished: Callable[[Any], Any] = lambda made: made,
) -> Callable[[Callable[..., tuple[Y, Pullback]]], Mechanism[P, Y]]:
    """Give a fast rule its reference's face; refuse a rule whose parameters differ.

    Shapes, options and dtypes are checked as the reference's docstring states before the rule sees them, so that a kernel,
    which has no bounds checks, never reads or writes outside an array. With `like`, the rule takes ``*args, **kwargs`` for
    that function, whose parameters are compared in its place. With `stored`, it gets arrays in the types in which they are stored.
    A rule that is `narrow` takes numbers of 16 bits where all are, bfloat16 as uint16, and returns them so.
    Where it `makes_new`, it returns arrays that it has made, and nothing twice, so that they need no copy.
    The keyword-only parameters of `extras` come on top, with what its docstring says of them; their defaults change nothing. What
    `finished` makes of the function is what users get.
    """
    spec = reference.spec if extras is None else _extended(reference.spec, extras)

    def decorate(rule: Callable[..., tuple[Y, Pullback]]) -> Mechanism[P, Y]:
        ours, theirs = (
            [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()] for f in (like or rule, cast("Any", reference))
        )
        if rule.__name__ != reference.__name__ or ours != theirs:
            raise TypeError(f"{rule.__module__}.{rule.__name__}: name or parameters differ from {reference.spec.module}")
        rule.__doc__ = spec.rule.__doc__
        face = functools.partial(with_vjp, spec, makes_new=makes_new)
        if narrow:
            in_bits = face(_of_bits(rule, lambda dtype: dtype.kind == "V" and dtype.name == "bfloat16"), precision=storage)
            made = accepting_tensors(in_bits, face(_of_bits(rule, lambda dtype: dtype == CODED), precision=None))
        else:
            made = accepting_tensors(face(rule, precision=None if stored else precision), stored=stored)
        made = finished(made)
        _TWINS[reference.__name__] = made
        return cast("Mechanism[P, Y]", made)

    return decorate


def _extended(spec: Spec, extras: Callable[..., None]) -> Spec:
    """The facts of a reference and of more options."""
    more = inspect.signature(extras).parameters
    signature = spec.signature.replace(parameters=[*spec.signature.parameters.values(), *more.values()])

    def documented(*args: Any, **kwargs: Any) -> Any:
        return spec.rule(*args, **kwargs)

    documented.__doc__ = with_more_parameters(spec.rule.__doc__ or "", extras.__doc__ or "")
    made = replace(spec, signature=signature, rule=documented)
    hints = {n: h for n, h in typing.get_type_hints(extras).items() if n in more}
    vars(made)["hints"] = {**spec.hints, **hints}  # which are looked up in the module of a function, of which there are two
    return made


def _of_bits(rule: Callable[..., tuple[Any, Pullback]], is_bfloat16: Callable[[np.dtype[Any]], bool]) -> Callable[..., Any]:
    """A rule of bits, for arrays of what is bfloat16."""

    def bits(x: Any) -> Any:
        return x.view(np.uint16) if isinstance(x, np.ndarray) and is_bfloat16(x.dtype) else x

    @functools.wraps(rule)
    def of_bits(**given: Any) -> tuple[Any, Pullback]:
        found = {x.dtype for x in given.values() if isinstance(x, np.ndarray) and is_bfloat16(x.dtype)}
        if not found:
            return rule(**given)

        def numbers(x: Any) -> Any:
            return x.view(*found) if x.dtype == np.uint16 else x

        y, pullback = rule(**{name: bits(x) for name, x in given.items()})
        return tree.map_leaves(numbers, y), lambda *ds: tree.map_leaves(numbers, pullback(*map(bits, ds)))

    return of_bits


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
