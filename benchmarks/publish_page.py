"""The first page: tables of this package beside others, and rooflines, made of the rows that `record` keeps; it has no script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.roofline import picture, roofs

STYLE = Path(__file__).with_name("publish_page.css").read_text("utf-8")
Record = Mapping[str, Any]
ABOUT = {
    "oracle": "What refattn check takes for all cases of a mechanism and level, beside the calls of the kernel that it judges, here the"
    " reference itself; the ratio is the share of the check that is the kernel's."
}

INTRODUCTION = (
    "Every figure was measured by this repository's own benchmarks: contenders take turns in one process, on the same number of"
    " threads and the same inputs, after a check that they compute the same. A time is the median of the turns; what follows it is half"
    " the distance of the quartiles. Of a ratio above 1, this package is the faster one."
)


def page(suites: Mapping[str, Sequence[Record]]) -> str:
    """HTML of all suites."""
    policy = f"default-src 'none'; style-src {_hash(STYLE)}; img-src data:; base-uri 'none'; form-action 'none'"
    history = (
        "<p>How figures changed from commit to commit is what <code>python -m benchmarks.publish</code> writes beside this page,"
        " in history.html (airspeed velocity). How far its times can be believed stands in docs/benchmarks.md.</p>"
    )
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<link rel="icon" href="data:,">',
            "<title>refattn: benchmarks</title>",
            f"<style>{STYLE}</style>",
            "</head>",
            "<body>",
            "<h1>refattn: benchmarks</h1>",
            f"<p>{INTRODUCTION}</p>",
            history,
            *(_section(name, rows) for name, rows in suites.items()),
            "</body>",
            "</html>",
            "",
        ]
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _section(name: str, rows: Sequence[Record]) -> str:
    """A suite: where it was measured, its roofline, its table, and the line that makes it again."""
    title, about = name.capitalize(), f"<p>{escape(ABOUT[name])}</p>" if name in ABOUT else ""
    again = f"<p>To measure it on your machine: <code>python -m benchmarks.side_by_side {escape(name)}</code></p>"
    picture_of = picture(f"Roofline: {title}", rows)
    caption = "<figcaption>Each dot is a case, under the roofs that were measured beside it; pointing at it names it; those of bfloat16 are brown.</figcaption>"
    figure = f"<figure>{picture_of}{caption}</figure>" if picture_of else ""
    return f'<section id="{escape(name)}"><h2>{escape(title)}</h2>{about}{_where(rows)}{figure}{_table(rows)}{again}</section>'


def _where(rows: Sequence[Record]) -> str:
    """The machine, the day and the versions; one line for each combination that there is."""
    told = sorted({(r["day"], f"{r['processor']}, {_threads(r['threads'])}", r["versions"]) for r in rows})
    limits = "; ".join(f"{n} {rate / 1e9:.0f} {'GB/s' if n == 'read' else 'GFLOP/s'}" for n, rate in sorted(roofs(rows).items()))
    lines = [f"{day}: {machine}; {versions}" for day, machine, versions in told] + ([f"Limits: {limits}"] if limits else [])
    return f'<p class="quiet">{"<br>".join(map(escape, lines))}</p>'


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _table(rows: Sequence[Record]) -> str:
    told = [_told(row) for row in rows]
    ours = next(iter(told[0][0]))
    peers = list(dict.fromkeys(name for times, _ in told for name in times if name != ours))
    has_limit = any(share for _, share in told)
    head = ["case", f"{ours}, ms", *(f"{p}, {what}" for p in peers for what in ("ms", "ratio")), *(["of the limit"] if has_limit else [])]
    body = []
    for row, (times, share) in zip(rows, told, strict=True):
        cells = [row["case"], _time(times, ours)]
        for peer in peers:
            cells += [_time(times, peer), _ratio(times[peer][0] / times[ours][0]) if peer in times else ""]
        body.append(cells + ([share] if has_limit else []))
    lines = ["".join(f"<{tag}>{escape(c)}</{tag}>" for c in cells) for tag, cells in (("th", head), *(("td", c) for c in body))]
    return f'<div class="wide"><table><thead><tr>{lines[0]}</tr></thead><tbody>{"".join(f"<tr>{x}</tr>" for x in lines[1:])}</tbody></table></div>'


def _told(row: Record) -> tuple[dict[str, tuple[float, float]], str]:
    """Milliseconds and spread by contender, our own first; and the share of the limit, where there is one."""
    if "milliseconds" in row:
        return {n: (t, row["spread"][n]) for n, t in row["milliseconds"].items()}, ""
    found = {"torch": row["torch_ms"], **row["others_ms"], "numpy": row["numpy_ms"], row["baseline"]: row["baseline_ms"]}
    ours = next(iter(row["spread"]))
    times = {ours: row["ours_ms"], **{n: t for n, t in found.items() if n and t is not None}}
    return {n: (t, row["spread"][n]) for n, t in times.items()}, f"{row['percent_of_limit']:.0f}% {row['limit']}"


def _ratio(x: float) -> str:
    return f"{x:.2f}" if x >= 0.1 else f"{x:.1g}"


def _time(times: Mapping[str, tuple[float, float]], name: str) -> str:
    return f"{times[name][0]:.3g} ±{50 * times[name][1]:.0f}%" if name in times else ""
