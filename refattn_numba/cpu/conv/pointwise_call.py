"""What the kernels of one tap are told: a matrix for each group of channels, at each position of all examples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refattn_numba.cpu.call import CACHE_LINE, Record
from refattn_numba.cpu.conv.problem import Problem
from refattn_numba.cpu.instructions import HOST
from refattn_numba.cpu.products import LINES, SPARE
from refattn_numba.cpu.simd import TILE_BYTES

PART = 128  # of a sum that is made in registers: its operands, a tile wide, fill most of a core's first cache
LINE_BLOCK = 43 * LINES  # and the sums, with a block of positions, its second one
TILES = 4  # of positions or channels that a block has
FAR = 4096  # bytes between rows, of which a first cache has room for one line of a dozen at most
TASKS = 4  # for each thread, so that none has to wait long for the last
SHORT = 64  # of a sum over so few positions that parts would be few
STREAM_BYTES = 4 << 20  # results of more are not expected to be found in the cores' own caches

ADDRESSES = ("source", "weight", "bias", "out", "before")
SIZES = (
    "groups", "depth", "lines", "positions", "total", "part", "weight_line", "weight_step",
    "line_block", "line_blocks", "block", "task", "tasks_each", "tasks", "step", "at_sums", "memory_size",
    "activation", "direct", "stream",
)  # fmt: skip

PointwiseCall = np.dtype([(name, np.int64) for name in (*ADDRESSES, *SIZES)], align=True)
"""``out[group, line, p] = sum over k of weight[group, line, k] * source[group, k, p]``, for `total` positions p of all examples.

weight : rows of a matrix for each group, or packed strips of tiles.
part : of the depth, at a time.
line_block, block, task : lines of a task; positions of a block, and of a task, which is some blocks.
direct, stream : whether nothing follows the sums, which are then written where they belong, and whether past the caches.
step, at_sums : from row to row of a thread's blocks, and where the sums begin.
"""


GradientCall = np.dtype(
    [
        (name, np.int64)
        for name in (
            "of_lanes", "of_lines", "out", "groups", "lanes", "lines", "positions", "total", "part", "share", "lane_block", "lane_blocks",
            "line_block", "line_blocks", "lane_step", "tasks", "by_rows", "turned", "at_lanes", "at_lines", "at_sums", "memory_size",
        )
    ],
    align=True,
)  # fmt: skip
"""``out[share, group, line, lane] = sum over the positions p of a share of of_lines[group, line, p] * of_lanes[group, lane, p]``.

share : positions of each.
lane_block, line_block : of a task.
lane_step : from row to row of blocks whose rows are lanes.
by_rows : whether channels lie next to one another in both arrays.
turned : where lanes come first in `out`, the step of their rows in a thread's memory; else 0.
"""


def whole(n: int, step: int) -> int:
    """The next multiple."""
    return -(-n // step) * step


def evenly(n: int, most: int, step: int = 1) -> int:
    """The size of equal parts of n that are at most so large, but for being multiples of `step`."""
    return whole(-(-n // -(-n // most)), step) if n else step


def tile(dtype: np.dtype[Any]) -> int:
    """Numbers of a tile."""
    return TILE_BYTES // dtype.itemsize


def lanes(dtype: np.dtype[Any]) -> int:
    """Numbers of a register."""
    return HOST.register_bytes // dtype.itemsize


def room(lines: int) -> int:
    """Lines that products may write to."""
    return whole(lines, SPARE)


def streams(problem: Problem, lines: int) -> bool:
    """Whether a result, which begins on a cache line, is large, and its rows are whole cache lines: it is stored past the caches then."""
    channels, positions = problem.groups * lines, math.prod(problem.out)
    row = lines if problem.channels_last else positions
    size = problem.batch * channels * positions * problem.dtype.itemsize
    return row * problem.dtype.itemsize % CACHE_LINE == 0 and HOST.register_bytes <= CACHE_LINE and size > STREAM_BYTES


def record(**fields: int) -> Record:
    """Without arrays yet."""
    return Record(fields, layout=PointwiseCall)
