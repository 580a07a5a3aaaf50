"""Is this kernel right? Run it on the cases of a mechanism and compare every element with its budget."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from refattn._core import Array, Mechanism, tree
from refattn._core.docstring import Leaf
from refattn._core.mechanism import outputs
from refattn.testing import frameworks
from refattn.testing.battery import Case, Level, cases
from refattn.testing.budget import forward_budgets, gradient_budgets
from refattn.testing.calls import cotangents, gradient_leaves
from refattn.testing.frameworks import NumPy
from refattn.testing.precision import Format, named_format
from refattn.testing.report import Report, Result, compare


class Unsupported(NotImplementedError):  # noqa: N818  # it is an answer, not an error
    """Raised by a candidate for what it does not offer: the case is listed as skipped."""


def _none_known(what: str, arguments: Mapping[str, Any], dtype: str) -> str:
    return ""


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
    """

    call: Callable[..., Any]
    framework: NumPy = field(default_factory=NumPy)
    vjp: Callable[..., Any] | None = None
    supports: Collection[str] | None = None
    known_difference: Callable[[str, Mapping[str, Any], str], str] = _none_known


def check(
    candidate: Any,
    mechanism: Mechanism[..., Any],
    *,
    gradients: Callable[..., Mapping[str, Any]] | None = None,
    arguments: Mapping[str, str] | None = None,
    layout: str | None = None,
    dtype: Any = "float32",
    framework: str = "numpy",
    supports: Collection[str] | None = None,
    level: Level = "quick",
) -> Report:
    """Compare a kernel with a mechanism: its samples, and inputs under which wrong kernels cannot pass.

    Parameters
    ----------
    candidate : callable
        Called with the mechanism's arguments by name; returns its output, or a tuple of its outputs. For what it does not
        offer it raises `NotImplementedError`; such cases are listed as skipped.
    mechanism : mechanism
        What it should compute, for example ``refattn.scaled_dot_product_attention``.
    gradients : callable or None, optional
        Called with the cotangents of the outputs and then the arguments by name; returns gradients by name. Default: the
        candidate's own ``vjp``, or automatic derivatives of its framework; without these only the forward is compared.
    arguments : mapping or None, optional
        ``{"theirs": "ours"}`` for arguments that the candidate names in another way.
    layout : str or None, optional
        ``"bshd"`` for (batch, length, heads, head_dim) in attention, ``"nhwc"`` for channels last in convolution.
    dtype : str or dtype, optional
        ``"float64"``, ``"float32"``, ``"float16"`` or ``"bfloat16"``; inputs are rounded to it before both sides see them.
    framework : {"numpy", "torch", "jax"}, optional
        Whose arrays the candidate takes.
    supports : collection of str or None, optional
        Names of the optional arguments (ours) that the candidate takes. Default: those in its signature.
    level : {"quick", "full", "torture"}, optional
        How many sizes and seeds.

    Returns
    -------
    Report
        Call ``raise_if_wrong()`` in a test, or print it.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> def mine(x):
    ...     e = np.exp(x - x.max(axis=-1, keepdims=True))
    ...     return e / e.sum(axis=-1, keepdims=True)
    >>> refattn.testing.check(mine, refattn.softmax).passed
    True
    """
    made = as_candidate(
        candidate, mechanism, gradients=gradients, arguments=arguments, layout=layout, framework=framework, supports=supports
    )
    return Report([r for case in cases(mechanism, level) for r in compare_case(made, mechanism, case, named_format(dtype))])


