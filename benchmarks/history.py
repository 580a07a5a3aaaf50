"""Results of earlier commits: ``python -m benchmarks.history run REV... | unpack``.

``run`` measures commits with the suite as it is checked out now, in asv's own environments, and copies the results into
benchmarks/results/history without their samples, which git can bear; ``unpack`` gives those to asv, for `asv compare`, `asv show` and
`asv publish`. What else asv has measured in this clone stays apart.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COMMITTED, LOCAL, MEASURED = HERE / "results" / "history", HERE / ".asv" / "results", HERE / ".asv" / "history"
LEFT_OUT = ("samples", "profile")  # columns of asv's results: each timed call, and what a profiler wrote
DIGITS = 4


def asv(*arguments: str, results: Path = MEASURED, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run it with this repository's configuration, but results in a folder of their own, or quietly for a site of them."""
    import json5  # noqa: PLC0415  (asv's own: its configuration has comments)

    configuration = json5.loads((HERE / "asv.conf.json").read_text("utf-8"))
    folders = {
        "repo": HERE.parent,
        "benchmark_dir": HERE / "suite",
        "env_dir": HERE / ".asv" / "env",
        "results_dir": results,
        "html_dir": site or HERE / ".asv" / "html",
    }
    path = results.parent / f"{results.name}.conf.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(configuration | {name: str(folder) for name, folder in folders.items()}), "utf-8")
    return subprocess.run(
        [sys.executable, "-m", "asv", "--config", str(path), *arguments], check=False, text=True, capture_output=site is not None
    )


def measure(revision: str, machine: str, options: Sequence[str], benchmarks: Sequence[str]) -> int:
    """asv's exit status, for one commit or range.

    Where processes can be forked they have imported already, which saves half of the time, but those whose memory is measured start anew.
    """
    asked = revision if ".." in revision else f"{revision}^!"
    chosen = "|".join(benchmarks) or "."
    passes = {rf"^(?!memory\.).*({chosen})": ["--launch-method=forkserver"] * (sys.platform == "linux"), rf"^memory\..*({chosen})": []}
    done = [asv("run", f"--machine={machine}", *options, *how, f"--bench={which}", asked) for which, how in passes.items()]
    return max(d.returncode for d in done)


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
    run = commands.add_parser("run", help="measure commits, and keep the results")
    run.add_argument("revisions", nargs="+", metavar="REV", help="a commit, or a range as git has it (v1.0..HEAD)")
    run.add_argument("--machine", default=platform.node(), metavar="NAME", help="how the page names this machine (default its own name)")
    run.add_argument("--anew", action="store_true", help="in the place of all that is kept")
    run.add_argument("--steps", type=int, help="measure so many commits of each range alone")
    run.add_argument("--quick", action="store_true", help="one call of each benchmark")
    run.add_argument("--bench", action="append", default=[], help="benchmarks whose name matches this regular expression alone")
    commands.add_parser("unpack", help="give asv what is kept")
    given = parser.parse_args(arguments)
    if given.command == "unpack":
        print(f"{copied(COMMITTED, LOCAL)} files in {LOCAL}")
        return 0
    if given.anew:
        for folder in (COMMITTED, MEASURED):
            shutil.rmtree(folder, ignore_errors=True)
    options = ["--skip-existing-successful", *(["--quick"] if given.quick else []), *([f"--steps={given.steps}"] if given.steps else [])]
    status = asv("machine", "--yes", f"--machine={given.machine}").returncode
    for revision in given.revisions:
        status = max(status, measure(revision, given.machine, options, given.bench))
    print(f"{copied(MEASURED, COMMITTED)} files in {COMMITTED}")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
