"""Tiles: a few rows of a matrix, transposed, so that vectors run along the rows' index.

::

    a matrix                     its tile, `tile_of` lanes wide
    row 0: a0 a1 a2 ...          line 0: a0 b0 c0 ...
    row 1: b0 b1 b2 ...          line 1: a1 b1 c1 ...
    row 2: c0 c1 c2 ...          line 2: a2 b2 c2 ...

Arrays are pointers to their first element; ``step`` is the distance between rows. Lanes of a tile beyond its rows hold
numbers that nothing reads.
"""

from __future__ import annotations

from typing import Any

from refattn_numba.cpu.jit import compiled
from refattn_numba.cpu.products import SPARE
from refattn_numba.cpu.simd import filled, get, lanes_of, load, multiply_add, prefetch, put, select, store, tile_of, total_of, transpose
from refattn_numba.cpu.sizes import ceil_to, smaller


@compiled
def with_spare_lines(lines: int) -> int:
    """Room for what products write beyond the last line."""
    return ceil_to(lines, SPARE)


@compiled
def load_tile(source: Any, step: int, rows: int, size: int, factors: Any, tile: Any) -> None:
    """Rows, each times its factor, to a tile."""
    width, lanes = tile_of(tile), lanes_of(tile)
    for r in range(0, rows, lanes):
        whole = 0
        if r + lanes <= rows:
            whole = size // lanes * lanes
            by = load(factors, r)
            for d in range(0, whole, lanes):
                transpose(source + (r * step + d), step, tile + (d * width + r), width)
                for line in range(d, d + lanes):
                    store(tile, line * width + r, load(tile, line * width + r) * by)
        for row in range(r, smaller(r + lanes, rows)):
            for d in range(whole, size):
                tile[d * width + row] = source[row * step + d] * factors[row]


@compiled
def store_tile(tile: Any, rows: int, size: int, factors: Any, add: bool, out: Any, step: int) -> None:
    """The transposed tile, each row times its factor, to rows or added to rows; overwrites the tile."""
    width, lanes = tile_of(tile), lanes_of(tile)
    for r in range(0, rows, lanes):
        whole = 0
        if r + lanes <= rows:
            whole = size // lanes * lanes
            by = load(factors, r)
            for d in range(0, whole, lanes):
                square = tile + (d * width + r)
                for line in range(0, lanes * width, width):
                    store(square, line, load(square, line) * by)
                transpose(square, width, square, width)
                for row in range(lanes):
                    numbers, at = load(square, row * width), (r + row) * step + d
                    if add:
                        numbers = numbers + load(out, at)
                    store(out, at, numbers)
        for row in range(r, smaller(r + lanes, rows)):
            for d in range(whole, size):
                number, at = tile[d * width + row] * factors[row], row * step + d
                put(out, at, get(out, at) + number if add else number)


@compiled
def load_rows(source: Any, step: int, rows: int, size: int, factors: Any, out: Any, out_step: int) -> None:
    """Rows, each times its factor, to rows of whole registers, which zeros fill."""
    lanes = lanes_of(out)
    whole = size // lanes * lanes
    for r in range(rows):
        by = filled(out, factors[r])
        for d in range(0, whole, lanes):
            store(out, r * out_step + d, load(source, r * step + d) * by)
        for d in range(whole, size):
            out[r * out_step + d] = get(source, r * step + d) * factors[r]
        for d in range(size, out_step):
            out[r * out_step + d] = 0


@compiled
def store_rows(source: Any, step: int, rows: int, size: int, factor: float, out: Any, out_step: int) -> None:
    """The first `size` numbers of rows of whole registers, times a factor."""
    lanes, by = lanes_of(out), filled(out, factor)
    whole = size // lanes * lanes
    for r in range(rows):
        for d in range(0, whole, lanes):
            store(out, r * out_step + d, load(source, r * step + d) * by)
        for d in range(whole, size):
            out[r * out_step + d] = source[r * step + d] * factor


@compiled
def fill(out: Any, size: int, number: float) -> None:
    """Whole registers of one number."""
    for i in range(0, size, lanes_of(out)):
        store(out, i, filled(out, number))


@compiled
def scale_lines(tile: Any, lines: int, width: int, factors: Any) -> None:
    """Whole registers of lines, times a factor for each lane, in place."""
    step, lanes = tile_of(tile), lanes_of(tile)
    for r in range(0, width, lanes):
        by = load(factors, r)
        for i in range(r, lines * step, step):
            store(tile, i, load(tile, i) * by)


@compiled
def all_one(numbers: Any, size: int) -> bool:
    """Whether whole registers of numbers are 1."""
    lanes, one, zero = lanes_of(numbers), filled(numbers, 1.0), filled(numbers, 0.0)
    found = zero
    for i in range(0, size, lanes):
        found = found + select(load(numbers, i) == one, zero, one)
    return total_of(found) == 0


@compiled
def all_finite(source: Any, step: int, rows: int, size: int) -> bool:
    """Whether no element is NaN or infinite."""
    lanes, zero = lanes_of(source), filled(source, 0.0)
    whole, found, rest = size // lanes * lanes, zero, 0.0
    for r in range(rows):
        for d in range(0, whole, lanes):
            found = multiply_add(load(source, r * step + d), zero, found)
        for d in range(whole, size):
            rest += get(source, r * step + d) * 0.0
    return total_of(found) + rest == 0


@compiled
def read_ahead(source: Any, step: int, rows: int, size: int) -> None:
    """Begin to read rows that are needed soon: products read them across, which processors do not foresee."""
    for r in range(rows):
        for d in range(0, size, tile_of(source) // 4):  # a cache line is a quarter of a tile's
            prefetch(source, r * step + d)
