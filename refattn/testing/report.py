"""What a check found: one line for each output and gradient of each case."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from refattn._core import Array
from refattn.testing.evidence import Evidence
from refattn.testing.patterns import ratios

if TYPE_CHECKING:
    from refattn.testing.explaining import Explanation

MOST_SHOWN = 12

Status: TypeAlias = Literal["pass", "known_difference", "fail", "skipped"]


class RefattnAssertionError(AssertionError):
    """A candidate does not agree with the reference."""


@dataclass(frozen=True)
class Result:
    """The comparison of one output or gradient of one case.

    Attributes
    ----------
    mechanism, case, what, dtype : str
        ``what`` is an output's name, or ``d_`` and a gradient's.
    status : {"pass", "known_difference", "fail", "skipped"}
        Only ``fail`` makes a report wrong.
    worst_error : float or None
        The absolute error where it is largest compared with its budget.
    error_over_budget : float or None
        The largest ratio of an error to its budget; more than 1 is wrong.
    wrong, elements : int
        How many elements are beyond their budget, of how many.
    worst_index : tuple of int or None
        Where.
    got, expected : float or None
        What stands there, and what should.
    reason : str
        Why it failed, was skipped, or is a known difference.
    pattern : tuple of str
        Where a failure is wrong, and what it has in common with what is expected.
    reproduce : str
        A command that repeats this case alone, where one is known.
    evidence : Evidence or None
        The arrays of a failing case, for `Report.explain` and `Report.to_html`; no part of JSON, nor of a comparison of results.
    """

    mechanism: str
    case: str
    what: str
    dtype: str
    status: Status
    worst_error: float | None = None
    error_over_budget: float | None = None
    wrong: int = 0
    elements: int = 0
    worst_index: tuple[int, ...] | None = None
    got: float | None = None
    expected: float | None = None
    reason: str = ""
    pattern: tuple[str, ...] = ()
    reproduce: str = ""
    evidence: Evidence | None = field(default=None, repr=False, compare=False)

    @property
    def passed(self) -> bool:
        """Whether it was compared and is right."""
        return self.status == "pass"

    def without_evidence(self) -> Result:
        """The same result, small."""
        return dataclasses.replace(self, evidence=None)

    def __str__(self) -> str:
        where = f"{self.mechanism}, {self.case}, {self.dtype}: {self.what}"
        if self.worst_index is None:
            return f"{where}: {self.reason or self.status}"
        return (
            f"{where} differs at {self.wrong} of {self.elements} elements: {self.error_over_budget:.3g} times its budget\n"
            f"  worst at {self.worst_index}: got {self.got!r}, expected {self.expected!r}, error {self.worst_error:.3g}"
            + "".join(f"\n  {said}" for said in (self.reason, *self.pattern) if said)
        )

    def as_dict(self) -> dict[str, Any]:
        """The result for JSON, which has no infinity: a number that is not finite is its name."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "evidence"}
        return {k: _json(v) for k, v in {**fields, "passed": self.passed}.items()}


def _json(x: Any) -> Any:
    return str(x) if isinstance(x, float) and not np.isfinite(x) else x


