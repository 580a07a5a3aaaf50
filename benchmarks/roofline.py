"""Rooflines as pictures: how many operations a second a case reaches, by how many it has for each byte that it must move.

Williams, Waterman, Patterson (2009), "Roofline: an insightful visual performance model for multicore architectures". The roofs are
those that were measured beside the cases: the most multiply-adds of registers alone, and the most bytes read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 400, 62, 18, 18, 46


class Point(NamedTuple):
    """A case: operations for each byte, operations a second, and the limit whose roof it is under."""

    name: str
    intensity: float
    rate: float
    limit: str


class Scale(NamedTuple):
    """Decades onto pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return self.start + share * (self.end - self.start)

    @property
    def decades(self) -> list[float]:
        """The powers of ten within."""
        return [10.0**n for n in range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)]


def points(rows: Sequence[Mapping[str, Any]]) -> list[Point]:
    """The rows that say what they had to do."""
    told = [row for row in rows if row.get("operations") and row.get("bytes")]
    return [Point(r["case"], r["operations"] / r["bytes"], r["operations"] / r["ours_ms"] * 1e3, r["limit"]) for r in told]


def roofs(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The most that was seen of each limit, a second."""
    best: dict[str, float] = {}
    for row in rows:
        if "limit_per_second" in row:
            best[row["limit"]] = max(best.get(row["limit"], 0.0), row["limit_per_second"])
    return best


def picture(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """SVG, or nothing where the rows do not say enough."""
    shown, limits = points(rows), roofs(rows)
    compute = {name: rate for name, rate in limits.items() if name != "read"}
    if not shown or not compute:
        return ""
    least, most = min(p.intensity for p in shown), max(p.intensity for p in shown)
    x = Scale(10 ** math.floor(math.log10(least / 2)), 10 ** math.ceil(math.log10(most * 2)), LEFT, WIDTH - RIGHT)
    floor = min([p.rate for p in shown] + ([limits["read"] * x.low] if "read" in limits else []))
    y = Scale(10 ** math.floor(math.log10(floor)), 10 ** math.ceil(math.log10(max(compute.values()) * 1.2)), HEIGHT - BOTTOM, TOP)
    parts = [
        *_grid(x, y),
        *(_roof(x, y, name, rate, limits.get("read")) for name, rate in sorted(compute.items())),
        *(
            [_text(x(2 * x.low) + 6, y(limits["read"] * 2 * x.low) + 14, f"reading, {limits['read'] / 1e9:.0f} GB/s", "start", "name")]
            if "read" in limits
            else []
        ),
        *(_dot(x, y, p) for p in shown),
    ]
    label = f'role="img" aria-label="{escape(title)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" class="roofline" {label}>{"".join(parts)}</svg>'


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "tick") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _grid(x: Scale, y: Scale) -> list[str]:
    made = []
    for decade in x.decades:
        made += [_line(x(decade), y.start, x(decade), y.end, "grid"), _text(x(decade), HEIGHT - BOTTOM + 16, f"{decade:g}")]
    for decade in y.decades:
        made += [_line(x.start, y(decade), x.end, y(decade), "grid"), _text(LEFT - 6, y(decade) + 4, f"{decade / 1e9:g}", "end")]
    across = _text((x.start + x.end) / 2, HEIGHT - 8, "operations for each byte that must be moved", kind="axis")
    up = f'<text transform="translate(14 {(y.start + y.end) / 2:.1f}) rotate(-90)" text-anchor="middle" class="axis">GFLOP/s</text>'
    return [*made, across, up]


def _roof(x: Scale, y: Scale, name: str, rate: float, read: float | None) -> str:
    """The slope of what can be read, up to the flat of what can be computed."""
    ridge = max(x.low, min(rate / read, x.high)) if read else x.low
    flat = _line(x(ridge), y(rate), x.end, y(rate), "roof") + _text(
        x.end - 4, y(rate) - 5, f"{name}, {rate / 1e9:.0f} GFLOP/s", "end", "name"
    )
    if not read:
        return flat
    return flat + _line(x.start, y(read * x.low), x(ridge), y(read * ridge), "roof")


def _dot(x: Scale, y: Scale, p: Point) -> str:
    told = f"{p.name}: {p.rate / 1e9:.1f} GFLOP/s, {p.intensity:.3g} operations a byte"
    return f'<circle cx="{x(p.intensity):.1f}" cy="{y(p.rate):.1f}" r="4.5" class="dot {escape(p.limit)}"><title>{escape(told)}</title></circle>'
