"""Blocks of numbers in and out of a thread's memory: so many positions, or channels, of so many rows.

Positions of all examples count as one sequence, of which some lie one after another in memory, and the rest in the next example.
Nothing outside is read or written, other than by `tiles`, whose whole registers need room: the last register of a row overlaps
the one before.
"""

from __future__ import annotations

from typing import Any

from refattn_numba.cpu.jit import compiled
from refattn_numba.cpu.simd import lanes_of, load, store, transpose
from refattn_numba.cpu.sizes import smaller


@compiled
def copy(source: Any, step: int, rows: int, size: int, out: Any, out_step: int) -> None:
    """`size` numbers of each row."""
    lanes = lanes_of(out)
    if size < lanes:
        for r in range(rows):
            for i in range(size):
                out[r * out_step + i] = source[r * step + i]
        return
    last = size - lanes
    for r in range(rows):
        for i in range(0, last, lanes):
            store(out, r * out_step + i, load(source, r * step + i))
        store(out, r * out_step + last, load(source, r * step + last))


@compiled
def place_of(position: int, example: int, positions: int) -> int:
    """Where a channel's number at a position of all examples stands."""
    return position // positions * example + position % positions


@compiled
def gather(source: Any, example: int, positions: int, first: int, count: int, rows: int, out: Any, out_step: int) -> None:
    """To each row of a block, `count` positions of one channel; `source` has `positions` for each, and examples are `example` apart."""
    done = 0
    while done < count:
        run = smaller(positions - (first + done) % positions, count - done)
        copy(source + place_of(first + done, example, positions), positions, rows, run, out + done, out_step)
        done += run


@compiled
def scatter(source: Any, step: int, rows: int, first: int, count: int, out: Any, example: int, positions: int) -> None:
    """The other way."""
    done = 0
    while done < count:
        run = smaller(positions - (first + done) % positions, count - done)
        copy(source + done, step, rows, run, out + place_of(first + done, example, positions), positions)
        done += run


@compiled
def turn(source: Any, step: int, rows: int, size: int, out: Any, out_step: int) -> None:
    """The transpose of a block, by whole squares of lanes: rows and sizes are rounded up in both."""
    lanes = lanes_of(out)
    for r in range(0, rows, lanes):
        for i in range(0, size, lanes):
            transpose(source + (r * step + i), step, out + (i * out_step + r), out_step)