def assert_matches(
    got: Any,
    mechanism: Mechanism[..., Any],
    inputs: Mapping[str, Any],
    *,
    gradients: Mapping[str, Any] | None = None,
    cotangents: Any = None,
    dtype: Any = "float32",
) -> None:
    """Compare arrays that somebody has computed already with a mechanism on the same inputs.

    Parameters
    ----------
    got : array or tuple of array
        The outputs.
    mechanism : mechanism
        What they should be.
    inputs : mapping
        The arguments by name, as the kernel saw them: already rounded to its precision.
    gradients : mapping or None, optional
        Gradients by name.
    cotangents : array or tuple of array or None, optional
        What the gradients were computed from; needed with `gradients`.
    dtype : str or dtype, optional
        The precision of the kernel.

    Raises
    ------
    RefattnAssertionError
        With the worst element of each array that is wrong.
    """
    if gradients is not None and cotangents is None:
        raise ValueError("cotangents is None, but gradients are given: say what they were computed from")
    ds = tuple(NumPy().value(d) for d in outputs(cotangents)) if cotangents is not None else None
    have = Candidate(
        lambda **_: got, vjp=None if gradients is None else lambda **_: (got, lambda *_: gradients), known_difference=_none_known
    )
    case = Case("given inputs", mechanism.spec.accept(dict(inputs)))
    Report(list(compare_case(have, mechanism, case, named_format(dtype), ds=ds))).raise_if_wrong()


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
    if isinstance(candidate, Candidate):
        return candidate
    if not callable(candidate):
        raise TypeError(f"candidate is a {type(candidate).__name__}, but must be callable")
    theirs = {ours: name for name, ours in (arguments or {}).items()}
    unknown = theirs.keys() - mechanism.spec.signature.parameters.keys()
    if unknown:
        raise ValueError(f"arguments names {sorted(unknown)}, which {mechanism.spec.name} does not have")
    to, back = _layouts(mechanism, layout)
    frame = frameworks.framework(framework)

    def renamed(given: Mapping[str, Any]) -> dict[str, Any]:
        return {theirs.get(n, n): to(n, x) for n, x in given.items()}

    def ours(named: Mapping[str, Any]) -> dict[str, Any]:
        names = {theirs.get(n, n): n for n in mechanism.spec.signature.parameters}
        return {names.get(n, n): back(names.get(n, n), g) for n, g in named.items()}

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


def _with_arguments(gradients: Callable[..., Mapping[str, Any]], arguments: Mapping[str, Any], *ds: Any) -> Mapping[str, Any]:
    return gradients(*ds, **arguments)


