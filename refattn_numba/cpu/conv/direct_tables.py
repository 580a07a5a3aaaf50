"""Which taps each position reads: the tables of the direct method, for its kernels.

A position of the output of "correlate" reads x at ``stride * i + dilation * t - before``, for the taps t where that lies inside. A
position of that of "spread", ``i = residue + stride * j - before``, reads dy at ``j - (dilation * t - residue) / stride``, for the taps
where that is a whole number and lies inside. Both are ``pace * j + offset[t]`` along each axis, for j of a progression; positions that
read the same taps of a *group* are a *class*, and what stands in between two bounds of taps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np

from refattn._core import Integers
from refattn_numba.cpu.conv.problem import AXES, Axes, Linear, Problem

Progression: TypeAlias = tuple[int, int, int, int, int, list[tuple[int, int]]]
"""First position, step, count, pace, size of the source, and the offset of each tap."""

CLASS = ("first", "step", "count", "source", "pace", "begin", "end")
"""Of an axis: positions ``first + step * j`` for ``j < count`` read ``source + pace * j`` plus the offsets of taps begin to end."""


class Tables(NamedTuple):
    """For the three axes, one after another.

    Attributes
    ----------
    classes : int array, shape (classes, 7)
        As `CLASS` says.
    taps : int array, shape (taps, 2)
        Tap, and offset in the source.
    begin : tuple of int
        Where the classes of each axis begin, and the end of the last one's.
    cuts : int array
        Likewise for each group of taps.
    groups : tuple of int
        How many each axis has.
    """

    classes: Integers
    taps: Integers
    begin: tuple[int, ...]
    cuts: Integers
    groups: Axes


def tables(problem: Problem, face: Linear, together: Axes | None = None) -> Tables:
    """Of an output, or of the gradient of an input, where so many taps of each axis make a group that has its own classes; or all do."""
    if together is None:
        d, h, w = problem.kernel
        together = max(1, d), max(1, h), max(1, w)
    return _tables(problem.size, problem.kernel, problem.out, problem.stride, problem.dilation, problem.before, face, together)


def inside(problem: Problem) -> float:
    """Which part of all pairs of an output position and a tap does not fall on padding."""
    found, part = tables(problem, "correlate"), 1.0
    for (low, high), n, k in zip(itertools.pairwise(found.begin), problem.out, problem.kernel, strict=True):
        rows = dict(zip(CLASS, found.classes[low:high].T, strict=True))
        part *= float((rows["count"] * (rows["end"] - rows["begin"])).sum()) / max(1, n * k)
    return part


@lru_cache(maxsize=256)
def _tables(size: Any, kernel: Any, out: Any, stride: Any, dilation: Any, before: Any, face: Linear, together: Axes) -> Tables:
    classes: list[tuple[int, ...]] = []
    taps: list[tuple[int, int]] = []
    cuts, groups = [0], list[int]()
    for axis in range(AXES):
        n, k, o, s, d, b = (x[axis] for x in (size, kernel, out, stride, dilation, before))
        for first in range(0, k, together[axis]):
            for begin, step, count, pace, length, offsets in (
                _correlated(n, k, o, s, d, b) if face == "correlate" else _spread(n, k, o, s, d, b)
            ):
                grouped = [(t, offset) for t, offset in offsets if first <= t < first + together[axis]]
                for row, found in _classes(begin, step, count, pace, length, grouped):
                    classes.append((*row, len(taps), len(taps) + len(found)))
                    taps += found
            cuts.append(len(classes))
        groups.append(len(cuts) - 1 - sum(groups))
    begins = [cuts[sum(groups[:axis])] for axis in range(AXES + 1)]
    rows = np.array(classes, np.int64).reshape(-1, len(CLASS))
    return Tables(rows, np.array(taps, np.int64).reshape(-1, 2), tuple(begins), np.array(cuts, np.int64), cast("Axes", tuple(groups)))


def _correlated(n: int, k: int, o: int, s: int, d: int, b: int) -> Iterator[Progression]:
    yield 0, 1, o, s, n, [(t, d * t - b) for t in range(k)]


def _spread(n: int, k: int, o: int, s: int, d: int, b: int) -> Iterator[Progression]:
    for first in range(min(s, n)):
        offsets = [(t, (first + b - d * t) // s) for t in range(k) if (first + b - d * t) % s == 0]
        yield first, s, -(-(n - first) // s), 1, o, offsets


def _classes(
    first: int, step: int, count: int, pace: int, size: int, offsets: list[tuple[int, int]]
) -> Iterator[tuple[tuple[int, ...], list[tuple[int, int]]]]:
    """The parts of a progression that read the same taps, if any: tap t is inside for j between two bounds."""
    bounds = {t: (-(o // pace), -((o - size) // pace)) for t, o in offsets}
    cuts = sorted({0, count, *(min(max(x, 0), count) for pair in bounds.values() for x in pair)})
    for low, high in itertools.pairwise(cuts):
        found = [(t, o) for t, o in offsets if bounds[t][0] <= low < bounds[t][1]]
        if found:
            yield (first + low * step, step, high - low, pace * low, pace), found
