"""Matrices of a scan: rows of whole registers, which zeros fill, with room below for what products and transposes write there.

A matrix is a pointer and the distance between its rows, its step; products are of the lanes that a step has, whatever part of
them is in use.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn_numba.cpu.jit import compiled
from refattn_numba.cpu.products import add_product, product
from refattn_numba.cpu.simd import filled, lanes_of, load, multiply_add, store, total_of, transpose
from refattn_numba.cpu.sizes import ceil_to
from refattn_numba.cpu.tiles import fill

# distances of neighbours and of none: for each of Python's numbers, Numba compiles what it is given to once more
NEXT: Any = np.int64(1)
HERE: Any = np.int64(0)


@compiled
def multiply(b: Any, b_step: int, a: Any, lines: int, depth: int, c: Any, step: int) -> None:
    """``c = b @ a``, of which b has `lines` rows of `depth` numbers; the step is that of a and c."""
    product(a, step, b, b_step, 1, lines, depth, c, step, step, c)


@compiled
def add_multiplied(b: Any, line: int, along: int, a: Any, lines: int, depth: int, c: Any, step: int) -> None:
    """``c += b @ a``; with ``line = 1`` and the step of b as `along`, ``c += b.T @ a``."""
    add_product(a, step, b, line, along, lines, depth, c, step, step, c)


@compiled
def copy(x: Any, y: Any, size: int) -> None:
    """Whole registers."""
    for i in range(0, size, lanes_of(x)):
        store(y, i, load(x, i))


@compiled
def scale_rows(x: Any, step: int, rows: int, factors: Any) -> None:
    """Each row times its factor, in place."""
    for r in range(rows):
        by = filled(x, factors[r])
        for d in range(r * step, (r + 1) * step, lanes_of(x)):
            store(x, d, load(x, d) * by)


@compiled
def turn(x: Any, step: int, rows: int, columns: int, y: Any, y_step: int) -> None:
    """``y = x.T``, of whole squares: what stands below the rows of x becomes zero."""
    lanes = lanes_of(x)
    fill(x + rows * step, (ceil_to(rows, lanes) - rows) * step, 0.0)
    for r in range(0, rows, lanes):
        for d in range(0, columns, lanes):
            transpose(x + (r * step + d), step, y + (d * y_step + r), y_step)


@compiled
def inner(x: Any, y: Any, size: int) -> Any:
    """The inner product of two rows of whole registers."""
    total = filled(x, 0.0)
    for d in range(0, size, lanes_of(x)):
        total = multiply_add(load(x, d), load(y, d), total)
    return total_of(total)
