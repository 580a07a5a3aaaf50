"""A table of this package beside its peers: ``python -m benchmarks.side_by_side SUITE [--json | --markdown] [--quick] [--runs N]``.

Contenders take turns, on the same number of threads and the same inputs, after a check that they compute the same; a number
is the median of the rounds, and what follows it half the distance of the quartiles. Peak memory is that of our own call, its
inputs and the interpreter.

Attention and convolutions are held to floors, in `runs` runs of a process each; there a turn is many calls, and waits until other programs rest.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence

from benchmarks.cases import SUITES, Case, suite
from benchmarks.held import HeldRow, Run
from benchmarks.held_report import as_markdown, as_text
from benchmarks.held_report import as_record as as_held_record
from benchmarks.measure import Row, in_a_process, measured
from benchmarks.tables import Rows, aligned, markdown, time_cell


def as_record(row: Row, threads: int) -> dict[str, object]:
    """One object of the JSON list."""
    return {
        "case": row.case,
        "threads": threads,
        "milliseconds": {n: 1e3 * t.seconds for n, t in row.timings.items()},
        "spread": {n: t.spread for n, t in row.timings.items()},
        "rounds": next(iter(row.timings.values())).rounds,
        "ratio": row.ratios,
        "peak_gib": None if row.peak_bytes is None else row.peak_bytes / 2**30,
    }


def as_cells(rows: Sequence[Row]) -> Rows:
    """Columns: the case, milliseconds of each contender, our time over theirs, peak memory."""
    contenders = list(dict.fromkeys(n for row in rows for n in row.timings))
    ours, *peers = contenders
    head = ["case", *(f"{n} ms" for n in contenders), *(f"{ours} / {p}" for p in peers), "peak GiB"]
    body = [
        [
            row.case,
            *(time_cell(1e3 * t.seconds, t.spread) if (t := row.timings.get(n)) else "-" for n in contenders),
            *(f"{row.ratios[p]:.2f}" if p in row.ratios else "-" for p in peers),
            "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**30:.2f}",
        ]
        for row in rows
    ]
    return [head, *body]


class Progress:
    """Says on the error stream what is measured now."""

    def __init__(self, total: int) -> None:
        self.start, self.total, self.count = time.monotonic(), total, 0

    def show(self, case: str) -> None:
        """Before each case."""
        self.count += 1
        minutes, seconds = divmod(int(time.monotonic() - self.start), 60)
        print(f"{self.count:>3} of {self.total}  {minutes}:{seconds:02}  {case}", file=sys.stderr, flush=True)


def held_rows(name: str, cases: Sequence[tuple[int, Case]], runs: int, rounds: int, threads: int) -> tuple[list[HeldRow], list[str]]:
    """Run after run of all cases, so that those of one case are minutes apart; and what failed, which costs that case alone."""
    progress, made, failures = Progress(runs * len(cases)), [HeldRow(case, []) for _, case in cases], []
    for _ in range(runs):
        for (index, case), row in zip(cases, made, strict=True):
            progress.show(case.name)
            try:
                row.runs.append(Run(**in_a_process("hold", name, index, rounds, threads)))
            except RuntimeError as error:
                failures.append(f"{case.name}: {error}")
    return [row for row in made if row.runs], failures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.side_by_side", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("suite", choices=sorted(SUITES))
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a list of objects in place of the table")
    form.add_argument("--markdown", action="store_true", help="the table as it stands in docs/performance.md")
    parser.add_argument("--rounds", type=int, default=9, help="timed turns of each contender (default 9)")
    parser.add_argument("--runs", type=int, default=1, help="of cases with floors: processes, whose median counts (default 1)")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads of every contender (default 2)")
    parser.add_argument("--quick", action="store_true", help="small cases only, in three rounds")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name contains this")
    given = parser.parse_args(arguments)
    rounds = min(3, given.rounds) if given.quick else given.rounds
    cases = [(i, case) for i, case in enumerate(suite(given.suite)) if (case.quick or not given.quick) and given.only in case.name]
    if not cases:
        parser.error(f"--only is {given.only!r}, but no case of {given.suite} has this in its name")
    if all(case.work is not None for _, case in cases):
        held, failures = held_rows(given.suite, cases, given.runs, rounds, given.threads)
        records, as_page = [as_held_record(row, given.threads) for row in held], as_markdown if given.markdown else as_text
        page = as_page(held, given.threads) if held else ""
    else:
        progress, rows, failures = Progress(len(cases)), [], []
        for index, case in cases:
            progress.show(case.name)
            rows.append(measured(given.suite, index, rounds=rounds, threads=given.threads))
        records, as_grid = [as_record(row, given.threads) for row in rows], markdown if given.markdown else aligned
        page = f"{given.threads} threads, {rounds} rounds\n\n{as_grid(as_cells(rows))}"
    print(json.dumps(records, indent=2) if given.json else page)
    print(*failures, sep="\n", end="", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
