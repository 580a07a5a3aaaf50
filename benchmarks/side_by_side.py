"""A table of this package beside its peers: ``python -m benchmarks.side_by_side SUITE [--json] [--quick]``.

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
from benchmarks.measure import Held, Row, Timing, measured


def as_record(row: Row, threads: int) -> dict[str, object]:
    """One object of the JSON list."""
    if row.held is not None:
        return as_held_record(row, row.held, threads)
    return {
        "case": row.case,
        "threads": threads,
        "milliseconds": {n: 1e3 * t.seconds for n, t in row.timings.items()},
        "spread": {n: t.spread for n, t in row.timings.items()},
        "rounds": next(iter(row.timings.values())).rounds,
        "ratio": row.ratios,
        "peak_gib": None if row.peak_bytes is None else row.peak_bytes / 2**30,
    }


def as_held_record(row: Row, held: Held, threads: int) -> dict[str, object]:
    """One object for a case with a floor: here the ratio is the baseline's time over ours, above 1 where ours is faster."""
    milliseconds = {n: 1e3 * t.seconds for n, t in row.timings.items()}
    ours = next(iter(row.timings))
    return {
        "case": row.case,
        "threads": threads,
        "ours_ms": milliseconds[ours],
        "baseline": held.baseline,
        "baseline_ms": milliseconds[held.baseline],
        "torch_ms": milliseconds.get("torch"),
        "numpy_ms": milliseconds.get("numpy"),
        "ratio": held.ratio,
        "floor": held.floor,
        "percent_of_limit": held.percent,
        "limit": held.limit,
        "max_error": held.errors.get(ours),
        "torch_max_error": held.errors.get("torch"),
        "spread": {n: t.spread for n, t in row.timings.items()},
        "rounds": row.timings[ours].rounds,
    }


def as_held_table(rows: Sequence[Row]) -> str:
    """Aligned columns for cases with floors."""
    head = ["case", "ours ms", "baseline ms", "numpy ms", "ratio", "floor", "of limit", "error", "its error"]
    body = []
    for row in rows:
        held, ours = row.held, next(iter(row.timings))
        if held is None:
            continue
        errors = [f"{held.errors[n]:.1e}" if n in held.errors else "-" for n in (ours, held.baseline)]
        times = [_milliseconds(row.timings.get(n)) for n in (ours, held.baseline, "numpy")]
        body.append([row.case, *times, f"{held.ratio:.2f}", f"{held.floor:g}", f"{held.percent:.0f}% {held.limit}", *errors])
    return _aligned([head, *body])


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
    return _aligned([head, *body])


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{line[0]:<{widths[0]}}  " + "  ".join(f"{c:>{w}}" for c, w in zip(line[1:], widths[1:], strict=True)) for line in rows]
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
    parser.add_argument("--quick", action="store_true", help="small cases only, in three rounds")
    given = parser.parse_args(arguments)
    rounds = min(3, given.rounds) if given.quick else given.rounds
    cases = [i for i, case in enumerate(suite(given.suite)) if case.quick or not given.quick]
    rows = [measured(given.suite, i, rounds=rounds, threads=given.threads) for i in cases]
    if given.json:
        print(json.dumps([as_record(row, given.threads) for row in rows], indent=2))
    else:
        table = as_table if all(row.held is None for row in rows) else as_held_table
        print(f"{given.threads} threads, {rounds} rounds\n{table(rows)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
