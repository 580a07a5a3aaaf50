"""Cases as parameters of a test: `parametrize_cases` marks it, and the plugin makes one test of each case and format."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from refattn._core import Array, Mechanism
from refattn.testing.battery import Level
from refattn.testing.calls import cotangents
from refattn.testing.candidates import Candidate, refuse_what_is_no_mechanism
from refattn.testing.checking import _changed, _map_arrays, _rounded, compare_case
from refattn.testing.frameworks import FRAMEWORKS, framework
from refattn.testing.precision import Format, named_format
from refattn.testing.report import RefattnAssertionError, Report, Result, Status
from refattn.testing.units import Unit, contents, drawn, named_mechanism, units

MARKER = "refattn_cases"


def parametrize_cases(
    mechanism: Mechanism[..., Any],
    *,
    dtype: Any = "float32",
    level: Level | None = None,
    seeds: int | Sequence[int] | None = None,
    framework: str = "numpy",
    supports: Collection[str] | None = None,
) -> Any:
    """A decorator that runs a test on every case of a mechanism, each as its argument ``refattn_case``.

    Nothing but names is kept until a test runs; then the argument has ``arguments``, in the test's format and framework,
    ``cotangents``, ``name``, ``dtype``, and ``assert_matches(got, gradients=None)``. Several decorators on one test give it the
    cases of all of them.

    Parameters
    ----------
    mechanism : mechanism
        Whose cases.
    dtype : str, dtype, or sequence of these, optional
        As for `check`; of several, each case is a test in each.
    level : {"quick", "full", "torture"}, optional
        Default: what ``--refattn-level`` says.
    seeds : int or sequence of int, optional
        Default: what ``--refattn-seed`` says.
    framework : {"numpy", "torch", "jax"}, optional
        Whose arrays the test is given.
    supports : collection of str, optional
        The optional arguments that the kernel takes; a case that needs another is skipped. Default: all.

    Returns
    -------
    pytest.MarkDecorator
        For a function with an argument ``refattn_case``.
    """
    import pytest  # noqa: PLC0415  # whoever writes a test has it

    refuse_what_is_no_mechanism(mechanism)
    several = list(dtype) if isinstance(dtype, (list, tuple)) else [dtype]
    formats = tuple(named_format(d).name for d in several)
    if framework not in FRAMEWORKS:
        raise ValueError(f"framework is {framework!r}, but must be one of {', '.join(FRAMEWORKS)}")
    if isinstance(supports, str) or not isinstance(supports, (Collection, type(None))):
        raise TypeError(f"supports is a {type(supports).__name__}, but must be a collection of names")
    if unknown := set(supports or ()) - mechanism.spec.signature.parameters.keys():
        raise ValueError(f"supports names {sorted(unknown, key=str)}, which {mechanism.spec.name} does not have")
    numbers = (seeds,) if isinstance(seeds, int) else None if seeds is None else tuple(seeds)
    supported = None if supports is None else tuple(sorted(supports))
    mark = getattr(pytest.mark, MARKER)
    return mark(mechanism.spec.name, dtypes=formats, level=level, seeds=numbers, framework=framework, supports=supported)


class Parameter(NamedTuple):
    """One test: a unit, in whose arrays, and what the kernel does not offer of it."""

    unit: Unit
    framework: str
    lacking: tuple[str, ...]

    @property
    def id(self) -> str:
        """Letters, digits and what a shell leaves alone."""
        unit = self.unit
        words = (unit.mechanism, unit.dtype, unit.case)
        return "-".join(re.sub(r"[^\w.+-]+", "_", word).strip("_") for word in words)


def parameters(
    mechanism: str,
    *,
    dtypes: Sequence[str],
    level: Level | None,
    seeds: Sequence[int] | None,
    framework: str,
    supports: Collection[str] | None,
    session: tuple[Level, int],
) -> Iterator[Parameter]:
    """The tests that one decorator makes, where the session's level and seed stand in for those that it leaves open."""
    at, numbers = level or session[0], (session[1],) if seeds is None else seeds
    for unit in units([mechanism], dtypes, [at], numbers):
        needed = contents(mechanism, unit.level, unit.seed)[unit.place][1]
        yield Parameter(unit, framework, () if supports is None else tuple(n for n in needed if n not in supports))


