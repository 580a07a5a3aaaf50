"""What the kernels of the direct method are told, and what they share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refattn._core import Array
from refattn_numba.cpu.call import Record
from refattn_numba.cpu.conv.direct_tables import Tables
from refattn_numba.cpu.conv.problem import Linear, Problem
from refattn_numba.cpu.instructions import HOST
from refattn_numba.cpu.jit import compiled
from refattn_numba.cpu.products import REGISTERS

AXIS = ("d", "h", "w")

DirectCall = np.dtype(
    [(name, np.int64) for name in ("source", "weight", "bias", "output", "d_output", "classes", "taps", "cuts")]
    + [(f"source_{axis}", np.int64) for axis in ("n", *AXIS, "c")]
    + [(name, np.int64) for name in ("classes_d", "classes_h", "classes_w", "classes_end", "kernel", "kernel_h", "kernel_w")]
    + [(name, np.int64) for name in ("batch", "groups", "inner", "made", "width", "blocks", "out_d", "out_h", "out_w")]
    + [(name, np.int64) for name in ("box_n", "box_d", "box_h", "box_w", "boxes", "positions_first", "channels_first", "relu")]
    + [(f"{name}_{axis}", np.int64) for name in ("size", "stride", "gap", "before") for axis in AXIS]
    + [(name, np.int64) for name in ("kernel_d", "low", "length", "at_panel", "at_tile", "at_planes", "at_slots")]
    + [
        (name, np.int64)
        for name in (
            "part",
            "parts",
            "chunk",
            "chunks",
            "step",
            "lane_step",
            "run_step",
            "by_taps",
            "groups_d",
            "groups_h",
            "groups_w",
            "at_local",
        )
    ]
    + [(name, np.int64) for name in ("depth", "at_taps", "at_runs", "at_sources", "at_places", "memory_size", "end_task")],
    align=True,
)
"""Steps are in elements.

source_n ... source_c : from one example, position or channel of what is read in place to the next.
inner, made : channels of a group that are summed over, and those of the result.
width, blocks : lanes of one block of channels, and blocks of a group.
box_n ... box_w : how many positions of the result one task has along each axis, and `boxes` how many tasks this makes of a block.
by_taps, run_step : whether runs (`gathered`) are taps of the last axis or channels, and how far apart these lie.
at_local : where the copy stands that a task makes of what it reads, or 0.
groups_d ... groups_w : groups of taps along each axis (`direct_tables`), whose classes `cuts` tells.
at_taps ... at_places : where in a thread's memory the tables of a task stand, in bytes.
"""


def width_of(dtype: np.dtype[Any]) -> int:
    """Lanes of one block of channels."""
    return REGISTERS * HOST.register_bytes // dtype.itemsize


def blocks_of(channels: int, dtype: np.dtype[Any]) -> int:
    """Blocks of channels of one group."""
    return -(-channels // width_of(dtype))


def sides(problem: Problem, face: Linear) -> tuple[int, int, Any]:
    """Channels of a group that a face sums over, those that it makes, and the size of what it makes."""
    return (problem.c, problem.o, problem.out) if face == "correlate" else (problem.o, problem.c, problem.size)


def described(problem: Problem, found: Tables, source: Array) -> dict[str, int]:
    """The fields that tell where a source of five axes is read."""
    n, c, *axes = (step // source.itemsize for step in source.strides)
    return {
        "source_n": n,
        "source_c": c,
        **{f"source_{axis}": step for axis, step in zip(AXIS, axes, strict=True)},
        **{f"classes_{name}": begin for name, begin in zip((*AXIS, "end"), found.begin, strict=True)},
        "kernel": math.prod(problem.kernel),
        "kernel_h": problem.kernel[1],
        "kernel_w": problem.kernel[2],
        "batch": problem.batch,
        "groups": problem.groups,
        "width": width_of(problem.dtype),
    }


@compiled
def load_taps(call: Any, taps: Any, source: Any, d: Any, h: Any, w: Any, out: Any) -> int:
    """The taps that positions of three classes read: pairs of the tap's number and its offset in the source; how many."""
    _, _, step_d, step_h, step_w, _ = source
    count = 0
    for i in range(d[5], d[6]):
        for j in range(h[5], h[6]):
            tap = (taps[2 * i] * call.kernel_h + taps[2 * j]) * call.kernel_w
            offset = taps[2 * i + 1] * step_d + taps[2 * j + 1] * step_h
            for k in range(w[5], w[6]):
                out[2 * count], out[2 * count + 1] = tap + taps[2 * k], offset + taps[2 * k + 1] * step_w
                count += 1
    return count


def record(fields: dict[str, int], **arrays: Any) -> Record:
    """A call with C-contiguous arrays."""
    made = Record(fields, layout=DirectCall)
    made.add(**arrays)
    return made
