"""Where the taps of a depthwise convolution, or of the gradient of its input, find their numbers: one description for both.

Along an axis, outputs whose numbers are alike modulo `step_out` make a phase, and have the same taps. Output ``r + step_out * v`` of
phase r reads the inputs ``place + step_in * v`` of its taps, where these exist.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple, cast

import numpy as np

from refattn._core import Integers
from refattn_numba.cpu.conv.problem import AXES, Linear, Problem
from refattn_numba.cpu.conv.windows import LENGTHS, RUN

PHASE = 2 * AXES + 2 + len(LENGTHS)  # integers of a phase
COUNTS = 2 * AXES + 2  # the first of those that say how many runs there are of each length


class Phase(NamedTuple):
    """How many outputs, and the taps ``(tap, place)`` by place."""

    outputs: int
    taps: tuple[tuple[int, int], ...]


class Axis(NamedTuple):
    """One axis.

    Attributes
    ----------
    inputs, outputs, step_in, step_out : int
        Sizes, and the steps above.
    lowest, grid : int
        Inputs from `lowest` on, of which those with the same remainder modulo `step_in` are put side by side, make `grid` places.
    phases : tuple of Phase
        By r.
    """

    inputs: int
    outputs: int
    step_in: int
    step_out: int
    lowest: int
    grid: int
    phases: tuple[Phase, ...]

    def of_band(self, outputs: int) -> Axis:
        """With as many places as that many outputs of each phase read."""
        reach = max(((place - self.lowest) // self.step_in for phase in self.phases for _, place in phase.taps), default=0)
        return self._replace(grid=min(self.grid, max(outputs, 1) + reach))


class Planes(NamedTuple):
    """Tables for padded copies of planes, or of bands of rows of them.

    Attributes
    ----------
    runs, phases : array
        Of `windows`; and for each phase of the three axes r, count, r, count, r, count, its first and end run, and how many of its runs
        have each of the `LENGTHS`.
    grid : (int, int, int)
        Places of a copy along each axis; there are as many copies as remainders.
    axes : (Axis, Axis, Axis)
        What the tables are made of.
    plane, room : int
        Numbers in a copy, and at most in what is computed of one phase.
    """

    runs: Integers
    phases: Integers
    grid: tuple[int, int, int]
    axes: tuple[Axis, Axis, Axis]
    plane: int
    room: int


def axis_of(problem: Problem, face: Linear, axis: int) -> Axis:
    """One of the three."""
    size, kernel, out, stride, gap, before = (
        getattr(problem, name)[axis] for name in ("size", "kernel", "out", "stride", "dilation", "before")
    )
    if face == "correlate":
        places = [(t, gap * t - before) for t in range(kernel)]
        return _axis(size, out, stride, 1, [Phase(out, tuple(places))])
    phases = []
    for r in range(min(stride, size)):
        places = [(t, (r + before - gap * t) // stride) for t in reversed(range(kernel)) if (r + before - gap * t) % stride == 0]
        phases.append(Phase(-(-(size - r) // stride), tuple(places)))
    return _axis(out, size, 1, stride, phases)


def _axis(inputs: int, outputs: int, step_in: int, step_out: int, phases: list[Phase]) -> Axis:
    lowest = min((place for phase in phases for _, place in phase.taps), default=0)
    grid = max((p.outputs + (place - lowest) // step_in for p in phases for _, place in p.taps), default=0)
    return Axis(inputs, outputs, step_in, step_out, lowest, max(grid, *(p.outputs for p in phases), 1), tuple(phases))


def axes_of(problem: Problem, face: Linear) -> tuple[Axis, Axis, Axis]:
    """All three."""
    return axis_of(problem, face, 0), axis_of(problem, face, 1), axis_of(problem, face, 2)


def _grouped(places: list[tuple[int, int]]) -> list[tuple[int, list[int]]]:
    """Taps ``(tap, place)`` whose places follow one another: the first place and the taps."""
    made: list[tuple[int, list[int]]] = []
    for tap, place in places:
        if made and place == made[-1][0] + len(made[-1][1]):
            made[-1][1].append(tap)
        else:
            made.append((place, [tap]))
    return made


def _table(rows: list[tuple[int, ...]], width: int) -> Integers:
    return np.array(rows, np.int64).reshape(-1, width)


def split(place: int, taps: list[int]) -> Iterator[tuple[int, list[int]]]:
    """Neighbours in groups of the lengths that there are."""
    while taps:
        length = next(n for n in LENGTHS if n <= len(taps))
        yield place, taps[:length]
        place, taps = place + length, taps[length:]


@lru_cache(256)
def planes_of(problem: Problem, face: Linear, width: int = 1, band: int | None = None, pitch: int | None = None) -> Planes:
    """For copies of planes whose numbers are `width` in one; of `band` rows of each phase at a time, or of all.

    With a `pitch`, rows have as many places whatever is read of them.
    """
    axes, kernel, inputs = axes_of(problem, face), problem.kernel, problem.o if face == "spread" else 1
    if band is not None:
        axes = axes[0], axes[1].of_band(band), axes[2]
    if pitch is not None:
        axes = axes[0], axes[1], axes[2]._replace(grid=pitch)
    grid, steps = tuple(a.grid for a in axes), tuple(a.step_in for a in axes)
    cell = math.prod(grid)
    plane, taps = cell * math.prod(steps), math.prod(kernel)

    def cells(axis: int, taps: tuple[tuple[int, int], ...]) -> list[tuple[int, int, int]]:
        """Each tap, its remainder and its place on the grid."""
        return sorted(
            ((t, (p - axes[axis].lowest) % steps[axis], (p - axes[axis].lowest) // steps[axis]) for t, p in taps),
            key=lambda found: found[1:],
        )

    runs: list[tuple[int, ...]] = []
    phases: list[tuple[int, ...]] = []
    for three in itertools.product(*(range(len(a.phases)) for a in axes)):
        parts = [a.phases[r] for a, r in zip(axes, three, strict=True)]
        found, made = [cells(axis, p.taps) for axis, p in enumerate(parts)], []
        for j, (t0, r0, p0), (t2, r2, p2) in itertools.product(range(inputs), found[0], found[2]):
            for r1 in range(steps[1]):
                for p1, columns in (part for p, ts in _grouped([(t, p) for t, r, p in found[1] if r == r1]) for part in split(p, ts)):
                    at = j * plane + ((r0 * steps[1] + r1) * steps[2] + r2) * cell + (p0 * grid[1] + p1) * grid[2] + p2
                    first, step = j * taps + (t0 * kernel[1] + columns[0]) * kernel[2] + t2, (columns[-1] - columns[0]) * kernel[2]
                    made.append((at * width, len(columns), first, step // max(len(columns) - 1, 1)))
        made.sort(key=lambda run: -run[1])
        pairs = (number for r, p in zip(three, parts, strict=True) for number in (r, p.outputs))
        counts = (sum(run[1] == length for run in made) for length in LENGTHS)
        phases.append((*pairs, len(runs), len(runs) + len(made), *counts))
        runs += made
    room = max((p[3] * grid[2] + p[5] for p in phases), default=0)
    return Planes(_table(runs, RUN), _table(phases, PHASE), cast("tuple[int, int, int]", grid), axes, plane * width, room)
