"""Rows of text as a table that is aligned, or in Markdown; the first row is the head, and the first column is text."""

from __future__ import annotations

from collections.abc import Sequence

Rows = Sequence[Sequence[str]]


def aligned(rows: Rows) -> str:
    """For a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{line[0]:<{widths[0]}}  " + "  ".join(f"{c:>{w}}" for c, w in zip(line[1:], widths[1:], strict=True)) for line in rows]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def markdown(rows: Rows) -> str:
    """For a document."""
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "| --- |" + " ---: |" * (len(rows[0]) - 1), *body])


def time_cell(milliseconds: float | None, spread: float) -> str:
    """A time, and half its spread in percent."""
    return "-" if milliseconds is None else f"{milliseconds:.4g} ±{50 * spread:.0f}%"
