"""One HTML file that shows where a kernel is wrong: error over budget, by head and tile, by channel and pixel, by row and column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from refattn._core import Array
from refattn.testing.attribution import allowed_of, by_tiles, key_tiles, tile_of
from refattn.testing.patterns import plural, ratios
from refattn.testing.report import Report, Result
from refattn.view.page import asset, document

MOST_PICTURES = 24
MOST_PANELS = 12
MOST_ROWS, MOST_COLUMNS, MOST_LONG = 64, 96, 256

ABOUT = (
    "Every number that a kernel returns is compared with the reference, and its error with a budget of its own: what an honest kernel of "
    "this precision may have. Grey is within the budget; the warmer the colour, the further beyond it."
)


def report_page(report: Report, title: str) -> str:
    """The page of a report: what is wrong, which convention matches, and a picture of each failure.

    Parameters
    ----------
    report : Report
        What a check found.
    title : str
        The heading of the page.

    Returns
    -------
    str
        HTML that needs no network and no other file.
    """
    shown = [r for r in report.failures if r.evidence is not None][:MOST_PICTURES]
    pictures = [_maps(r) for r in shown]
    body = [
        f'<p class="about">{ABOUT}</p>',
        "<main>",
        _summary(report),
        *(_failure(i, r, maps) for i, (r, maps) in enumerate(zip(shown, pictures, strict=True))),
        *_without_picture([r for r in report.failures if r not in shown], bool(shown)),
        "</main>",
    ]
    return document(title, body, {"pictures": pictures}, style=asset("page.css") + asset("report_page.css"), script=asset("report_page.js"))


def _summary(report: Report) -> str:
    """Counts, what matches, and a row for each output and gradient of each mechanism."""
    counts = report.counts
    verdict = "wrong" if report.failures else "right" if report.passed else "not compared"
    facts = {
        "Verdict": verdict,
        **{name.replace("_", " ").capitalize(): str(n) for name, n in counts.items() if n or name in {"pass", "fail"}},
    }
    rows = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())
    said = [(name, e) for name, e in report.explain().items() if e.wrong]
    matches = "".join(f"<li><code>{escape(name)}</code> {escape(line)}</li>" for name, e in said for line in e.conventions)
    tried = "<p>None of the other conventions that are tried gives what came.</p>" if said and not matches else ""
    body = f"<h3>Matches</h3><ul>{matches}</ul>" if matches else tried
    return (
        f'<section class="summary wide" aria-labelledby="summary"><h2 id="summary">Summary</h2><dl class="counts">{rows}</dl>'
        f'<div class="matches">{body}</div>{_table(report)}</section>'
    )


def _table(report: Report) -> str:
    """The worst result of each output and gradient."""
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for r in report.results:
        if r.status in {"pass", "fail"}:
            groups.setdefault((r.mechanism, r.dtype, r.what), []).append(r)
    rows = []
    for (mechanism, dtype, what), found in groups.items():
        wrong = [r for r in found if r.status == "fail"]
        known = [r.error_over_budget for r in found if r.error_over_budget is not None]
        worst = _number(max(known)) if known else ""
        cells = (f"<code>{escape(mechanism)}</code>", escape(dtype), escape(what), f"{len(wrong)} of {len(found)}", worst)
        rows.append(f'<tr class="{"fail" if wrong else "pass"}">{"".join(f"<td>{c}</td>" for c in cells)}</tr>')
    if not rows:
        return ""
    heads = "".join(f'<th scope="col">{h}</th>' for h in ("mechanism", "dtype", "what", "wrong cases", "worst error / budget"))
    return f'<div class="scroll" tabindex="0" role="region" aria-label="Table of results"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _failure(number: int, r: Result, maps: Sequence[Any]) -> str:
    """What is said of one failure, and where the script puts its maps."""
    if r.worst_index is None:
        lines = [r.reason]
    else:
        times = "infinitely far beyond" if r.error_over_budget == math.inf else f"{_number(r.error_over_budget or 0)} times"
        lines = [
            f"{r.wrong} of {r.elements} elements are wrong; the worst, at {_index(r)}, is {times} its budget: "
            f"got {r.got:.6g}, expected {r.expected:.6g}.",
            *(f"{said[0].upper()}{said[1:]}." for said in r.pattern),
        ]
    said = "".join(f"<li>{escape(line)}</li>" for line in lines if line)
    again = f'<p class="again"><span>To repeat it</span> <code tabindex="0">{escape(r.reproduce)}</code></p>' if r.reproduce else ""
    return (
        f'<section class="failure wide" aria-labelledby="failure-{number}"><h2 id="failure-{number}">{escape(r.what)}: {escape(r.case)}</h2>'
        f'<p class="chain"><code>{escape(r.mechanism)}</code> <span>›</span> {escape(r.dtype)}</p>'
        f'<ul class="said">{said}</ul>{again}<div class="drawn" id="drawn-{number}"></div></section>'
    )


def _without_picture(rest: Sequence[Result], some: bool) -> list[str]:
    if not rest:
        return []
    heading = "Other failures" if some else "Failures"
    items = "".join(f"<li>{escape(str(r))}</li>" for r in rest[:200])
    more = f"<p>... and {len(rest) - 200} more</p>" if len(rest) > 200 else ""
    return [f'<section class="wide" aria-labelledby="others"><h2 id="others">{heading}</h2><ul class="said">{items}</ul>{more}</section>']


def _index(r: Result) -> str:
    at = r.worst_index or ()
    axes = r.evidence.axes(r.what) if r.evidence is not None else ()
    return ", ".join(f"{name} {i}" for name, i in zip(axes, at, strict=False)) if len(axes) == len(at) and at else str(at)


def _number(x: float) -> str:
    return "∞" if x == math.inf else f"{x:.3g}"


def _maps(r: Result) -> list[dict[str, Any]]:
    """The maps of one failure: an overview, the last two axes, and for attention the keys that an error comes from."""
    evidence = r.evidence
    if evidence is None:
        return []
    got, exact, budget = evidence.arrays[r.what]
    if got.shape != exact.shape or not exact.size:
        return []
    ratio, axes = np.asarray(ratios(got, exact, budget), float), list(evidence.axes(r.what))
    while ratio.ndim < 2:
        ratio, axes = ratio[None], ["", *axes]
    maps = []
    if r.what == "output" and (tiles := key_tiles(evidence, ratio)) is not None:
        maps.append(
            _map(
                "By the keys that the error comes from",
                "Estimated: which tile's weights, if they were wrong, would explain the error of the queries best.",
                tiles.ratio,
                [*axes[:-2], "query", "key"],
                (tiles.query_tile, tiles.key_tile),
                (exact.shape[-2], evidence.arguments["key"].shape[-2]),
                allowed=tiles.allowed,
            )
        )
    if ratio.ndim > 2:
        pixels = axes[-2:] == ["row", "column"]
        worst, names = (ratio.max(axis=(-2, -1)), axes[:-2]) if pixels else (ratio.max(axis=-1), axes[:-1])
        lead = _joined(names[:-1], worst.shape[:-1])
        title = f"By {lead} and {names[-1]}" if lead else f"By {names[-1]}"
        maps.append(_whole(title, "The worst of each.", worst.reshape(-1, worst.shape[-1]), [lead, names[-1]], most=(MOST_ROWS, MOST_LONG)))
    title = f"By {axes[-2]} and {axes[-1]}" if axes[-2] else f"By {axes[-1]}"
    maps.append(_whole(title, "", ratio, axes, _pairs(r, ratio)))
    return maps


def _pairs(r: Result, ratio: Array) -> Array | None:
    """Which pairs are allowed, for what has an element for each pair."""
    if r.evidence is None or r.what not in {"weights", "d_bias"}:
        return None
    allowed = allowed_of(r.evidence)
    return (
        None
        if allowed is None or allowed.shape[-2:] != ratio.shape[-2:]
        else np.broadcast_to(allowed, np.broadcast_shapes(allowed.shape, ratio.shape)) * 1.0
    )


def _joined(names: Sequence[str], sizes: Sequence[int]) -> str:
    """Several axes as one; those of one index say nothing."""
    return ", ".join(n for n, size in zip(names, sizes, strict=False) if size > 1 and n)


def _whole(
    title: str,
    note: str,
    ratio: Array,
    axes: Sequence[str],
    allowed: Array | None = None,
    most: tuple[int, int] = (MOST_ROWS, MOST_COLUMNS),
) -> dict[str, Any]:
    """A map of an array in cells that are few enough to be drawn."""
    height, width = ratio.shape[-2:]
    tiles = tile_of(height, most[0]), tile_of(width, most[1])
    shares = None if allowed is None else by_tiles(allowed, *tiles, mean=True)
    return _map(title, note, by_tiles(ratio, *tiles), axes, tiles, (height, width), allowed=shares)


def _map(
    title: str,
    note: str,
    cells: Array,
    axes: Sequence[str],
    tiles: tuple[int, int],
    sizes: tuple[int, int],
    *,
    allowed: Array | None = None,
) -> dict[str, Any]:
    """The data of one map: a panel for each index of the leading axes, the worst ones where there are many."""
    *lead, rows, columns = cells.shape
    flat = cells.reshape(-1, rows, columns)
    known = (
        None if allowed is None else np.broadcast_to(allowed, np.broadcast_shapes(allowed.shape, cells.shape)).reshape(-1, rows, columns)
    )
    labels = [_label(at, lead, axes[:-2]) for at in np.ndindex(*lead)]
    chosen = list(range(len(flat)))
    if len(flat) > MOST_PANELS:
        worst = np.argsort(-flat.max(axis=(-2, -1)), kind="stable")[:MOST_PANELS]
        chosen = sorted(int(i) for i in worst)
        note = f"{note} The {MOST_PANELS} worst of {len(flat)}.".strip()
    panels = [
        {
            "name": labels[i],
            "ratios": [_rounded(x) for x in flat[i].ravel().tolist()],
            "allowed": None if known is None else [round(x, 3) for x in known[i].ravel().tolist()],
        }
        for i in chosen
    ]
    names = [{"one": n, "many": plural(n) if n else ""} for n in axes[-2:]]
    return {"title": title, "note": note, "rows": rows, "columns": columns, "tiles": tiles, "sizes": sizes, "axes": names, "panels": panels}


def _rounded(x: float) -> float | None:
    """Few digits, since colours show fewer; None is infinite."""
    return float(f"{x:.3g}") if math.isfinite(x) else None


def _label(at: Sequence[int], lead: Sequence[int], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {i}" for name, i, n in zip(names, at, lead, strict=False) if n > 1)
