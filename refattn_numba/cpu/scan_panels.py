"""Matrices as panels: `PANEL` columns side by side in memory, which vector instructions run along, and their products.

A matrix of more columns is several panels, an array (panels, rows, `PANEL`). Rows are used up to a multiple of `LINES` and
columns up to a multiple of `LANES`; beyond the matrix's own they are zero, so that products need no case for a ragged end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from refattn._core import Array
from refattn_numba.cpu.jit import helper, reordered_helper

# NumPy's numbers: for each of Python's, Numba compiles what it is given to once more
PANEL: Any = np.int64(64)
LINES: Any = np.int64(4)  # rows that a product takes at a time
LANES: Any = np.int64(32)  # columns that it takes at a time
START: Any = np.int64(0)
NEXT: Any = np.int64(1)
NEW: Any = np.bool_(False)
MORE: Any = np.bool_(True)


def _marked(attribute: str) -> Any:
    """What a function calls, in its body, to give itself an attribute of LLVM's."""

    @intrinsic
    def mark(typing: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            builder.function.attributes.add(attribute)
            return context.get_dummy_value()

        return types.void(), build

    return mark


apart = _marked("noinline")  # never copied into callers, each of which would take that much longer to compile
copied = _marked("alwaysinline")  # always copied, to become better code where an argument is known


@helper
def least(a: Any, b: Any) -> Any:
    """``min``, which takes Numba a second to compile."""
    return a if a < b else b  # noqa: FURB136


@helper
def ceil_to(n: int, step: int) -> int:
    """The smallest multiple of `step` that holds n."""
    return (n + step - 1) // step * step


@helper
def panels(rows: int, columns: int, like: Array) -> Array:
    """Zeros for a matrix."""
    return np.zeros((ceil_to(columns, PANEL) // PANEL, ceil_to(rows, LINES), PANEL), like.dtype)


@helper
def load(source: Array, first: int, count: int, begin: int, factor: Any, x: Array) -> None:
    """``x = factor * source[first : first + count, begin:]``, as many columns as there are, or as x has room for."""
    apart()
    for p in range(x.shape[0]):
        at = begin + p * PANEL
        width = least(PANEL, source.shape[1] - at)
        for i in range(count):
            line, row = x[p, i], source[first + i, at : at + width]
            for lane in range(width):
                line[lane] = factor * row[lane]
            for lane in range(width, PANEL):
                line[lane] = 0
        clear(x, p, count)


@helper
def clear(x: Array, p: int, count: int) -> None:
    """Zero rows after the first `count`, as far as products read them."""
    for i in range(count, ceil_to(count, LINES)):
        for lane in range(PANEL):
            x[p, i, lane] = 0


@helper
def clear_all(x: Array) -> None:
    """Zero a matrix."""
    row = flat(x)
    for i in range(x.size):
        row[i] = 0


@helper
def copy(x: Array, y: Array) -> None:
    """``y = x``."""
    given, made = flat(x), flat(y)
    for i in range(x.size):
        made[i] = given[i]


@helper
def store(x: Array, target: Array, first: int, count: int, begin: int, factor: Any) -> None:
    """``target[first : first + count, begin:] = factor * x``, as many columns as there are, or as x has."""
    apart()
    for p in range(x.shape[0]):
        at = begin + p * PANEL
        width = least(PANEL, target.shape[1] - at)
        for i in range(count):
            line, row = x[p, i], target[first + i, at : at + width]
            for lane in range(width):
                row[lane] = factor * line[lane]


@helper
def transpose(x: Array, rows: int, columns: int, y: Array) -> None:
    """``y = x.T``."""
    apart()
    for p in range(x.shape[0]):
        begin = p * PANEL
        width = ceil_to(least(PANEL, columns - begin), LINES)
        for q in range(y.shape[0]):
            at, panel = q * PANEL, y[q, begin : begin + width]
            for i in range(0, least(PANEL, rows - at), LINES):
                row0, row1, row2, row3 = x[p, at + i], x[p, at + i + 1], x[p, at + i + 2], x[p, at + i + 3]
                for lane in range(width):
                    line = panel[lane, i : i + LINES]
                    line[0], line[1], line[2], line[3] = row0[lane], row1[lane], row2[lane], row3[lane]


@helper
def flat(x: Array) -> Array:
    """All numbers in a row."""
    return x.reshape(x.size)


@helper
def multiply(a: Array, b: Array, c: Array, lines: int, depth: int, columns: int, more: bool) -> None:
    """``c = a @ b``, or ``c += a @ b``, with as many lines, terms and columns as given."""
    for p in range(c.shape[0]):
        width = ceil_to(least(PANEL, columns - p * PANEL), LANES)
        for q in range(a.shape[0]):
            begin = q * PANEL
            terms = ceil_to(least(PANEL, depth - begin), LINES)
            add_product(
                flat(a[q]), PANEL, NEXT, flat(b[p, begin : begin + terms]), flat(c[p]), ceil_to(lines, LINES), terms, width, more or q > 0
            )


@helper
def multiply_transposed(a: Array, b: Array, c: Array, lines: int, depth: int, columns: int, more: bool) -> None:
    """``c = a.T @ b``, or ``c += a.T @ b``."""
    for p in range(c.shape[0]):
        width = ceil_to(least(PANEL, columns - p * PANEL), LANES)
        for q in range(a.shape[0]):
            begin = q * PANEL
            those = ceil_to(least(PANEL, lines - begin), LINES)
            add_product(flat(a[q]), NEXT, PANEL, flat(b[p]), flat(c[p, begin : begin + those]), those, ceil_to(depth, LINES), width, more)


@helper
def add_product(a: Array, line_step: int, depth_step: int, b: Array, c: Array, lines: int, depth: int, width: int, more: bool) -> None:
    """A product of single panels, each as all its numbers in a row; a known width becomes better code."""
    apart()
    if width == PANEL:
        _blocks(a, line_step, depth_step, b, c, lines, depth, PANEL, more)
    else:
        _blocks(a, line_step, depth_step, b, c, lines, depth, LANES, more)


@reordered_helper
def _blocks(a: Array, line_step: int, depth_step: int, b: Array, c: Array, lines: int, depth: int, width: int, more: bool) -> None:
    """Four lines and four terms at a time; constant distances between the rows of b and c keep c's in registers."""
    copied()
    for i in range(0, lines, LINES):
        out = c[i * PANEL : (i + LINES) * PANEL]
        if not more:
            for lane in range(LINES * PANEL):
                out[lane] = 0
        for k in range(0, depth, LINES):
            at = i * line_step + k * depth_step
            a00, a01, a02, a03 = a[at], a[at + depth_step], a[at + 2 * depth_step], a[at + 3 * depth_step]
            at += line_step
            a10, a11, a12, a13 = a[at], a[at + depth_step], a[at + 2 * depth_step], a[at + 3 * depth_step]
            at += line_step
            a20, a21, a22, a23 = a[at], a[at + depth_step], a[at + 2 * depth_step], a[at + 3 * depth_step]
            at += line_step
            a30, a31, a32, a33 = a[at], a[at + depth_step], a[at + 2 * depth_step], a[at + 3 * depth_step]
            rows = b[k * PANEL : (k + LINES) * PANEL]
            for lane in range(width):
                b0, b1, b2, b3 = rows[lane], rows[PANEL + lane], rows[2 * PANEL + lane], rows[3 * PANEL + lane]
                out[lane] += a00 * b0 + a01 * b1 + a02 * b2 + a03 * b3
                out[PANEL + lane] += a10 * b0 + a11 * b1 + a12 * b2 + a13 * b3
                out[2 * PANEL + lane] += a20 * b0 + a21 * b1 + a22 * b2 + a23 * b3
                out[3 * PANEL + lane] += a30 * b0 + a31 * b1 + a32 * b2 + a33 * b3
