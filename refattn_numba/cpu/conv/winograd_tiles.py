"""How Winograd's convolutions cut a problem, what its parts cost, and what kernels are told of them."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from refattn_numba.cpu.conv.problem import Axes, Face, Problem
from refattn_numba.cpu.conv.winograd_matrices import GROWTH, TAPS
from refattn_numba.cpu.instructions import HOST
from refattn_numba.cpu.products import REGISTERS

FIELDS = (
    "x", "y", "weight", "u", "v", "bias", "sums",
    "x_batch", "x_channel", "x_position", "x_d", "x_h", "x_w", "y_batch", "y_channel", "y_position", "y_d", "y_h", "y_w",
    "before_d", "before_h", "before_w", "m_d", "m_h", "m_w", "tiles_d", "tiles_h", "tiles_w",
    "groups", "c", "o", "taps", "points", "tiles", "panel", "panels", "is_flipped", "is_relu", "o_step", "c_step",
    "rows", "columns", "slabs_h", "slabs_w", "slabs", "block", "chunk", "slices", "slice_slabs", "slice_step",
    "c_block", "c_blocks", "store_block", "v_point", "v_tile", "m_point", "m_tile", "s_point", "sums_size",
    "at_dense", "at_slab", "at_one", "at_two", "at_v", "at_m", "at_u", "at_sums", "memory_size", "end_task",
)  # fmt: skip

WinogradCall = np.dtype([(name, np.int64) for name in FIELDS], align=True)

NEAR, FAR, ROOM = 24 * 2**10, 720 * 2**10, 1536 * 2**10
"""Bytes of a slab in the first cache, of a block of products in the second one, and of all that is used again and again there."""

LARGEST_GROWTH = GROWTH[4] ** 2
"""Of the bound of errors: what two axes of F(4, 3) have. With three axes that have 3 taps, one is F(4, 3) at most."""

FEW, LARGEST_GROWTH_OF_FEW = 8, GROWTH[4]
"""Products of a sum whose rounding errors do not outweigh those of the transforms, and the growth that these may have then."""


def lanes(dtype: Any) -> int:
    """Numbers of a register."""
    return HOST.register_bytes // np.dtype(dtype).itemsize


def up(n: int, step: int) -> int:
    """The smallest multiple of `step` that holds n."""
    return -(-n // step) * step


def points_of(m: int) -> int:
    """As in kernels."""
    return m + TAPS - 1 if m > 1 else 1


class Tiling(NamedTuple):
    """How the outputs of a problem are cut.

    Attributes
    ----------
    m, tiles : (int, int, int)
        Outputs of a tile, and tiles, along each axis.
    rows, columns : int
        Tiles of a slab.
    """

    m: Axes
    tiles: Axes
    rows: int
    columns: int

    @property
    def points(self) -> int:
        """Of a tile."""
        return math.prod(map(points_of, self.m))

    def slabs(self, batch: int) -> tuple[int, int, int]:
        """Down, across, and in all."""
        down, across = -(-self.tiles[1] // self.rows), -(-self.tiles[2] // self.columns)
        return down, across, batch * self.tiles[0] * down * across


def even(whole: int, most: int) -> int:
    """The size of parts of almost one size, none above `most`."""
    return -(-whole // -(-whole // max(1, min(most, whole))))


@functools.lru_cache(256)
def tiled(problem: Problem, m: Axes) -> Tiling:
    """Slabs that fit the first cache."""
    d, h, w = (-(-n // k) for n, k in zip(problem.out, m, strict=True))
    columns = even(w, 16)
    line = points_of(m[0]) * (columns * m[2] + 2) * HOST.register_bytes
    rows = even(h, max(1, min((NEAR // line - 2) // m[1], 64 // columns)))
    return Tiling(m, (d, h, w), rows, columns)


def mirrored(problem: Problem) -> Problem:
    """The convolution that computes the gradient of the input from the cotangent of the output."""
    before = tuple(k - 1 - b for k, b in zip(problem.kernel, problem.before, strict=True))
    return problem._replace(c=problem.o, o=problem.c, size=problem.out, out=problem.size, before=before)


@functools.cache
def allowed(kernel: Axes, largest: float) -> Sequence[Axes]:
    """Outputs of a tile along each axis whose bound of errors is not larger."""
    d, h, w = ((2, 4) if k == TAPS else (1,) for k in kernel)
    found = list(itertools.product(d, h, w))  # the smallest first
    return [m for m in found if math.prod(GROWTH[i] for i in m) <= largest] or found[:1]


def candidates(problem: Problem, face: Face) -> Sequence[Axes]:
    """Outputs of a tile along each axis, as the bound of errors allows, which is stricter where few products are summed."""
    terms = problem.batch * math.prod(problem.out) // 16 if face == "weight_gradient" else problem.c
    return allowed(problem.kernel, LARGEST_GROWTH if terms >= FEW else LARGEST_GROWTH_OF_FEW)


def seconds(problem: Problem, face: Face) -> float:
    """Of the best tile."""
    problem = mirrored(problem) if face == "spread" else problem
    return min(seconds_of(problem, face, m) for m in candidates(problem, face))


def seconds_of(problem: Problem, face: Face, m: Axes) -> float:
    """Products, transforms of both arrays, and of the weights.

    Rates are those of one thread of an Intel Xeon at 2.1 GHz with AVX-512, of multiplications and of numbers that are transformed, over
    1 to 8 examples of 16 to 512 channels and 7 to 56 positions along both axes, in the same minute as those of the direct method.
    """
    cut, width = tiled(problem, m), lanes(problem.dtype)
    tiles, c, o = problem.batch * math.prod(cut.tiles), up(problem.c, width), up(problem.o, width)
    products = tiles * problem.c * o / 60e9
    again = -(-problem.c // 64) + -(-problem.o // 64) if face == "weight_gradient" else 2
    transforms = tiles * (c + o) * again / 2 / 2.6e9
    weights = problem.c * o / 2.6e9
    return 20e-6 + problem.groups * cut.points * (products + transforms + weights) * problem.dtype.itemsize / 4


@functools.lru_cache(256)
def best(problem: Problem, face: Face) -> Axes:
    """The tile that should be the fastest."""
    return min(candidates(problem, face), key=lambda m: seconds_of(problem, face, m))


@functools.lru_cache(256)
def fields_of(problem: Problem, cut: Tiling) -> dict[str, Any]:
    """What all kernels are told."""
    axes = ("d", "h", "w")
    down, across, slabs = cut.slabs(problem.batch)
    panel = REGISTERS * lanes(problem.dtype)
    fields: dict[str, Any] = {"groups": problem.groups, "c": problem.c, "o": problem.o, "taps": math.prod(problem.kernel)}
    fields |= {"panel": panel, "panels": -(-problem.o // panel), "points": cut.points, "tiles": problem.batch * math.prod(cut.tiles)}
    fields |= {"rows": cut.rows, "columns": cut.columns, "slabs_h": down, "slabs_w": across, "slabs": slabs}
    for name, numbers in (("m", cut.m), ("tiles", cut.tiles), ("before", problem.before), ("x", problem.size), ("y", problem.out)):
        fields |= {f"{name}_{axis}": n for axis, n in zip(axes, numbers, strict=True)}
    for name, channels, size in (("x", problem.c, problem.size), ("y", problem.o, problem.out)):
        positions, step = math.prod(size), channels * problem.groups
        fields |= {f"{name}_batch": step * positions, f"{name}_channel": 1 if problem.channels_last else positions}
        fields |= {f"{name}_position": step if problem.channels_last else 1}
    return fields


@functools.lru_cache(256)
def memory_of(problem: Problem, cut: Tiling, **more: int) -> dict[str, int]:
    """Where a thread's parts of memory begin, and its size, in numbers."""
    width, taps = lanes(problem.dtype), math.prod(problem.kernel)
    p_d, p_h, _ = map(points_of, cut.m)
    wide = [n * m + (2 if m > 1 else 0) for n, m in zip((1, cut.rows, cut.columns), cut.m, strict=True)]
    lines = {
        "dense": wide[1] * wide[2] + width,
        "slab": math.prod(wide),
        "one": max(p_d * wide[1] * wide[2], 2 * cut.points),
        "two": max(p_d * p_h * wide[2], 2 * cut.points),
    }
    sizes = {name: n * width for name, n in lines.items()}
    sizes["dense"] = max(sizes["dense"], more.pop("dense", 0), (up(taps, width) + width) * width)
    sizes |= more
    places, at = {}, 0
    for name, size in sizes.items():
        places[f"at_{name}"] = at
        at += up(size, width)
    return {**places, "memory_size": at}
