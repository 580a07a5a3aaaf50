"""Kernels of one tap: a matrix for each group, times the channels at each position. Nothing is unfolded and, but for a stride, nothing moved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numba
import numpy as np

from refattn._core import Array
from refattn_numba._activations import CODES
from refattn_numba.cpu.call import Record, aligned, empty
from refattn_numba.cpu.conv.epilogue import finish
from refattn_numba.cpu.conv.layouts import panels
from refattn_numba.cpu.conv.pointwise_call import (
    FAR,
    LINE_BLOCK,
    PART,
    SHORT,
    TASKS,
    TILES,
    GradientCall,
    evenly,
    lanes,
    record,
    room,
    streams,
    tile,
    whole,
)
from refattn_numba.cpu.conv.pointwise_planes import planes
from refattn_numba.cpu.conv.pointwise_rows import rows
from refattn_numba.cpu.conv.pointwise_weights import weights
from refattn_numba.cpu.conv.problem import Activation, Algorithm, Axes, Epilogue, Face, Finished, Linear, Problem
from refattn_numba.cpu.conv.strided import gathered, spread_out
from refattn_numba.cpu.products import LINES
from refattn_numba.cpu.threads import run_tasks

# Of a core of an Intel Xeon with AVX-512, whose multiply-adds come to 1.76e11 operations a second: 64 to 256 channels at 56 x 56 positions
# took 95 % of that where nothing was copied, and 256 to 64 channels, with arrays of 32 MB, 1.5 ms more.
RATE, BANDWIDTH = 1.65e11, 2e10  # operations and bytes a second
SHARES = 16  # of the positions, where a gradient is too small to be many tasks


def takes(problem: Problem, face: Face) -> str | None:
    """What reads each position once at most, and no padding."""
    if math.prod(problem.kernel) != 1:
        return f"the kernel has {' x '.join(map(str, problem.kernel))} taps, but must have one"
    if any(problem.before) or any((o - 1) * s >= n for o, s, n in zip(problem.out, problem.stride, problem.size, strict=True)):
        return "its padding is not zero"
    if not problem.c * problem.o:
        return "there are no channels"
    return None


def seconds(problem: Problem, face: Face) -> float:
    """Operations on tiles that are filled up, and each array once."""
    depth, lines = (problem.c, problem.o) if face != "spread" else (problem.o, problem.c)
    lines = whole(lines, lanes(problem.dtype) if problem.channels_last else LINES)
    positions = problem.batch * math.prod(problem.out)
    operations = 2.0 * problem.groups * depth * lines * positions * problem.dtype.itemsize / 4
    moved = problem.groups * positions * (problem.c + problem.o) * problem.dtype.itemsize
    if _moves(problem):
        moved *= 3
    return operations / RATE + moved / BANDWIDTH


def pack(problem: Problem, face: Face, weight: Array) -> Any:
    """As it is, or transposed, or in strips of the channels that are made: (groups, strips, depth, tile), filled with zeros."""
    matrices = weight.reshape(problem.groups, problem.o, problem.c)
    if not problem.channels_last:
        far = face == "spread" and _is_far(problem) and weight.size
        return panels(problem, matrices.reshape(1, problem.groups * problem.o, problem.c), problem.o) if far else matrices
    matrices = matrices.swapaxes(1, 2) if face == "correlate" else matrices
    width = tile(problem.dtype)
    strips = -(-matrices.shape[2] // width)
    made = empty((problem.groups, strips, matrices.shape[1], width), problem.dtype)
    made[:, -1:] = 0
    for strip in range(strips):
        part = matrices[:, :, strip * width : (strip + 1) * width]
        made[:, strip, :, : part.shape[2]] = part
    return made


def correlate(problem: Problem, x: Array, packed: Any, epilogue: Epilogue) -> Finished:
    """The product at each position that is read."""
    return _product(problem, "correlate", _read(problem, x), packed, epilogue)


def spread(problem: Problem, dy: Array, packed: Any, epilogue: Epilogue) -> Finished:
    """The product with the transpose, at the positions that were read; elsewhere zeros."""
    if not _moves(problem):
        return _product(problem, "spread", dy, packed, epilogue)
    made = _product(problem, "spread", dy, packed, Epilogue()).output
    return finish(spread_out(problem, made, problem.empty(made.shape[1], problem.size)), epilogue)


def weight_gradient(problem: Problem, x: Array, dy: Array) -> Array:
    """Products of all pairs of channels; lanes are those of which there are fewer."""
    x, of_x = _read(problem, x), problem.c <= problem.o
    of_lanes, of_lines = (x, dy) if of_x else (dy, x)
    lane_count, line_count = (problem.c, problem.o) if of_x else (problem.o, problem.c)
    total, width = problem.batch * math.prod(problem.out), tile(problem.dtype)
    shape = (problem.groups * problem.o, problem.c, 1, 1, 1)
    if not total:
        return np.zeros(shape, problem.dtype)
    lane_block, line_block, part = (
        evenly(lane_count, 2 * width, width),
        evenly(line_count, LINE_BLOCK, LINES),
        evenly(total, PART if total > SHORT * SHARES else SHORT, lanes(problem.dtype)),
    )
    blocks = problem.groups * -(-lane_count // lane_block) * -(-line_count // line_block)
    share = whole(-(-total // min(-(-SHARES // blocks), -(-total // part))), part)
    shares = -(-total // share)
    made = empty((shares, *shape), problem.dtype)
    step, sums = lane_block + lanes(problem.dtype), whole(room(line_block), lanes(problem.dtype))
    at_lanes = lane_block * max(part, 0 if of_x else sums)
    at_lines = at_lanes + part * step
    at_sums = at_lines + line_block * part
    call = Record(
        {
            "groups": problem.groups, "lanes": lane_count, "lines": line_count, "positions": math.prod(problem.out), "total": total,
            "part": part, "share": share, "lane_block": lane_block, "lane_blocks": -(-lane_count // lane_block),
            "line_block": line_block, "line_blocks": -(-line_count // line_block), "lane_step": step, "tasks": blocks * shares,
            "by_rows": int(problem.channels_last), "turned": 0 if of_x else sums, "at_lanes": at_lanes, "at_lines": at_lines, "at_sums": at_sums,
            "memory_size": at_sums + sums * step,
        },
        layout=GradientCall,
    )  # fmt: skip
    call.add(of_lanes=of_lanes, of_lines=of_lines, out=made)
    run_tasks(weights, call, False, blocks * shares, total * problem.groups * problem.c * problem.o, problem.dtype)
    return made[0] if shares == 1 else made.sum(axis=0)


def _is_far(problem: Problem) -> bool:
    """Whether rows of the weight, which a sum over output channels reads one after the other, would take each other's places in a cache."""
    return problem.c * problem.dtype.itemsize >= FAR


