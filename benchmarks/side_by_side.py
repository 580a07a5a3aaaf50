"""A table of this package beside its peers: ``python -m benchmarks.side_by_side reference [--json]``.

Contenders take turns, on the same number of threads and the same inputs, after a check that they compute the same; a number
is the median of the rounds, and what follows it half the distance of the quartiles. Peak memory is that of our own call, its
inputs and the interpreter.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence

from benchmarks.cases import SUITES, suite
from benchmarks.measure import Row, Timing, measured


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


def as_table(rows: Sequence[Row]) -> str:
    """Aligned columns: the case, milliseconds of each contender, our time over theirs, peak memory."""
    contenders = list(dict.fromkeys(n for row in rows for n in row.timings))
    ours, *peers = contenders
    head = ["case", *(f"{n} ms" for n in contenders), *(f"{ours} / {p}" for p in peers), "peak GiB"]
    body = [
        [
            row.case,
            *(_milliseconds(row.timings.get(n)) for n in contenders),
            *(f"{row.ratios[p]:.2f}" if p in row.ratios else "-" for p in peers),
            "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**30:.2f}",
        ]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    lines = [
        f"{line[0]:<{widths[0]}}  " + "  ".join(f"{c:>{w}}" for c, w in zip(line[1:], widths[1:], strict=True)) for line in [head, *body]
    ]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def _milliseconds(timing: Timing | None) -> str:
    return "-" if timing is None else f"{1e3 * timing.seconds:.4g} ±{50 * timing.spread:.0f}%"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.side_by_side", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("suite", choices=sorted(SUITES))
    parser.add_argument("--json", action="store_true", help="a list of objects in place of the table")
    parser.add_argument("--rounds", type=int, default=9, help="timed calls of each contender (default 9)")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads of every contender (default 2)")
    given = parser.parse_args(arguments)
    rows = [measured(given.suite, i, rounds=given.rounds, threads=given.threads) for i in range(len(suite(given.suite)))]
    if given.json:
        print(json.dumps([as_record(row, given.threads) for row in rows], indent=2))
    else:
        print(f"{given.threads} threads, {given.rounds} rounds\n{as_table(rows)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