def compare_case(
    candidate: Candidate, mechanism: Mechanism[..., Any], case: Case, target: Format, *, ds: tuple[Array, ...] | None = None
) -> Iterator[Result]:
    """The results of one case: each output, then each gradient."""
    spec, about = mechanism.spec, (mechanism.spec.name, case.name)

    def result(what: str, fields: Mapping[str, Any]) -> Result:
        known = candidate.known_difference(what, case.arguments, target.name) if fields["status"] == "fail" else ""
        named = {"status": "known_difference", "reason": known} if known else {}
        return Result(*about, what, target.name, **{**fields, **named})

    given = {n: x for n, x in case.arguments.items() if not _is_default(x, spec.defaults.get(n, inspect.Parameter.empty))}
    lacking = sorted(given.keys() & spec.defaults.keys() - set(candidate.supports or ())) if candidate.supports is not None else []
    if lacking:
        yield Result(*about, "all", target.name, "skipped", reason=f"{', '.join(lacking)}: not supported")
        return
    rounded = _rounded(mechanism, given, target)
    theirs = _map_arrays(lambda x: candidate.framework.make(x, target), rounded)
    reference = _map_arrays(lambda x: x.astype(np.longdouble) if x.dtype.kind == "f" and target.name == "float64" else x, rounded)
    wanted = list(spec.facts.differentiable(spec.accept(reference)))
    vjp = candidate.vjp or candidate.framework.vjp(candidate.call, wanted)
    try:
        y, pullback = vjp(**theirs) if vjp else (candidate.call(**theirs), None)
        values = [candidate.framework.value(x) for x in _ordered(mechanism, y)]
    except NotImplementedError as error:
        yield Result(*about, "all", target.name, "skipped", reason=str(error) or "not supported")
        return
    except Exception as error:  # whatever a kernel raises is a finding
        yield result("all", {"status": "fail", "reason": _said(error)})
        return
    exact_y, exact_pullback = mechanism.vjp(**reference)
    budgets = forward_budgets(mechanism, rounded, target, exact_scores=case.exact_scores)
    exact = dict(zip(spec.output_names, outputs(exact_y), strict=True))
    if len(values) != len(exact):
        yield result("all", {"status": "fail", "reason": f"returned {len(values)} outputs, expected {len(exact)}"})
        return
    for (name, x), got in zip(exact.items(), values, strict=True):
        yield result(name, _judged(got, x, budgets[name]))
    if pullback is None:
        return
    drawn = cotangents(exact_y) if ds is None else ds
    ds = tuple(target.round(d.astype(float)).astype(x.dtype) for d, x in zip(drawn, exact.values(), strict=True))
    try:
        found = gradient_leaves(pullback(*(candidate.framework.make(d.astype(float), target) for d in ds)))
        got_grads = {path: candidate.framework.value(g) for path, g in found.items()}
    except NotImplementedError as error:
        yield Result(*about, "gradients", target.name, "skipped", reason=str(error) or "not supported")
        return
    except Exception as error:
        yield result("gradients", {"status": "fail", "reason": _said(error)})
        return
    exact_grads = gradient_leaves(exact_pullback(*ds))
    plain_ds = tuple(d.astype(float) for d in ds)
    plain = {path: g.astype(float) for path, g in exact_grads.items()}
    allowed = gradient_budgets(mechanism, rounded, plain_ds, plain, target, exact_scores=case.exact_scores)
    for path, x in exact_grads.items():
        missing = {"status": "fail", "reason": "no such gradient was returned"}
        yield result(f"d_{path}", _judged(got_grads[path], x, allowed[path]) if path in got_grads else missing)


def _judged(got: Array, exact: Array, budget: Array) -> dict[str, Any]:
    fields = compare(got, exact, budget)
    signal = np.abs(np.where(np.isfinite(exact), exact, 0))
    if fields["status"] == "pass" and signal.any() and (budget > signal.max()).mean() > 0.5:
        return {"status": "skipped", "reason": "the budget is larger than the signal: nothing can be told here"}
    return fields


def _rounded(mechanism: Mechanism[..., Any], given: Mapping[str, Any], target: Format) -> dict[str, Any]:
    arguments = dict(given)
    for path, leaf, x in mechanism.spec.facts.leaves(arguments):
        if leaf.is_real and isinstance(x, np.ndarray):
            arguments = tree.replace(arguments, path, target.round(x))
    return arguments


def _map_arrays(function: Callable[[Any], Any], given: Mapping[str, Any]) -> dict[str, Any]:
    mapped = dict(given)
    for path, x in tree.leaves(given):
        if isinstance(x, np.ndarray):
            mapped = tree.replace(mapped, path, function(x))
    return mapped


def _is_default(x: Any, default: Any) -> bool:
    return not isinstance(x, np.ndarray) and not isinstance(default, np.ndarray) and type(x) is type(default) and x == default


def _ordered(mechanism: Mechanism[..., Any], y: Any) -> list[Any]:
    """The outputs in the mechanism's order, from a tuple or a mapping."""
    if isinstance(y, Mapping):
        return [y[n] for n in mechanism.spec.output_names]
    return list(y) if isinstance(y, (tuple, list)) else [y]


def _each_output(mechanism: Mechanism[..., Any], y: Any, back: Callable[[str, Any], Any]) -> Any:
    made = tuple(back(n, x) for n, x in zip(mechanism.spec.output_names, _ordered(mechanism, y), strict=False))
    return made if len(mechanism.spec.output_names) > 1 or not made else made[0]


def _said(error: Exception) -> str:
    return f"raised {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:200]


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
