"""Is this kernel right? Run it on the cases of a mechanism and compare every element with its budget."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from refattn._core import Array, Mechanism, tree
from refattn._core.mechanism import outputs
from refattn.testing.battery import Case, Level
from refattn.testing.budget import Allowance, Allowances, latest
from refattn.testing.calls import cotangents, gradient_leaves
from refattn.testing.candidates import Candidate, as_candidate, ordered, refuse_what_is_no_mechanism
from refattn.testing.drift import drift, with_drift
from refattn.testing.evidence import Arrays, Evidence, few
from refattn.testing.frameworks import NumPy
from refattn.testing.one_thread import one_thread
from refattn.testing.patterns import patterns
from refattn.testing.precision import Format, named_format
from refattn.testing.report import Report, Result, compare
from refattn.testing.reproducing import chosen, python_line, with_lines
from refattn.testing.vacuous import VACUOUS, is_vacuous, largest_beside


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
    seed: int = 0,
    executor: Any = None,
    case: str | None = None,
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
        Called with the cotangents of the outputs and then the arguments by name; returns gradients by name, None for one that
        the kernel does not offer, which is listed as skipped. Default: the
        candidate's own ``vjp``, or automatic derivatives of its framework; without these only the forward is compared.
    arguments : mapping or None, optional
        ``{"theirs": "ours"}`` for arguments that the candidate names in another way.
    layout : str or None, optional
        ``"bshd"`` for (batch, length, heads, head_dim) in attention, ``"nhwc"`` for channels last in convolution.
    dtype : str or dtype, optional
        ``"float64"``, ``"float32"``, ``"float16"``, ``"bfloat16"``, ``"float8_e4m3fn"`` or ``"float8_e5m2"``; inputs are rounded to
        it before both sides see them. What is returned may be wider; ``"float8_e4m3fn:float32"`` and the like are arguments of 8 bits
        from which a kernel makes outputs and gradients in the accuracy of the other type, in which cotangents are too.
    framework : {"numpy", "torch", "jax", "cupy", "mlx"}, optional
        Whose arrays the candidate takes.
    supports : collection of str or None, optional
        Names of the optional arguments (ours) that the candidate takes. Default: those in its signature.
    level : {"quick", "full", "torture"}, optional
        How many sizes and seeds.
    seed : int, optional
        Another seed gives the cases other numbers.
    executor : concurrent.futures.Executor, callable or None, optional
        Who works on the cases, as for `sweep`; None is this thread.
    case : str or None, optional
        Only this case of the level, by the name that a report gives it.

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
    target = named_format(dtype)
    options = {"gradients": gradients, "arguments": arguments, "layout": layout, "supports": supports}
    if executor is None:
        compared = (r for run, c in chosen(made, mechanism, level, seed, case) for r in compare_case(run, mechanism, c, target))
    elif case is None:
        sweep = importlib.import_module("refattn.testing.sweeping").sweep
        where = {"dtypes": [dtype], "levels": [level], "seeds": [seed], "framework": framework}
        compared = sweep(candidate, mechanism, executor=executor, **where, **options).results
    else:
        raise ValueError(f"case is {case!r}, but one case alone needs no executor")
    defaults = {"framework": "numpy", "level": "quick", "seed": 0}
    options |= {n: x for n, x in {"framework": framework, "level": level, "seed": seed}.items() if x != defaults[n]}
    return Report(few(with_lines(compared, python_line(candidate, mechanism, options))))


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
    results = compare_given(got, mechanism, inputs, gradients=gradients, cotangents=cotangents, dtype=dtype)
    Report(results).raise_if_wrong()


def compare_given(
    got: Any, mechanism: Mechanism[..., Any], inputs: Mapping[str, Any], *, gradients: Mapping[str, Any] | None, cotangents: Any, dtype: Any
) -> list[Result]:
    """The results of arrays that somebody has computed already."""
    refuse_what_is_no_mechanism(mechanism)
    if gradients is not None and cotangents is None:
        raise ValueError("cotangents is None, but gradients are given: say what they were computed from")
    ds = None if cotangents is None else _as_cotangents(mechanism, cotangents)
    try:
        mechanism.spec.signature.bind(**inputs)
    except TypeError as error:
        raise TypeError(f"{mechanism.spec.name}: inputs: {error}") from None
    if not isinstance(gradients, (Mapping, type(None))):
        raise TypeError(f"gradients is a {type(gradients).__name__}, but must be a mapping by name")
    have = Candidate(lambda **_: got, vjp=None if gradients is None else lambda **_: (got, lambda *_: gradients))
    case = Case("given inputs", mechanism.spec.accept(dict(inputs)))
    return list(compare_case(have, mechanism, case, named_format(dtype), ds=ds))


def compare_case(
    candidate: Candidate, mechanism: Mechanism[..., Any], case: Case, target: Format, *, ds: tuple[Array, ...] | None = None
) -> Iterator[Result]:
    """The results of one case: each output, then each gradient."""
    spec, about = mechanism.spec, (mechanism.spec.name, case.name)

    def result(what: str, fields: Mapping[str, Any]) -> Result:
        known = candidate.known_difference(what, case.arguments, target.name) if fields["status"] == "fail" else ""
        named = {"status": "known_difference", "reason": known, "pattern": (), "evidence": None} if known else {}
        return Result(*about, what, target.name, **{**fields, **named})

    def judged(what: str, got: Array, exact: Array, allowance: Allowance, beside: float = 0.0) -> Result:
        evidence.arrays[what] = Arrays(got, exact, allowance.budget)
        fields = _judged(got, exact, allowance, case, target, beside)
        if fields["status"] == "fail":
            fields |= {"evidence": evidence, "pattern": patterns(got, exact, allowance.budget, evidence.axes(what))}
        return result(what, fields)

    given = {n: x for n, x in case.arguments.items() if not _is_default(x, spec.defaults.get(n, inspect.Parameter.empty))}
    lacking = sorted(given.keys() & spec.defaults.keys() - set(candidate.supports or ())) if candidate.supports is not None else []
    if lacking:
        yield Result(*about, "all", target.name, "skipped", reason=f"{', '.join(lacking)}: not supported")
        return
    taken = target.arguments
    rounded = _rounded(mechanism, given, taken)
    if not taken.infinite and any(isinstance(x, np.ndarray) and np.isinf(x).any() for _, x in tree.leaves(rounded)):
        yield Result(*about, "all", target.name, "skipped", reason=f"infinity: {taken.name} has none")
        return
    theirs = _map_arrays(lambda x: candidate.framework.make(x, taken), rounded)
    reference = _map_arrays(lambda x: x.astype(np.longdouble) if x.dtype.kind == "f" and target.name == "float64" else x, rounded)
    wanted = list(spec.facts.differentiable(spec.accept(reference)))
    vjp = candidate.vjp or candidate.framework.vjp(candidate.call, wanted)
    candidate.begin(case)
    try:
        y, pullback = vjp(**theirs) if vjp else (candidate.call(**theirs), None)
        values = [candidate.framework.value(x) for x in ordered(mechanism, y)]
    except NotImplementedError as error:
        yield Result(*about, "all", target.name, "skipped", reason=str(error) or "not supported")
        return
    except Exception as error:  # whatever a kernel raises is a finding
        yield result("all", {"status": "fail", "reason": _said(error)})
        return
    if changed := _changed(candidate, theirs, rounded, taken):
        yield result("all", {"status": "fail", "reason": f"changed in place: {', '.join(changed)}"})
        return
    with one_thread():
        exact_y, exact_pullback = mechanism.vjp(**reference)
    exact = dict(zip(spec.output_names, outputs(exact_y), strict=True))
    if len(values) != len(exact):
        yield result("all", {"status": "fail", "reason": f"returned {len(values)} outputs, expected {len(exact)}"})
        return
    plain = {name: x.astype(float) for name, x in exact.items()}
    key = None if ds is not None else case.arguments
    allowances = Allowances(mechanism, rounded, target, exact_scores=case.exact_scores, independent=case.independent)
    budgets = latest(mechanism, key, target, "forward", lambda: allowances.forward(plain))
    evidence = Evidence(*about, target.name, reference, exact_scores=case.exact_scores)
    for (name, x), got in zip(exact.items(), values, strict=True):
        yield judged(name, got, x, budgets[name])
    if pullback is None:
        return
    drawn = cotangents(exact_y) if ds is None else ds
    ds = tuple(target.round(d.astype(float)).astype(x.dtype) for d, x in zip(drawn, exact.values(), strict=True))
    try:
        returned = pullback(*(candidate.framework.make(d.astype(float), target.results) for d in ds))
        if not isinstance(returned, Mapping):
            raise TypeError(f"gradients are a {type(returned).__name__}, but must be a mapping by name")
        found = gradient_leaves(returned)
        got_grads = {path: candidate.framework.value(g) for path, g in found.items()}
    except NotImplementedError as error:
        yield Result(*about, "gradients", target.name, "skipped", reason=str(error) or "not supported")
        return
    except Exception as error:
        yield result("gradients", {"status": "fail", "reason": _said(error)})
        return
    if changed := _changed(candidate, theirs, rounded, taken):
        yield result("gradients", {"status": "fail", "reason": f"changed in place: {', '.join(changed)}"})
        return
    with one_thread():
        exact_grads = gradient_leaves(exact_pullback(*ds))
    plain_ds = tuple(d.astype(float) for d in ds)
    plain_grads = {path: g.astype(float) for path, g in exact_grads.items()}
    allowed = latest(mechanism, key, target, "backward", lambda: allowances.backward(plain_ds, plain_grads))
    evidence.cotangents = ds
    declined = {name for name, g in returned.items() if g is None}
    for path, x in exact_grads.items():
        if path in got_grads:
            yield judged(f"d_{path}", got_grads[path], x, allowed[path], largest_beside(path, exact_grads))
        elif {path, path.partition(".")[0]} & declined:
            yield Result(*about, f"d_{path}", target.name, "skipped", reason=f"gradient of {path}: not supported")
        else:
            yield result(f"d_{path}", {"status": "fail", "reason": "no such gradient was returned"})


def _as_cotangents(mechanism: Mechanism[..., Any], given: Any) -> tuple[Array, ...]:
    ds, names = outputs(given), mechanism.spec.output_names
    if len(ds) != len(names):
        raise ValueError(f"cotangents are {len(ds)}, but {mechanism.spec.name} has {len(names)}: {', '.join(names)}")
    try:
        return tuple(NumPy().value(d) for d in ds)
    except TypeError as error:
        raise TypeError(f"cotangents: {error}") from None


def _judged(got: Array, exact: Array, allowed: Allowance, case: Case, target: Format, beside: float = 0.0) -> dict[str, Any]:
    budget = allowed.budget
    if target.saturates:  # beyond the largest number, an honest kernel gives that, whatever it errs
        low, exact, high = (np.clip(x, -target.largest, target.largest) for x in (exact - budget, exact, exact + budget))
        budget = np.maximum(high - exact, exact - low) + target.floor
    fields = compare(got, exact, budget)
    if fields["status"] == "pass" and is_vacuous(budget, exact, beside):
        return {"status": "skipped", "reason": VACUOUS}
    if fields["status"] == "pass" and case.independent and allowed.spread is not None:
        return with_drift(fields, drift(got, exact, allowed.spread, target))
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


def _changed(candidate: Candidate, theirs: Mapping[str, Any], rounded: Mapping[str, Any], target: Format) -> list[str]:
    """The arguments that a kernel has written to."""
    plain = candidate.framework.plain
    fresh = dict(tree.leaves(_map_arrays(lambda x: candidate.framework.make(x, target), rounded)))
    given = dict(tree.leaves(theirs))
    arrays = [path for path, x in tree.leaves(rounded) if isinstance(x, np.ndarray)]
    return [path for path in arrays if plain(given[path]).tobytes() != plain(fresh[path]).tobytes()]


def _is_default(x: Any, default: Any) -> bool:
    return not isinstance(x, np.ndarray) and not isinstance(default, np.ndarray) and type(x) is type(default) and x == default


def _said(error: Exception) -> str:
    return f"raised {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:200]
