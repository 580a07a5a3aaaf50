"""The rows that are held to floors, as objects for JSON and as tables."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from benchmarks.held import HeldRow
from benchmarks.machine import processor, versions
from benchmarks.tables import aligned, markdown, time_cell

OTHERS = ("onnxruntime", "jax", "numpy")
UNITS = {"read": "GB/s"}  # the other limits are operations


def as_record(row: HeldRow, threads: int) -> dict[str, object]:
    """One object of the JSON list; the ratio is the baseline's time over ours, above 1 where ours is faster."""
    largest, mean = (
        {n: median(getattr(r, kind)[n] for r in row.runs) for n in getattr(row.runs[0], kind)} for kind in ("max_error", "rms_error")
    )
    return {
        "case": row.case.name,
        "threads": threads,
        "ours_ms": row.milliseconds(row.ours),
        "baseline": row.baseline,
        "baseline_ms": row.milliseconds(row.baseline),
        "torch_ms": row.milliseconds("torch"),
        "numpy_ms": row.milliseconds("numpy"),
        "others_ms": {n: row.milliseconds(n) for n in row.runs[0].seconds if n in {"onnxruntime", "jax"}},
        "ratio": row.ratio,
        "floor": row.case.floor,
        "holds": row.holds,
        "percent_of_limit": row.percent,
        "percent_floor": row.case.percent_floor,
        "percent_holds": row.percent_holds,
        "limit": row.runs[0].limit,
        "limit_per_second": max(run.rate for run in row.runs),
        "max_error": largest.get(row.ours),
        "torch_max_error": largest.get("torch"),
        "rms_error": mean.get(row.ours),
        "torch_rms_error": mean.get("torch"),
        "spread": {n: row.spread(n) for n in row.runs[0].seconds},
        "runs": len(row.runs),
        "rounds": sum(run.rounds for run in row.runs),
        "believable": row.believable,
        "disturbed_rounds": sum(run.disturbed for run in row.runs),
    }


def limits_of(rows: Sequence[HeldRow]) -> str:
    """The best that was seen of each limit."""
    best: dict[str, float] = {}
    for run in (run for row in rows for run in row.runs):
        best[run.limit] = max(best.get(run.limit, 0.0), run.rate)
    return ", ".join(f"{name} {rate / 1e9:.0f} {UNITS.get(name, 'GFLOP/s')}" for name, rate in sorted(best.items()))


def preface(rows: Sequence[HeldRow], threads: int) -> str:
    """What was measured where."""
    runs = len(rows[0].runs)
    how = "one run" if runs == 1 else f"medians of {runs} runs, with half the distance between the least and the greatest"
    return f"{processor()}, {threads} threads; limits: {limits_of(rows)}.\n{versions()}; {how}."


def disturbances(rows: Sequence[HeldRow]) -> str:
    """How far to believe it."""
    runs = [run for row in rows for run in row.runs]
    return f"Other programs took part in {sum(r.disturbed for r in runs)} of {sum(r.rounds for r in runs)} rounds; a question mark stands where too few were left."


def main_cells(rows: Sequence[HeldRow]) -> list[list[str]]:
    """Ours beside the baseline and the limit."""
    made = [["case", "ours, ms", "baseline, ms", "ratio", "floor", "of limit", "floor", "rms error", "torch's", "disturbed"]]
    for row in rows:
        record = as_record(row, 0)
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        share = f"{row.percent:.0f}% {row.runs[0].limit}"
        floors = _floor(row, row.case.floor, "", row.holds), _floor(row, row.case.percent_floor, "%", row.percent_holds)
        errors = ["-" if (e := record[n]) is None else f"{e:.1e}" for n in ("rms_error", "torch_rms_error")]
        disturbed = f"{record['disturbed_rounds']} of {record['rounds']}"
        made.append([row.case.name, _time(row, row.ours), _time(row, row.baseline), ratio, floors[0], share, floors[1], *errors, disturbed])
    return made


def other_cells(rows: Sequence[HeldRow]) -> list[list[str]]:
    """The other contenders' times over ours."""
    taking_part = [row for row in rows if any(n in row.runs[0].seconds for n in OTHERS)]
    made = [["case", "ours, ms", *(f"{n}, {unit}" for n in OTHERS for unit in ("ms", "ratio"))]]
    for row in taking_part:
        cells = [c for n in OTHERS for c in (_time(row, n), _over(row, n))]
        made.append([row.case.name, _time(row, row.ours), *cells])
    return made


def _over(row: HeldRow, name: str) -> str:
    theirs, ours = row.milliseconds(name), row.milliseconds(row.ours)
    return "-" if theirs is None or ours is None else f"{theirs / ours:.2f}"


def _time(row: HeldRow, name: str | None) -> str:
    return "-" if name is None or name not in row.runs[0].seconds else time_cell(row.milliseconds(name), row.spread(name))


def _floor(row: HeldRow, floor: float | None, unit: str, holds: bool | None) -> str:
    """With a question mark where other programs took part."""
    verdict = "" if holds is None else (" holds" if holds else " missed") + "?" * (not row.believable)
    return "-" if floor is None else f"{floor:g}{unit}{verdict}"


def as_text(rows: Sequence[HeldRow], threads: int) -> str:
    """For a terminal."""
    return "\n\n".join([preface(rows, threads), aligned(main_cells(rows)), aligned(other_cells(rows)), disturbances(rows)])


def as_markdown(rows: Sequence[HeldRow], threads: int) -> str:
    """For docs/performance.md."""
    return "\n\n".join([preface(rows, threads), markdown(main_cells(rows)), markdown(other_cells(rows)), disturbances(rows)])
