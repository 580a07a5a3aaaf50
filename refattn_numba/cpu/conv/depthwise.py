"""Depthwise convolution: groups of one input channel, and any number of output channels.

The gradient of the input is a convolution of the cotangent by the same kernels, for each remainder of a position modulo the stride
(`depthwise_axes`). Sums over positions are made example by example.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refattn._core import Array
from refattn_numba.cpu.call import Record
from refattn_numba.cpu.conv.depthwise_axes import axes_of, pixels_of, planes_of
from refattn_numba.cpu.conv.depthwise_pixels import ROOM, PixelsCall, pixel_gradients, pixels
from refattn_numba.cpu.conv.depthwise_planes import LONG, PlanesCall, plane_gradients, planes
from refattn_numba.cpu.conv.epilogue import finish
from refattn_numba.cpu.conv.problem import Algorithm, Epilogue, Face, Finished, Linear, Problem
from refattn_numba.cpu.instructions import HOST
from refattn_numba.cpu.threads import run_tasks

PARTS = 64  # of a gradient of weights at most, which are summed at last: not the threads, so that they change no bit
TOGETHER = 8  # planes of one task, each of which is fetched while the one before is computed
PART_ROWS = 8  # rows of pixels in a part at least


def takes(problem: Problem, face: Face) -> str | None:
    """One input channel a group."""
    return None if problem.c == 1 else f"it takes groups of 1 channel, not of {problem.c}"


def seconds(problem: Problem, face: Face) -> float:
    """By what is read and written, the products, and what a copy of a plane costs besides: rates of one core of a Xeon at 2 GHz."""
    item, planes = problem.dtype.itemsize, problem.batch * problem.groups
    numbers = planes * (math.prod(problem.size) + 2 * problem.o * math.prod(problem.out))
    copies = 0.0 if reads_pixels(problem) else planes * 4e-7
    return 1e-5 + copies + item * (numbers / 8e9 + problem.operations / 4 / 90e9)


def lanes_of(problem: Problem) -> int:
    """Numbers in a register."""
    return HOST.register_bytes // problem.dtype.itemsize


def reads_pixels(problem: Problem) -> bool:
    """Whether lanes go over channels; where these are few or have several outputs each, memory is changed to channels first."""
    return problem.channels_last and problem.o == 1 and problem.groups >= lanes_of(problem)


def _sizes(problem: Problem, face: Linear) -> dict[str, int]:
    axes, made = axes_of(problem, face), {}
    for i, axis in enumerate(axes):
        made |= {f"in{i}": axis.inputs, f"out{i}": axis.outputs, f"step_in{i}": axis.step_in, f"step_out{i}": axis.step_out}
        made |= {f"grid{i}": axis.grid, f"lowest{i}": axis.lowest, f"kernel{i}": problem.kernel[i]}
    return made


def _record(problem: Problem, face: Linear, layout: Any, x: Array, y: Array, weight: Array, bias: Array | None) -> Record:
    """What both kernels are told."""
    fields: dict[str, Any] = {"batch": problem.batch, "groups": problem.groups, **_sizes(problem, face)}
    record = Record(fields, layout=layout)
    record.add(x=x, y=y, weight=weight, **({} if bias is None else {"bias": bias}))
    return record


def _planes_record(problem: Problem, face: Linear, *arrays: Any) -> Record:
    alike = problem._replace(batch=0)
    tables, lanes = planes_of(alike, face), lanes_of(problem)
    inputs, outputs = (problem.o, 1) if face == "spread" else (1, problem.o)
    taps = len(tables.order)
    room = -(-max(tables.room, problem.out[1] * lanes) // lanes) * lanes + 2 * LONG * lanes
    size = -(-(inputs * tables.plane + room + taps * lanes) // lanes) * lanes
    record = _record(problem, face, PlanesCall, *arrays)
    record.add(runs=tables.runs, phases=tables.phases)
    return record.more(
        n_phases=len(tables.phases), n_runs=len(tables.runs), inputs=inputs, outputs=outputs, taps=taps, plane=tables.plane, room=room,
        memory_size=size,
    )  # fmt: skip


def _pixels_record(problem: Problem, face: Linear, *arrays: Any) -> Record:
    tables, taps = pixels_of(problem._replace(batch=0), face), math.prod(problem.kernel)
    record = _record(problem, face, PixelsCall, *arrays)
    record.add(phases=tables.phases, groups=tables.groups)
    for i in range(2):
        record.add(**{f"ends{i}": tables.ends[i], f"taps{i}": tables.taps[i]})
    size = -(-(ROOM * taps + 1) // lanes_of(problem)) * lanes_of(problem)
    last = len(tables.order) // (problem.kernel[0] * problem.kernel[1])
    return record.more(n_phases=len(tables.phases), channels=problem.groups, taps=taps, kernel2=last, memory_size=size)


def pack(problem: Problem, face: Face, weight: Array) -> Array:
    """As it is: what is made of so few numbers depends on positions too."""
    return weight


def _linear(problem: Problem, face: Linear, given: Array, weight: Array, epilogue: Epilogue) -> Finished:
    sizes, channels, cost = (problem.size, problem.groups, int(problem.operations))
    if face == "correlate":
        sizes, channels = problem.out, problem.groups * problem.o
    made, alike = problem.empty(channels, sizes), problem._replace(batch=0)
    if reads_pixels(problem):
        numbers = np.ascontiguousarray(weight.reshape(channels, -1).T[pixels_of(alike, face).order])
        record = _pixels_record(problem, face, given, made, numbers, epilogue.bias)
        tasks = problem.batch * sizes[0] * sizes[1]
        run_tasks(pixels, record.more(tasks=tasks), has_options=False, tasks=tasks, cost=cost, dtype=problem.dtype)
    else:
        out = np.empty(made.shape, problem.dtype) if problem.channels_last else made
        numbers = np.ascontiguousarray(weight.reshape(channels, -1)[:, planes_of(alike, face).order])
        record = _planes_record(problem, face, np.ascontiguousarray(given), out, numbers, epilogue.bias)
        count = problem.batch * problem.groups
        together = max(1, min(TOGETHER, count // (2 * TOGETHER)))
        tasks, record = -(-count // together), record.more(count=count, together=together)
        run_tasks(planes, record.more(tasks=tasks), has_options=False, tasks=tasks, cost=cost, dtype=problem.dtype)
        if problem.channels_last:
            made[...] = out
    return finish(made, epilogue._replace(bias=None))


def correlate(problem: Problem, x: Array, packed: Array, epilogue: Epilogue) -> Finished:
    """The output, with its bias."""
    return _linear(problem, "correlate", x, packed, epilogue)


def spread(problem: Problem, dy: Array, packed: Array, epilogue: Epilogue) -> Finished:
    """The gradient of the input: sums over the outputs of its group and their taps."""
    return _linear(problem, "spread", dy, packed, epilogue)


def weight_gradient(problem: Problem, x: Array, dy: Array) -> Array:
    """The gradient of the weight, from parts whose number follows from the sizes alone."""
    taps, alike, cost = math.prod(problem.kernel), problem._replace(batch=0), int(problem.operations)
    if reads_pixels(problem):
        rows = problem.batch * problem.out[0] * problem.out[1]
        tasks = min(PARTS, -(-rows // PART_ROWS))
        sums, order = np.zeros((tasks, taps, problem.groups), problem.dtype), pixels_of(alike, "correlate").order
        record = _pixels_record(problem, "correlate", x, dy, sums, None)
        run_tasks(pixel_gradients, record.more(tasks=tasks), has_options=False, tasks=tasks, cost=cost, dtype=problem.dtype)
        by_tap = sums.sum(axis=0).T
    else:
        parts = max(1, min(problem.batch, PARTS // problem.groups))
        sums, order = np.zeros((parts, problem.groups * problem.o, taps), problem.dtype), planes_of(alike, "correlate").order
        record = _planes_record(problem, "correlate", *map(np.ascontiguousarray, (x, dy)), sums, None)
        tasks = parts * problem.groups
        run_tasks(plane_gradients, record.more(tasks=tasks, parts=parts), has_options=False, tasks=tasks, cost=cost, dtype=problem.dtype)
        by_tap = sums.sum(axis=0)
    made = np.empty((problem.groups * problem.o, taps), problem.dtype)
    made[:, order] = by_tap
    return made.reshape(-1, 1, *problem.kernel)


DEPTHWISE = Algorithm("depthwise", True, takes, seconds, pack, correlate, spread, weight_gradient)
