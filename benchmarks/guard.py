"""Whether the last commit made a hot kernel slower: ``python -m benchmarks.guard [--against REV]``.

Two processes, one of each version, take turns at each kernel, so that a slow minute of the machine slows both; the ratio is that of
the shortest times, which other programs can only lengthen. It is printed, whatever it is. Only where one is beyond 1.5, and still is
when both have started again, is the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any, TextIO

from benchmarks.measure import ROOT, THREAD_VARIABLES
from benchmarks.tables import aligned

LIMIT, TURNS = 1.5, 25
MEASURED = ("refattn", "refattn_numba")
WORKER = Path(__file__).with_name("guard_worker.py")


class Version:
    """A process that times kernels of one version of the packages, a turn whenever it is asked."""

    def __init__(self, tree: Path) -> None:
        environment = {
            **os.environ,
            **dict.fromkeys(THREAD_VARIABLES, "1"),
            "PYTHONPATH": str(tree),
            "NUMBA_CACHE_DIR": str(tree / "cache"),
        }
        environment["PYTHONSAFEPATH"] = "1"  # else the packages beside the worker would be found first
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), str(tree)], env=environment, cwd=tree, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def turn(self, kernel: str) -> float:
        """Seconds of the shortest call of some."""
        stdin = self.process.stdin
        assert stdin is not None
        print(kernel, file=stdin, flush=True)
        return self.answer()

    def answer(self) -> Any:
        """The next line that it writes: first the names of its kernels."""
        stdout: TextIO | None = self.process.stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"a version ended with status {self.process.wait()}; what it said stands above")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def unpacked(revision: str, folder: Path) -> Path:
    """The packages as they are at a commit."""
    archive = _git("archive", revision, *MEASURED)
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout


def ratios(old: Path, new: Path, kernels: Sequence[str] = (), turns: int = TURNS) -> dict[str, tuple[float, float]]:
    """Seconds by kernel, before and after: the least of all turns; of those kernels that both versions have, and that are asked for."""
    with ExitStack() as stack:
        versions = [Version(tree) for tree in (old, new)]
        for version in versions:
            stack.callback(version.close)
        before, after = [version.answer() for version in versions]  # both compile at once
        common = [k for k in before if k in after and (not kernels or k in kernels)]
        best: dict[str, list[float]] = {k: [float("inf")] * 2 for k in common}
        for kernel in common:
            for _ in range(turns):
                best[kernel] = [min(least, v.turn(kernel)) for least, v in zip(best[kernel], versions, strict=True)]
        return {k: (a, b) for k, (a, b) in best.items()}


def slower(found: Mapping[str, tuple[float, float]], limit: float = LIMIT) -> list[str]:
    """Kernels that are beyond the limit."""
    return [k for k, (before, after) in found.items() if after > limit * before]


def table(found: Mapping[str, tuple[float, float]]) -> str:
    """For a terminal."""
    rows = [[k, f"{1e3 * a:.3f}", f"{1e3 * b:.3f}", f"{b / a:.2f}"] for k, (a, b) in found.items()]
    return aligned([["kernel", "before, ms", "after, ms", "after / before"], *rows])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--against", default="HEAD^", metavar="REV", help="the commit to compare HEAD with (default its parent)")
    against = parser.parse_args(arguments).against
    if subprocess.run(
        ["git", "rev-parse", "-q", "--verify", f"{against}^{{commit}}"], cwd=ROOT, stdout=subprocess.DEVNULL, check=False
    ).returncode:
        print(f"guard: this clone has no {against}, so nothing is compared")
        return 0
    if not _git("diff", "--name-only", against, "HEAD", "--", *MEASURED).strip():
        print(f"guard: {' and '.join(MEASURED)} are those of {against}, so nothing is compared")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        trees = [unpacked(revision, Path(folder) / name) for name, revision in (("old", against), ("new", "HEAD"))]
        found = ratios(*trees)
        print(table(found))
        if not (suspects := slower(found)):
            return 0
        print(f"\nbeyond {LIMIT}: {', '.join(suspects)}; once more, in new processes\n", flush=True)
        again = ratios(*trees, kernels=suspects)
        print(table(again))
        failed = slower(again)
        print(f"guard: {', '.join(failed) or 'nothing'} is more than {LIMIT} times as slow as at {against}, twice in a row")
        return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
