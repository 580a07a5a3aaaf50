"""A kernel to check, with its names, layout and framework turned into the mechanism's."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from refattn._core import Mechanism
from refattn._core.docstring import Leaf
from refattn.testing import frameworks
from refattn.testing.frameworks import NumPy


class Unsupported(NotImplementedError):  # noqa: N818  # it is an answer, not an error
    """Raised by a candidate for what it does not offer: the case is listed as skipped."""


def none_known(what: str, arguments: Mapping[str, Any], dtype: str) -> str:
    """No difference is known."""
    return ""


def ignore(case: Any) -> None:
    """Nothing need be known of a case."""


@dataclass(frozen=True)
class Candidate:
    """A kernel to check.

    Attributes
    ----------
    call : callable
        Takes the mechanism's arguments by name and returns its outputs.
    framework : NumPy
        Whose arrays it takes.
    vjp : callable or None
        Takes the same and returns the outputs and a function from their cotangents to a mapping of gradients.
    supports : collection of str or None
        Optional arguments that it takes; None is all.
    known_difference : callable
        Takes what is compared, the arguments and the dtype's name; returns the name of a convention where it is known to
        differ, else "".
    begin : callable
        Told of each case before it is run.
    """

    call: Callable[..., Any]
    framework: NumPy = field(default_factory=NumPy)
    vjp: Callable[..., Any] | None = None
    supports: Collection[str] | None = None
    known_difference: Callable[[str, Mapping[str, Any], str], str] = none_known
    begin: Callable[[Any], None] = ignore


def as_candidate(
    candidate: Any,
    mechanism: Mechanism[..., Any],
    *,
    gradients: Callable[..., Mapping[str, Any]] | None = None,
    arguments: Mapping[str, str] | None = None,
    layout: str | None = None,
    framework: str = "numpy",
    supports: Collection[str] | None = None,
) -> Candidate:
    """A callable, with its names and layout turned into the mechanism's."""
    refuse_what_is_no_mechanism(mechanism)
    if isinstance(candidate, Candidate):
        return candidate
    for what, given in (("candidate", candidate), ("gradients", gradients)):
        if not callable(given) and (given is not None or what == "candidate"):
            raise TypeError(f"{what} is a {type(given).__name__}, but must be callable")
    if not isinstance(arguments, (Mapping, type(None))):
        raise TypeError(f"arguments is a {type(arguments).__name__}, but must be a mapping from theirs to ours")
    refuse_unknown_options(mechanism, supports)
    theirs = {ours: name for name, ours in (arguments or {}).items()}
    _refuse_unknown(mechanism, "arguments", theirs)
    if len(theirs) < len(arguments or ()):
        raise ValueError(f"arguments names one of {sorted(theirs)} twice")
    to, back = _layouts(mechanism, layout)
    frame = frameworks.framework(framework)

    def renamed(given: Mapping[str, Any]) -> dict[str, Any]:
        return {theirs.get(n, n): to(n, x) for n, x in given.items()}

    def ours(named: Mapping[str, Any]) -> dict[str, Any]:
        names = {theirs.get(n, n): n for n in mechanism.spec.signature.parameters}
        return {names.get(n, n): back(names.get(n, n), g) for n, g in named.items()} if isinstance(named, Mapping) else named

    def call(**given: Any) -> Any:
        return _each_output(mechanism, candidate(**renamed(given)), back)

    own = getattr(candidate, "vjp", None)

    def vjp(**given: Any) -> tuple[Any, Callable[..., Mapping[str, Any]]]:
        if gradients is not None:
            y, pullback = candidate(**renamed(given)), functools.partial(_with_arguments, gradients, renamed(given))
        else:
            y, pullback = cast("Any", own)(**renamed(given))
        names = mechanism.spec.output_names
        return _each_output(mechanism, y, back), lambda *ds: ours(pullback(*(to(n, d) for n, d in zip(names, ds, strict=True))))

    supported = _supported(candidate, theirs, supports)
    return Candidate(call, frame, vjp if gradients is not None or own is not None else None, supported)