def _moves(problem: Problem) -> bool:
    """Whether some positions of x are not read."""
    return problem.out != problem.size


def _read(problem: Problem, x: Array) -> Array:
    """The positions of x that are read, in its layout."""
    return gathered(problem, x, problem.empty(x.shape[1], problem.out)) if _moves(problem) else x


def _result(problem: Problem, channels: int) -> Array:
    """As `Problem.empty`, on a cache line."""
    size: Axes = problem.out
    flat = aligned(problem.batch * channels * math.prod(size), problem.dtype)
    if problem.channels_last:
        return np.moveaxis(flat.reshape(problem.batch, *size, channels), -1, 1)
    return flat.reshape(problem.batch, channels, *size)


def _product(problem: Problem, face: Linear, x: Array, packed: Any, epilogue: Epilogue) -> Finished:
    """The channels that a face makes, at each position of x."""
    fields = _fields(problem, face, epilogue.activation, numba.get_num_threads())
    made = before = _result(problem, problem.groups * fields["lines"])
    if not fields["total"]:
        return Finished(made, made)
    if epilogue.activation in {"silu", "gelu"}:
        before = _result(problem, made.shape[1])
    call = record(**fields)
    call.add(source=x, weight=packed, out=made)
    if before is not made:
        call.add(before=before)
    if epilogue.bias is not None:
        call.add(bias=epilogue.bias)
    run_tasks(rows if problem.channels_last else planes, call, False, fields["tasks"], int(problem.operations) // 2, problem.dtype)
    return Finished(made, before)


@lru_cache(maxsize=1024)
def _fields(problem: Problem, face: Linear, activation: Activation | None, threads: int) -> Mapping[str, int]:
    """What kernels are told but for addresses: how the lines, positions and sums are cut."""
    depth, lines = (problem.c, problem.o) if face == "correlate" else (problem.o, problem.c)
    total, width, positions = problem.batch * math.prod(problem.out), tile(problem.dtype), math.prod(problem.out)
    is_planes, steps = not problem.channels_last, (depth, 1) if face == "correlate" or _is_far(problem) else (1, lines)
    line_block = evenly(lines, LINE_BLOCK, LINES) if is_planes else evenly(lines, TILES * width, width)
    part = evenly(depth, PART) if is_planes or lines > width else evenly(depth, width)
    block = TILES * width if is_planes else PART
    tasks, wanted = problem.groups * -(-total // block) * -(-lines // line_block), TASKS * threads
    while tasks < wanted and block > width:
        block, tasks = block // 2, 2 * tasks
    task = block * max(1, min(4, tasks // (2 * wanted)))
    step, at_sums = block + lanes(problem.dtype), 0
    if is_planes:
        at_sums, size = part * width, room(line_block) * step + block
    else:
        steps = (depth * whole(lines, width), depth * width)
        step, size = room(block), room(block) * line_block
    fields = {
        "groups": problem.groups, "depth": depth, "lines": lines, "positions": positions, "total": total, "part": part,
        "weight_line": steps[0], "weight_step": steps[1], "line_block": line_block, "line_blocks": -(-lines // line_block),
        "block": block, "task": task, "tasks_each": -(-total // task), "step": step, "at_sums": at_sums,
        "memory_size": at_sums + size, "activation": CODES[activation], "direct": int(activation is None),
        "stream": int(activation is None and streams(problem, lines)),
    }  # fmt: skip
    return {**fields, "tasks": problem.groups * fields["tasks_each"] * fields["line_blocks"]}


POINTWISE = Algorithm("pointwise", True, takes, seconds, pack, correlate, spread, weight_gradient)
