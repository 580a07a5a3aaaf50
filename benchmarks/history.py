"""Results of earlier commits: ``python -m benchmarks.history run REV... | pack | unpack``.

``run`` measures commits with the suite as it is checked out now, in asv's own environments, and packs. ``pack`` copies asv's results
into benchmarks/results/history without their samples, which git can bear; ``unpack`` copies them back, for `asv compare`, `asv show`
and `asv publish`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COMMITTED, LOCAL = HERE / "results" / "history", HERE / ".asv" / "results"
LEFT_OUT = ("samples", "profile")  # columns of asv's results: each timed call, and what a profiler wrote
DIGITS = 4


def asv(*arguments: str) -> int:
    """Its exit status; it runs where its configuration is."""
    return subprocess.run([sys.executable, "-m", "asv", *arguments], cwd=HERE, check=False).returncode


def copied(source: Path, target: Path) -> int:
    """Copy results, without their samples; how many files there were."""
    found = sorted(source.rglob("*.json"))
    for path in found:
        to = target / path.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(json.dumps(_shortened(json.loads(path.read_text("utf-8"))), separators=(",", ":")) + "\n", "utf-8")
    return len(found)


def measured() -> list[str]:
    """The commits whose results are kept."""
    kept = (json.loads(path.read_text("utf-8")) for path in sorted(COMMITTED.glob("*/*-*.json")))
    return sorted({contents["commit_hash"] for contents in kept})


def is_here(revision: str) -> bool:
    """Whether this clone has a commit; a shallow one lacks most."""
    done = subprocess.run(["git", "cat-file", "-e", f"{revision}^{{commit}}"], cwd=HERE, capture_output=True, check=False)
    return done.returncode == 0


def _shortened(contents: Any) -> Any:
    """A file of results has a list of columns, and for each benchmark a list of as many values, or fewer where the last are empty."""
    columns = contents.get("result_columns") if isinstance(contents, dict) else None
    if columns is None:
        return contents
    kept = [i for i, column in enumerate(columns) if column not in LEFT_OUT]
    results = {name: [values[i] for i in kept if i < len(values)] for name, values in contents["results"].items()}
    return _rounded(contents | {"result_columns": [columns[i] for i in kept], "results": results})


def _rounded(x: Any) -> Any:
    if isinstance(x, float):
        return float(f"{x:.{DIGITS}g}") if abs(x) < 1e6 else x  # times of day are large
    if isinstance(x, dict):
        return {name: _rounded(value) for name, value in x.items()}
    return [_rounded(value) for value in x] if isinstance(x, list) else x


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.history", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure commits, and pack")
    run.add_argument("revisions", nargs="+", metavar="REV", help="a commit, or a range as git has it (v1.0..HEAD)")
    run.add_argument("--steps", type=int, help="measure so many commits of each range alone")
    run.add_argument("--quick", action="store_true", help="one call of each benchmark")
    run.add_argument("--bench", action="append", default=[], help="benchmarks whose name matches this regular expression alone")
    commands.add_parser("pack", help="from asv's own folder into the repository")
    commands.add_parser("unpack", help="from the repository into asv's own folder")
    given = parser.parse_args(arguments)
    if given.command == "unpack":
        print(f"{copied(COMMITTED, LOCAL)} files in {LOCAL}")
        return 0
    status = 0
    if given.command == "run":
        options = ["--skip-existing-successful", *(["--quick"] if given.quick else []), *(f"--bench={b}" for b in given.bench)]
        options += [f"--steps={given.steps}"] if given.steps else []
        for revision in given.revisions:
            status = max(status, asv("run", *options, revision if ".." in revision else f"{revision}^!"))
    if not LOCAL.exists():
        parser.error(f"there is no {LOCAL}: nothing has been measured")
    print(f"{copied(LOCAL, COMMITTED)} files in {COMMITTED}")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