def refuse_what_is_no_mechanism(mechanism: Any) -> None:
    """TypeError for anything but a mechanism, such as its name."""
    if not hasattr(mechanism, "spec"):
        raise TypeError(f"mechanism is a {type(mechanism).__name__}, but must be a function of refattn.mechanisms()")


def refuse_unknown_options(mechanism: Mechanism[..., Any], supports: Any) -> None:
    """TypeError or ValueError for what are no names of arguments; None is all of them."""
    if isinstance(supports, str) or not isinstance(supports, (Collection, type(None))):
        raise TypeError(f"supports is a {type(supports).__name__}, but must be a collection of names")
    _refuse_unknown(mechanism, "supports", supports or ())


def _refuse_unknown(mechanism: Mechanism[..., Any], what: str, names: Collection[Any]) -> None:
    if unknown := set(names) - mechanism.spec.signature.parameters.keys():
        raise ValueError(f"{what} names {sorted(unknown, key=str)}, which {mechanism.spec.name} does not have")


def _with_arguments(gradients: Callable[..., Mapping[str, Any]], arguments: Mapping[str, Any], *ds: Any) -> Mapping[str, Any]:
    return gradients(*ds, **arguments)


def ordered(mechanism: Mechanism[..., Any], y: Any) -> list[Any]:
    """The outputs in the mechanism's order, from a tuple or a mapping."""
    if isinstance(y, Mapping):
        return [y[n] for n in mechanism.spec.output_names]
    return list(y) if isinstance(y, (tuple, list)) else [y]


def _each_output(mechanism: Mechanism[..., Any], y: Any, back: Callable[[str, Any], Any]) -> Any:
    """The outputs in our layout; what there is too much of stays, so that it is counted."""
    names, parts = mechanism.spec.output_names, ordered(mechanism, y)
    made = (*map(back, names, parts), *parts[len(names) :])
    return made[0] if len(names) == len(made) == 1 else made


def _supported(candidate: Any, theirs: Mapping[str, str], supports: Collection[str] | None) -> Collection[str] | None:
    if supports is not None:
        return supports
    try:
        parameters = inspect.signature(candidate).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    ours = {name: our for our, name in theirs.items()}
    return {ours.get(p.name, p.name) for p in parameters}


def _layouts(mechanism: Mechanism[..., Any], layout: str | None) -> tuple[Callable[[str, Any], Any], Callable[[str, Any], Any]]:
    """Two functions of a name and an array: ours to theirs, theirs to ours."""
    if layout in {None, "bhsd", "ncl", "nchw", "ncdhw"}:
        return (lambda _, x: x), (lambda _, x: x)
    stated = {**mechanism.spec.facts.arguments, **mechanism.spec.facts.outputs}
    if layout == "bshd":
        moved = {n for n, f in stated.items() if isinstance(f, Leaf) and len(f.dims) > 2 and f.exact and f.dims[-2].endswith("_len")}
        moves = ((-3, -2), (-2, -3))
    elif layout in {"nlc", "nhwc", "ndhwc"}:
        moved = {n for n, f in stated.items() if isinstance(f, Leaf) and f.dims[:1] == ("batch",)}
        moves = ((1, -1), (-1, 1))
    else:
        raise ValueError(f"layout is {layout!r}, but must be one of bhsd, bshd, ncl, nlc, nchw, nhwc, ncdhw, ndhwc")
    if not moved:
        raise ValueError(f"layout is {layout!r}, but no array of {mechanism.spec.name} has these axes")

    def mover(source: int, target: int) -> Callable[[str, Any], Any]:
        def move(name: str, x: Any) -> Any:
            if name not in moved or x is None:
                return x
            return x.movedim(source, target) if hasattr(x, "movedim") else _moveaxis(x, source, target)

        return move

    return mover(*moves[0]), mover(*moves[1])


def _moveaxis(x: Any, source: int, target: int) -> Any:
    order = list(range(x.ndim))
    order.insert(target % x.ndim, order.pop(source % x.ndim))
    return x.transpose(order)
