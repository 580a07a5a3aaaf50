"""What the plugin keeps during a session of pytest: the results of each test, for the summary and the report."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from refattn._core import Mechanism
from refattn.testing.battery import Level
from refattn.testing.checking import check
from refattn.testing.ledger import result_of
from refattn.testing.pytest_cases import raise_if_wrong
from refattn.testing.report import Report, Result
from refattn.view.table import Table

Stated = list[dict[str, Any]]


class Checker:
    """The fixture ``refattn_check``: `refattn.testing.check` at the session's level and seed; a wrong kernel fails the test.

    Parameters
    ----------
    level, seed : str, int
        Where a call names no others.
    record : callable
        Takes the results.
    """

    def __init__(self, level: Level, seed: int, record: Callable[[list[Result]], None]) -> None:
        self.level, self.seed, self.record = level, seed, record

    def __call__(self, candidate: Any, mechanism: Mechanism[..., Any], **options: Any) -> Report:
        """Check; see `refattn.testing.check` for the options.

        Parameters
        ----------
        candidate : callable
            The kernel.
        mechanism : mechanism
            What it should be.
        **options
            Of `refattn.testing.check`.

        Returns
        -------
        Report
            Without failures.

        Raises
        ------
        RefattnAssertionError
            Where the candidate is wrong, or nothing could be compared.
        """
        __tracebackhide__ = True
        report = check(candidate, mechanism, **{"level": self.level, "seed": self.seed, **options})
        self.record(report.results)
        raise_if_wrong(report)
        return report


def recorder(stated: Stated) -> Callable[[list[Result]], None]:
    """A function that appends results to a list, as they go through JSON."""
    return functools.partial(_append, stated)


def _append(stated: Stated, results: Sequence[Result]) -> None:
    stated += [r.as_dict() for r in results]


def summary(tests: Mapping[str, Stated]) -> list[str]:
    """Lines of a table: for each mechanism and format how many results were right, wrong or skipped, and the worst of them."""
    found = Report([result_of(stated) for _, stated in _in_order(tests)])
    table = Table("mechanism", "dtype", "right", "wrong", "skipped", "worst error/budget", "where")
    for mechanism, dtype in sorted({(r.mechanism, r.dtype) for r in found.results}):
        part = Report([r for r in found.results if (r.mechanism, r.dtype) == (mechanism, dtype)])
        counts = part.counts
        compared = [r for r in part.results if r.status in {"pass", "fail"} and r.error_over_budget is not None]
        worst = max(compared, key=lambda r: r.error_over_budget or 0.0, default=None)
        ratio, where = (None, "") if worst is None else (worst.error_over_budget, f"{worst.case}: {worst.what}")
        right = counts["pass"] + counts["known_difference"]
        table.row(mechanism, dtype, right, counts["fail"], counts["skipped"], ratio if ratio is None else round(ratio, 3), where)
    return table.lines()


def write(path: Path, tests: Mapping[str, Stated]) -> None:
    """Write the results of all tests, in the order of the tests' names, as what the file's name ends in.

    Parameters
    ----------
    path : Path
        Ends in ``.json``: a list of objects as `Report.to_json` has them, each with its ``test`` too; or in ``.html``.
    tests : mapping
        Results by the name of the test.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = _in_order(tests)
    if path.suffix == ".html":
        text = Report([result_of(stated) for _, stated in ordered]).to_html()
    else:
        text = json.dumps([{"test": test, **stated} for test, stated in ordered], indent=1) + "\n"
    path.write_text(text, encoding="utf-8")


def _in_order(tests: Mapping[str, Stated]) -> list[tuple[str, dict[str, Any]]]:
    """Results do not come in the order of tests where several processes run them."""
    return [(test, stated) for test, results in sorted(tests.items()) for stated in results]
