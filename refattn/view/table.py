"""Aligned tables and a progress bar: coloured by `rich` where it is installed and a person looks on, plain text otherwise."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO, TypeVar

T = TypeVar("T")

LEAST = 30  # letters that text needs in a line
NUMBER = re.compile(r"[+-]?(\d+)(\.\d*)?(e[+-]?\d+)?|[+-]?inf|nan")


def is_coloured(file: TextIO) -> bool:
    """Whether `rich` may draw here: it is installed, this is a terminal, and NO_COLOR is unset or empty."""
    return file.isatty() and not os.environ.get("NO_COLOR") and importlib.util.find_spec("rich") is not None


def number(x: float) -> str:
    """Three digits; what is very large or small in powers of ten."""
    return f"{x:.0f}" if float(x).is_integer() and abs(x) < 1e6 else f"{x:.3g}"


class Table:
    """Rows of cells under named columns; a column of numbers has its decimal points below each other.

    Parameters
    ----------
    columns : str
        The headings.

    Examples
    --------
    >>> table = Table("what", "error")
    >>> table.row("query", 12.5)
    >>> table.row("key", 0.25)
    >>> print(table)
    what   error
    query  12.5
    key     0.25
    """

    def __init__(self, *columns: str) -> None:
        self.columns = columns
        self.rows: list[tuple[str, ...]] = []
        self.styles: list[str] = []

    def row(self, *cells: Any, style: str = "") -> None:
        """Add one row; None is an empty cell, `style` is one of rich ("red", "bold green", ...)."""
        if len(cells) != len(self.columns):
            raise ValueError(f"the table has {len(self.columns)} columns, the row {len(cells)} cells")
        self.rows.append(tuple("" if c is None else number(c) if isinstance(c, float) else str(c) for c in cells))
        self.styles.append(style)

    def lines(self, width: int | None = None) -> list[str]:
        """The heading and the rows, without trailing blanks; with `width`, longer lines end in an ellipsis."""
        columns = [_aligned(heading, [row[i] for row in self.rows]) for i, heading in enumerate(self.columns)]
        return [_cut("  ".join(cells).rstrip(), width) for cells in zip(*columns, strict=True)]

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def print(self, file: TextIO | None = None, *, wrap: bool = False) -> None:
        """Write to a file, standard output by default. Where that is a terminal, lines are cut to its width, or the last column wraps."""
        out = sys.stdout if file is None else file
        width, styles = _width(out), ["bold", *self.styles]
        if wrap and width is not None and max(map(len, self.lines())) > width:
            rows = list(self.wrapped(width))
            _write(out, [line for lines in rows for line in lines], [s for s, lines in zip(styles, rows, strict=True) for _ in lines])
        else:
            _write(out, self.lines(width), styles)

    def wrapped(self, width: int) -> Iterator[list[str]]:
        """The lines of each row, with the last column on several of them: beside the others, or below them where they leave no room."""
        columns = [_aligned(heading, [row[i] for row in self.rows]) for i, heading in enumerate(self.columns[:-1])]
        texts = [self.columns[-1], *(row[-1] for row in self.rows)]
        least = max(LEAST, *(len(word) for text in texts for word in text.split()))
        for cells, text in zip(zip(*columns, strict=True), texts, strict=True):
            beside = f"{'  '.join(cells)}  "
            if width - len(beside) >= least:
                first, *more = textwrap.wrap(text, width - len(beside), break_on_hyphens=False) or [""]
                yield [f"{beside}{first}".rstrip(), *(" " * len(beside) + line for line in more)]
            else:
                below = textwrap.wrap(text, max(width - 4, 1), break_on_hyphens=False)
                yield [_cut(beside.rstrip(), width), *(f"    {line}" for line in below)]


class Lines:
    """A table that is printed while it grows: the width of each column is known beforehand, from its heading and its format.

    Parameters
    ----------
    columns : dict of str to str
        The headings, and how the numbers below them are formatted.
    file : text file, optional
        Where to write; standard output by default.

    Examples
    --------
    >>> import sys
    >>> lines = Lines({"step": "4d", "loss": "8.4f"}, sys.stdout)
    step      loss
    >>> lines.row(1, 12.5)
       1   12.5000
    """

    def __init__(self, columns: Mapping[str, str], file: TextIO | None = None) -> None:
        self.out = sys.stdout if file is None else file
        self.formats = list(columns.values())
        self.widths = [max(len(heading), len(format(0, spec))) for heading, spec in columns.items()]
        self._print(list(columns), "bold")

    def row(self, *cells: float) -> None:
        """Print one row."""
        self._print([format(x, spec) for x, spec in zip(cells, self.formats, strict=True)])

    def _print(self, cells: list[str], style: str = "") -> None:
        line = "  ".join(cell.rjust(width) for cell, width in zip(cells, self.widths, strict=True))
        _write(self.out, [_cut(line, _width(self.out))], [style])
        self.out.flush()


def _write(out: TextIO, lines: list[str], styles: list[str]) -> None:
    """Print lines, in colours where somebody sees them."""
    if not is_coloured(out):
        out.write("\n".join(lines) + "\n")
        return
    from rich.console import Console  # noqa: PLC0415  # an extra
    from rich.text import Text  # noqa: PLC0415

    console = Console(file=out)
    for line, style in zip(lines, styles, strict=True):
        console.print(Text(line, style), soft_wrap=True)


def _width(out: TextIO) -> int | None:
    return shutil.get_terminal_size().columns if out.isatty() else None


def _cut(line: str, width: int | None) -> str:
    return line if width is None or len(line) <= width else line[: width - 1] + "…"


def _aligned(heading: str, cells: list[str]) -> list[str]:
    """The cells of one column at one width."""
    filled = [c for c in cells if c]
    if not filled or not all(NUMBER.fullmatch(c) for c in filled):
        width = max(map(len, [heading, *cells]))
        return [c.ljust(width) for c in (heading, *cells)]
    whole = [re.match(r"[+-]?\d*", c) for c in cells]
    before = [m.end() if m and m.end() else len(c) for m, c in zip(whole, cells, strict=True)]
    left = max(before)
    shifted = [" " * (left - n) + c for n, c in zip(before, cells, strict=True)]
    width = max(map(len, [heading, *shifted]))
    body = max(map(len, shifted))
    return [heading.rjust(width), *(" " * (width - body) + c.ljust(body) for c in shifted)]


def progress(items: Iterable[T], total: int, description: str = "") -> Iterator[T]:
    """The items, with a bar on standard error while they are worked through, where a person looks on."""
    if not is_coloured(sys.stderr):
        yield from items
        return
    from rich.console import Console  # noqa: PLC0415  # an extra
    from rich.progress import track  # noqa: PLC0415

    yield from track(items, description, total, console=Console(stderr=True), transient=True)
