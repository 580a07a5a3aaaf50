"""Measure a suite and keep it for the page: ``python -m benchmarks.record SUITE [options of side_by_side]``.

The rows go to benchmarks/results/side_by_side/SUITE.json, in the place of older rows of the same cases, each with its day, its
processor and the versions of the packages.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import side_by_side
from benchmarks.cases import SUITES, suite
from benchmarks.machine import processor, versions

RESULTS = Path(__file__).parent / "results" / "side_by_side"
DIGITS = 5


def work_of(suite_name: str, case_name: str) -> dict[str, float]:
    """Operations of a case, and the bytes that it has to read and write at least, where its problem says so."""
    case = next(c for c in suite(suite_name) if c.name == case_name)
    problem = next(iter(getattr(case.make, "args", ())), None)
    found = {"operations": getattr(problem, "operations", None), "bytes": getattr(problem, "least_bytes", None)}
    return found if all(isinstance(x, float) for x in found.values()) else {}  # pyright: ignore[reportReturnType]


def merged(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]], order: Sequence[str]) -> list[dict[str, Any]]:
    """New rows in the place of old ones, in the order of the suite; what is no case any longer is left out."""
    rows = {row["case"]: row for row in (*old, *new)}
    return [rows[name] for name in order if name in rows]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.record", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("suite", choices=sorted(SUITES))
    given, options = parser.parse_known_args(arguments)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = side_by_side.main([given.suite, "--json", *options])
    about = {"day": datetime.now(UTC).date().isoformat(), "processor": processor(), "versions": versions()}
    rows = [_rounded(row | work_of(given.suite, row["case"]) | about) for row in json.loads(printed.getvalue())]
    path = RESULTS / f"{given.suite}.json"
    old = json.loads(path.read_text("utf-8")) if path.exists() else []
    lines = ",\n".join(json.dumps(row) for row in merged(old, rows, [case.name for case in suite(given.suite)]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"[\n{lines}\n]\n", "utf-8")
    print(f"{len(rows)} rows measured, in {path}")
    return status


def _rounded(x: Any) -> Any:
    if isinstance(x, float):
        return float(f"{x:.{DIGITS}g}")
    return {name: _rounded(value) for name, value in x.items()} if isinstance(x, dict) else x


if __name__ == "__main__":
    raise SystemExit(main())
