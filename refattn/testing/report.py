"""What a check found: one line for each output and gradient of each case."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from refattn._core import Array

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

    @property
    def passed(self) -> bool:
        """Whether it was compared and is right."""
        return self.status == "pass"

    def __str__(self) -> str:
        where = f"{self.mechanism}, {self.case}, {self.dtype}: {self.what}"
        if self.worst_index is None:
            return f"{where}: {self.reason or self.status}"
        return (
            f"{where} differs at {self.wrong} of {self.elements} elements: {self.error_over_budget:.3g} times its budget\n"
            f"  worst at {self.worst_index}: got {self.got!r}, expected {self.expected!r}, error {self.worst_error:.3g}"
            + (f"\n  {self.reason}" if self.reason else "")
        )

    def as_dict(self) -> dict[str, Any]:
        """The result for JSON, which has no infinity: a number that is not finite is its name."""
        return {k: _json(v) for k, v in {**dataclasses.asdict(self), "passed": self.passed}.items()}


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

    def raise_if_wrong(self) -> None:
        """Raise `RefattnAssertionError` with every failure, unless the candidate is right.

        Raises
        ------
        RefattnAssertionError
            Where a result is wrong, or where nothing could be compared.
        """
        if self.failures:
            shown = "\n".join(map(str, self.failures[:12])) + (
                f"\n... and {len(self.failures) - 12} more" if len(self.failures) > 12 else ""
            )
            raise RefattnAssertionError(f"{len(self.failures)} of {len(self.results)} comparisons are wrong\n{shown}")
        if not self.passed:
            reasons = sorted({r.reason for r in self.results if r.reason})
            raise RefattnAssertionError(f"nothing was compared: {'; '.join(reasons) or 'no case'}")

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
    with np.errstate(invalid="ignore", over="ignore"):
        same = (got == exact) | (np.isnan(got) & np.isnan(exact))
        error = np.where(same, 0, np.abs(got - exact))
        ratio = np.where(same, 0, error / budget)
    ratio = np.where(np.isnan(ratio) | (~same & ~(np.isfinite(got) & np.isfinite(exact))), np.inf, ratio)
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
