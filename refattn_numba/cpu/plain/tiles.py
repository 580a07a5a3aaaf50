"""Tiles of matrices, and their products.

A *lane tile* has `TILE` columns, which vector instructions run along; rows are independent of one another. Memory beyond
a tile's own rows and columns is set to zero up to `LINES` or `LANES`, so that products need no case for a ragged end.
"""

from __future__ import annotations

import numpy as np

from refattn._core import Array
from refattn_numba.cpu.jit import compiled, reordered
from refattn_numba.cpu.sizes import ceil_to, smaller

TILE = 64
LINES = 4  # rows that a product takes at a time
LANES = 16  # columns that it takes at a time: one register of float32


@compiled
def load_lines(source: Array, first: int, count: int, tile: Array) -> bool:
    """Copy ``source[first : first + count]`` to the rows of `tile`; whether all of it is finite."""
    finite = True
    size = source.shape[1]
    for i in range(count):
        row, line = source[first + i], tile[i]
        for d in range(size):
            line[d] = row[d]
            finite &= abs(row[d]) < np.inf
        line[size:] = 0
    tile[count : ceil_to(count, LINES)] = 0
    return finite


@compiled
def load_lanes(source: Array, first: int, count: int, factors: Array, tile: Array) -> None:
    """Copy ``source[first : first + count]``, each row times its factor, to the columns of `tile`."""
    width = ceil_to(count, LANES)
    for i in range(count):
        row, factor = source[first + i], factors[i]
        for d in range(source.shape[1]):
            tile[d, i] = row[d] * factor
    tile[:, count:width] = 0
    tile[source.shape[1] :, :count] = 0


@compiled
def load_panels(source: Array, first: int, count: int, factors: Array, panels: Array) -> bool:
    """Copy ``source[first : first + count]``, each row times its factor, to the rows of lane tiles side by side."""
    finite = True
    size = source.shape[1]
    for p in range(panels.shape[0]):
        panel, begin = panels[p], p * TILE
        width = smaller(TILE, size - begin)
        for i in range(count):
            row, line, factor = source[first + i, begin : begin + width], panel[i], factors[i]
            for d in range(width):
                line[d] = row[d] * factor
                finite &= abs(line[d]) < np.inf
            line[width : ceil_to(width, LANES)] = 0
        panel[count : ceil_to(count, LINES)] = 0
    return finite


@reordered
def _multiply_flat(a: Array, line_step: int, depth_step: int, b: Array, c: Array, lines: int, depth: int, width: int) -> None:
    """`multiply` in blocks of 4 by 4; constant distances between the rows of b and c keep c's in registers."""
    for i in range(0, lines, LINES):
        out = c[i * TILE : (i + LINES) * TILE]
        for lane in range(LINES * TILE):
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
            rows = b[k * TILE : (k + LINES) * TILE]
            for lane in range(width):
                b0, b1, b2, b3 = rows[lane], rows[TILE + lane], rows[2 * TILE + lane], rows[3 * TILE + lane]
                out[lane] += a00 * b0 + a01 * b1 + a02 * b2 + a03 * b3
                out[TILE + lane] += a10 * b0 + a11 * b1 + a12 * b2 + a13 * b3
                out[2 * TILE + lane] += a20 * b0 + a21 * b1 + a22 * b2 + a23 * b3
                out[3 * TILE + lane] += a30 * b0 + a31 * b1 + a32 * b2 + a33 * b3


@compiled
def multiply(a: Array, transposed: bool, b: Array, c: Array, lines: int, depth: int, width: int) -> None:
    """``c[:lines, :width] = a @ b``, or ``a.T @ b``, over the first `depth` terms; b and c are lane tiles."""
    lines, depth, width = ceil_to(lines, LINES), ceil_to(depth, LINES), ceil_to(width, LANES)
    line_step, depth_step = (1, a.shape[1]) if transposed else (a.shape[1], 1)
    if width == TILE:
        _multiply_flat(a.reshape(a.size), line_step, depth_step, b.reshape(b.size), c.reshape(c.size), lines, depth, TILE)
    else:
        _multiply_flat(a.reshape(a.size), line_step, depth_step, b.reshape(b.size), c.reshape(c.size), lines, depth, width)


@compiled
def multiply_lanes_allowed(a: Array, logits: Array, b: Array, c: Array, lines: int, depth: int, width: int) -> None:
    """``c = a.T @ b`` without the pairs ``b[k, lane]`` that are masked, for an a that is not finite."""
    for i in range(lines):
        for lane in range(width):
            total = a.dtype.type(0)
            for k in range(depth):
                if logits[k, lane] != -np.inf:
                    total += a[k, i] * b[k, lane]
            c[i, lane] = total


@compiled
def multiply_lines_allowed(a: Array, logits: Array, b: Array, c: Array, lines: int, depth: int, width: int) -> None:
    """``c = a @ b`` without the pairs ``a[i, k]`` that are masked, for a b that is not finite."""
    for i in range(lines):
        for lane in range(width):
            total = a.dtype.type(0)
            for k in range(depth):
                if logits[i, k] != -np.inf:
                    total += a[i, k] * b[k, lane]
            c[i, lane] = total


@compiled
def task_of(turn: int, share: int, shares: int) -> int:
    """The task that a share takes in its turn: in order, then in reverse, so that costs which grow with the task come out even."""
    return turn * shares + (share if turn % 2 == 0 else shares - 1 - share)