class PytestCase:
    """One case in one format, in the arrays of one framework.

    Parameters
    ----------
    parameter : Parameter
        Which.
    record : callable
        Takes the results of what is compared.
    """

    def __init__(self, parameter: Parameter, record: Callable[[list[Result]], None]) -> None:
        self.unit, self.record = parameter.unit, record
        self.framework = framework(parameter.framework)

    def __repr__(self) -> str:
        return f"<{self.unit}>"

    @property
    def name(self) -> str:
        """The case's name."""
        return self.unit.case

    @property
    def dtype(self) -> str:
        """The name of the format."""
        return self.unit.dtype

    @property
    def mechanism(self) -> Mechanism[..., Any]:
        """What the kernel should compute."""
        return named_mechanism(self.unit.mechanism)

    @property
    def _format(self) -> Format:
        return named_format(self.unit.dtype)

    @functools.cached_property
    def _inputs(self) -> dict[str, Any]:
        return _rounded(self.mechanism, drawn(self.unit).arguments, self._format)

    @functools.cached_property
    def _made(self) -> dict[str, Any]:
        return _map_arrays(lambda x: self.framework.make(x, self._format), self._inputs)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments by the mechanism's names: arrays in the format, options as they are."""
        return dict(self._made)

    @functools.cached_property
    def _cotangents(self) -> tuple[Array, ...]:
        return tuple(map(self._format.round, cotangents(self.mechanism(**self._inputs))))

    @property
    def cotangents(self) -> tuple[Any, ...]:
        """What the gradients are asked for: one array for each output."""
        return tuple(self.framework.make(d, self._format) for d in self._cotangents)

    def assert_matches(self, got: Any, gradients: Mapping[str, Any] | None = None) -> None:
        """Compare what a kernel has made of `arguments`, and its gradients for `cotangents`, with the reference.

        Parameters
        ----------
        got : array or tuple of array
            The outputs.
        gradients : mapping or None, optional
            By the arguments' names; None in place of one that the kernel does not offer. Default: only outputs are compared.

        Raises
        ------
        RefattnAssertionError
            Where an element is beyond its budget, or `arguments` have been written to. Where nothing can be told, since the
            budget is larger than the signal, the test is skipped.
        """
        __tracebackhide__ = True
        if not isinstance(gradients, (Mapping, type(None))):
            raise TypeError(f"gradients is a {type(gradients).__name__}, but must be a mapping by name")
        back = None if gradients is None else lambda *_: gradients
        have = Candidate(lambda **_: got, self.framework, vjp=lambda **_: (got, back))
        ds = None if gradients is None else self._cotangents
        if changed := _changed(have, self._made, self._inputs, self._format):
            results = [self._result("fail", f"changed in place: {', '.join(changed)}")]
        else:
            results = list(compare_case(have, self.mechanism, drawn(self.unit), self._format, ds=ds))
        self.record(results)
        report = Report(results)
        if not report.passed and not report.failures:
            import pytest  # noqa: PLC0415  # which runs this

            pytest.skip("; ".join(sorted({r.reason for r in results})))
        raise_if_wrong(report)

    def skipped(self, lacking: Sequence[str]) -> str:
        """Record that the kernel does not offer these arguments; the reason."""
        reason = f"{', '.join(lacking)}: not supported"
        self.record([self._result("skipped", reason)])
        return reason

    def _result(self, status: Status, reason: str) -> Result:
        return Result(self.unit.mechanism, self.unit.case, "all", self.unit.dtype, status, reason=reason)


def raise_if_wrong(report: Report) -> None:
    """`Report.raise_if_wrong`, without lines of this package in what pytest shows."""
    __tracebackhide__ = True
    try:
        report.raise_if_wrong()
    except RefattnAssertionError as error:
        raise error.with_traceback(None) from None