@dataclass(frozen=True)
class Report:
    """All results of one check."""

    results: list[Result] = field(default_factory=list)

    @property
    def failures(self) -> list[Result]:
        """The results that are wrong."""
        return [r for r in self.results if r.status == "fail"]

    @property
    def counts(self) -> dict[str, int]:
        """How many results have each status."""
        found = Counter(r.status for r in self.results)
        return {status: found[status] for status in ("pass", "known_difference", "fail", "skipped")}

    @property
    def passed(self) -> bool:
        """Whether something was compared and nothing is wrong."""
        return self.counts["pass"] > 0 and not self.failures

    def raise_if_wrong(self, *, explain: bool = True) -> None:
        """Raise `RefattnAssertionError` with every failure, unless the candidate is right.

        Parameters
        ----------
        explain : bool, optional
            Whether the message says which other convention matches.

        Raises
        ------
        RefattnAssertionError
            Where a result is wrong, or where nothing could be compared.
        """
        if self.failures:
            raise RefattnAssertionError(self.message(explain=explain))
        if not self.passed:
            reasons = sorted({r.reason for r in self.results if r.reason})
            raise RefattnAssertionError(f"nothing was compared: {'; '.join(reasons) or 'no case'}")

    def message(self, *, explain: bool = True) -> str:
        """What is wrong, in words: conventions that match, each failure, and how to repeat the first.

        Parameters
        ----------
        explain : bool, optional
            Whether other conventions are tried.

        Returns
        -------
        str
            Several lines; empty where nothing is wrong.
        """
        failures = self.failures
        if not failures:
            return ""
        lines = [f"{len(failures)} of {len(self.results)} comparisons are wrong"]
        for name, found in self.explain().items() if explain else ():
            lines += [f"{name}: {m}" for m in found.conventions]
        lines += map(str, failures[:MOST_SHOWN])
        if len(failures) > MOST_SHOWN:
            lines.append(f"... and {len(failures) - MOST_SHOWN} more")
        if again := next((r.reproduce for r in failures if r.reproduce), ""):
            lines += ["to repeat the first of them:", f"  {again}"]
        return "\n".join(lines)

    def explain(self) -> Mapping[str, Explanation]:
        """Which other conventions give what came, and what the wrong arrays have in common with the right ones.

        The failing cases carry what this needs; nothing is run again but the reference.

        Returns
        -------
        dict of str to Explanation
            By the name of the mechanism, for those of which something is wrong.
        """
        from refattn.testing.explaining import explained  # noqa: PLC0415  # large, and needed for failures alone

        found: dict[str, list[Evidence]] = {}
        for r in self.failures:
            if r.evidence is not None:
                found.setdefault(r.mechanism, []).append(r.evidence)
        return {name: explained(evidences, name) for name, evidences in found.items()}

    def to_html(self, title: str = "What the check found") -> str:
        """One self-contained page with a picture of every failure: error over budget by head and tile, channel and pixel.

        Parameters
        ----------
        title : str, optional
            The heading of the page.

        Returns
        -------
        str
            HTML that needs no network and no other file.
        """
        from refattn.view.report_page import report_page  # noqa: PLC0415  # what is not shown needs no page

        return report_page(self, title)

    def to_json(self) -> str:
        """The results as a JSON list of objects.

        Returns
        -------
        str
            One object a result; see `Result` for the keys.
        """
        return json.dumps([r.as_dict() for r in self.results], indent=1)

    def __str__(self) -> str:
        rows = [("status", "mechanism", "case", "what", "dtype", "error", "error/budget", "")]
        rows += [
            (r.status, r.mechanism, r.case, r.what, r.dtype, _number(r.worst_error), _number(r.error_over_budget), r.reason)
            for r in self.results
        ]
        wide = [max(len(row[i]) for row in rows) for i in range(7)]
        table = "\n".join("  ".join([*(c.ljust(w) for c, w in zip(row, wide, strict=False)), row[7]]).rstrip() for row in rows)
        return f"{table}\n{', '.join(f'{n} {status}' for status, n in self.counts.items())}"


def _number(x: float | None) -> str:
    return "" if x is None else f"{x:.2e}"


def compare(got: Any, exact: Array, budget: Array) -> dict[str, Any]:
    """The fields of a `Result` for one array: NaN must meet NaN, an infinity the same infinity."""
    if got.shape != exact.shape:
        return {"status": "fail", "reason": f"has shape {got.shape}, expected {exact.shape}"}
    if exact.size == 0:
        return {"status": "pass", "error_over_budget": 0.0, "worst_error": 0.0}
    ratio = ratios(got, exact, budget)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.where((got == exact) | (np.isnan(got) & np.isnan(exact)), 0, np.abs(got - exact))
    at = tuple(int(i) for i in np.unravel_index(np.argmax(ratio), ratio.shape))
    wrong = int((ratio > 1).sum())
    return {
        "status": "fail" if wrong else "pass",
        "worst_error": float(error[at]),
        "error_over_budget": float(ratio[at]),
        "wrong": wrong,
        "elements": exact.size,
        "worst_index": at,
        "got": float(got[at]),
        "expected": float(exact[at]),
    }
