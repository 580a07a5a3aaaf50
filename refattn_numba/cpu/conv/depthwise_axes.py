"""Where the taps of a depthwise convolution, or of the gradient of its input, find their numbers: one description for both.

Along an axis, outputs whose numbers are alike modulo `step_out` make a phase, and have the same taps. Output ``r + step_out * v`` of
phase r reads the inputs ``place + step_in * v`` of its taps, where these exist.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from refattn._core import Integers
from refattn_numba.cpu.conv.problem import AXES, Linear, Problem


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


class Planes(NamedTuple):
    """Tables for padded copies of planes.

    Attributes
    ----------
    runs, phases : array
        Of `windows`; and for each phase of the three axes r, count, r, count, r, count, and its first and end run.
    order : array
        Which tap each of the numbers is, that runs count.
    plane, room : int
        Numbers in a copy, and at most in what is computed of one phase.
    """

    runs: Integers
    phases: Integers
    order: Integers
    plane: int
    room: int


class Pixels(NamedTuple):
    """Tables for images that are read where they lie.

    Attributes
    ----------
    ends, taps : tuple of array
        For axes 0 and 1: where the taps of each phase end, and ``(tap, place)``.
    phases : array
        For axis 2: count, the first pixel that has all taps and the one behind the last, and the first and the end of its groups.
    groups : array
        Taps with neighbouring pixels: place, number of taps, and the number of the first.
    order : array
        As above.
    """

    ends: tuple[Integers, Integers]
    taps: tuple[Integers, Integers]
    phases: Integers
    groups: Integers
    order: Integers


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


@lru_cache(256)
def planes_of(problem: Problem, face: Linear) -> Planes:
    """For lanes along the last axis: rows of runs are rows of the plane."""
    axes, kernel, inputs = axes_of(problem, face), problem.kernel, problem.o if face == "spread" else 1
    grid, steps = tuple(a.grid for a in axes), tuple(a.step_in for a in axes)
    cell = int(np.prod(grid))
    plane, taps = cell * int(np.prod(steps)), int(np.prod(kernel))

    def cells(axis: int, taps: tuple[tuple[int, int], ...]) -> list[tuple[int, int, int]]:
        """Each tap, its remainder and its place on the grid."""
        return sorted(
            ((t, (p - axes[axis].lowest) % steps[axis], (p - axes[axis].lowest) // steps[axis]) for t, p in taps),
            key=lambda found: found[1:],
        )

    runs: list[tuple[int, ...]] = []
    phases: list[tuple[int, ...]] = []
    order: list[int] = []
    for three in itertools.product(*(range(len(a.phases)) for a in axes)):
        parts = [a.phases[r] for a, r in zip(axes, three, strict=True)]
        first, found = len(runs), [cells(axis, p.taps) for axis, p in enumerate(parts)]
        for j, (t0, r0, p0), (t2, r2, p2) in itertools.product(range(inputs), found[0], found[2]):
            for r1 in range(steps[1]):
                for p1, columns in _grouped([(t, p) for t, r, p in found[1] if r == r1]):
                    at = j * plane + ((r0 * steps[1] + r1) * steps[2] + r2) * cell + (p0 * grid[1] + p1) * grid[2] + p2
                    runs.append((at, len(columns), len(order)))
                    order += [j * taps + (t0 * kernel[1] + t1) * kernel[2] + t2 for t1 in columns]
        pairs = (number for r, p in zip(three, parts, strict=True) for number in (r, p.outputs))
        phases.append((*pairs, first, len(runs)))
    room = max((p[3] * grid[2] + p[5] for p in phases), default=0)
    return Planes(_table(runs, 3), _table(phases, 2 * AXES + 2), np.array(order, np.int64), plane, room)


@lru_cache(256)
def pixels_of(problem: Problem, face: Linear) -> Pixels:
    """For lanes over channels: rows of runs are pixels of one row."""
    axes, kernel = axes_of(problem, face), problem.kernel
    ends = [np.cumsum([0] + [len(p.taps) for p in a.phases]) for a in axes[:2]]
    taps = [_table([found for p in a.phases for found in p.taps], 2) for a in axes[:2]]
    last, groups, phases = axes[2], [], []
    order: list[int] = []
    for phase in last.phases:
        low, high = (phase.taps[0][1], phase.taps[-1][1]) if phase.taps else (0, 0)
        begin = min(max(0, -(low // last.step_in)), phase.outputs)
        end = phase.outputs if not phase.taps else min(max((last.inputs - 1 - high) // last.step_in + 1, begin), phase.outputs)
        first, at = len(groups), len(order)
        together = len({p % last.step_in for _, p in phase.taps}) <= 1
        found = _grouped([(t, p // last.step_in) for t, p in phase.taps]) if together else [(0, [t]) for t, _ in phase.taps]
        for _, columns in found:
            groups.append((phase.taps[len(order) - at][1], len(columns), len(order)))
            order += columns
        phases.append((phase.outputs, begin, end, first, len(groups)))
    lines = np.arange(kernel[0] * kernel[1])[:, None] * kernel[2] + np.array(order, np.int64)
    return Pixels((ends[0], ends[1]), (taps[0], taps[1]), _table(phases, 5), _table(groups, 3), lines.reshape(-1))
