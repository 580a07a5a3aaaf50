"""Depthwise convolution: groups of one input channel, and any number of output channels.

The gradient of the input is a convolution of the cotangent by the same kernels, for each remainder of a position modulo the stride
(`depthwise_axes`). Sums over positions are made example by example.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from refattn._core import Array
from refattn_numba.cpu.call import Record, empty
from refattn_numba.cpu.conv.depthwise_axes import Axis, Planes, axes_of, planes_of
from refattn_numba.cpu.conv.depthwise_pixels import PixelsCall, pixel_gradients, pixels
from refattn_numba.cpu.conv.depthwise_planes import LONG, PlanesCall, plane_gradients, planes
from refattn_numba.cpu.conv.epilogue import finish
from refattn_numba.cpu.conv.problem import Algorithm, Epilogue, Face, Finished, Linear, Problem
from refattn_numba.cpu.conv.windows import PAIR, ROWS
from refattn_numba.cpu.instructions import HOST
from refattn_numba.cpu.threads import run_tasks

PARTS = 64  # of a gradient of weights at most, which are summed at last: not the threads, so that they change no bit
TOGETHER = 8  # planes of one task, each of which is fetched while the one before is computed
TASKS = 32  # of pixels at least, where sizes allow
REGISTERS = 4  # of channels of one task
COPY = 36 << 10  # bytes of a copy of pixels, which stays in the first-level cache
SMALL = 256  # numbers of a plane that is transposed
STAY = 24 << 10  # bytes of what a block reads of all channels
STAY_ROWS = 14  # of a band then


def takes(problem: Problem, face: Face) -> str | None:
    """One input channel a group."""
    return None if problem.c == 1 else f"it takes groups of 1 channel, not of {problem.c}"


def seconds(problem: Problem, face: Face) -> float:
    """By numbers and products, as fitted to one core of a Xeon at 2.7 GHz; where lanes are left empty, or memory is copied, more."""
    numbers, operations = (
        problem.batch * problem.groups * (math.prod(problem.size) + problem.o * math.prod(problem.out)),
        problem.operations,
    )
    item, copied = problem.dtype.itemsize / 4, 0.0
    if not reads_pixels(problem):
        operations *= max(1.0, lanes_of(problem) / max(problem.out[2], 1))
        copied = 1e-7 * problem.batch * problem.groups + (1e-9 * numbers if problem.channels_last else 0.0)
    return 2e-5 + copied + item * (operations / 62e9 + numbers / 14e9)


def lanes_of(problem: Problem) -> int:
    """Numbers in a register."""
    return HOST.register_bytes // problem.dtype.itemsize


def reads_pixels(problem: Problem) -> bool:
    """Whether lanes go over channels: not where these are few, or have several outputs each; nor in channels first but for small images."""
    if problem.o > 1 or problem.groups < lanes_of(problem):
        return False
    return problem.channels_last or (math.prod(problem.size) <= SMALL and math.prod(problem.out) <= SMALL)


def _upright(problem: Problem) -> Problem:
    """With positions along the axis of rows, where there is one axis alone."""
    lines = {name: getattr(problem, name) for name in ("size", "kernel", "out", "stride", "dilation", "before")}
    if any(lines[name][1] != 1 for name in ("size", "kernel", "out")) or lines["before"][1]:
        return problem
    return problem._replace(**{name: (a, c, b) for name, (a, b, c) in lines.items()})


def _sizes(problem: Problem, axes: tuple[Axis, Axis, Axis]) -> dict[str, int]:
    made = {"batch": problem.batch}
    for i, axis in enumerate(axes):
        made |= {f"in{i}": axis.inputs, f"out{i}": axis.outputs, f"step_in{i}": axis.step_in, f"step_out{i}": axis.step_out}
        made |= {f"grid{i}": axis.grid, f"lowest{i}": axis.lowest}
    return made


def _record(layout: Any, tables: Planes, fields: dict[str, int], x: Array, y: Array, weight: Array, bias: Array | None) -> Record:
    """What both kernels are told."""
    record = Record({"n_phases": len(tables.phases), "plane": tables.plane, **fields}, layout=layout)
    record.add(x=x, y=y, weight=weight, runs=tables.runs, phases=tables.phases, **({} if bias is None else {"bias": bias}))
    return record


@lru_cache(256)
def _planes(problem: Problem, face: Linear) -> tuple[Planes, dict[str, int]]:
    """Tables and sizes."""
    tables, lanes, taps = planes_of(problem._replace(batch=0), face), lanes_of(problem), math.prod(problem.kernel)
    inputs, outputs = (problem.o, 1) if face == "spread" else (1, problem.o)
    rows = max(problem.size[1], problem.out[1])
    room = -(-max(tables.room, rows * lanes) // lanes) * lanes + 2 * LONG * lanes
    size = -(-(inputs * tables.plane + room + taps * lanes) // lanes) * lanes
    fields = {"groups": problem.groups, "inputs": inputs, "outputs": outputs, "taps": inputs * taps, "room": room, "memory_size": size}
    return tables, {**_sizes(problem, tables.axes), **fields}


@lru_cache(256)
def _pixels(problem: Problem, face: Face) -> tuple[Planes, dict[str, int]]:
    """Likewise; bands are as high as copies may be large, but not so low that most rows are copied for two of them."""
    linear: Linear = "spread" if face == "spread" else "correlate"
    if _stays(problem, face):
        return _there(problem, linear)
    turned = not problem.channels_last
    upright, alike = _upright(problem), _upright(problem._replace(batch=0))
    lanes, taps, item = lanes_of(problem), math.prod(problem.kernel), problem.dtype.itemsize
    axes = axes_of(upright, linear)
    rows, reach = max(p.outputs for p in axes[1].phases), axes[1].of_band(1).grid
    row_bytes = lanes * item * axes[1].step_in * math.prod(a.grid * a.step_in for a in (axes[0], axes[2]))
    band = rows if turned else _even(rows, max(COPY // row_bytes - reach, 2 * reach, ROWS))
    tables, bands = planes_of(alike, linear, lanes, band), -(-rows // band)
    units, registers = problem.batch * bands, -(-problem.groups // lanes)
    together = max(1, min(TOGETHER, units // TASKS))
    whole = face != "weight_gradient" and (units >= TASKS or problem.groups % lanes)
    block = registers if whole else min(registers, REGISTERS)
    blocks, images = -(-registers // block), max(math.prod(problem.size), math.prod(problem.out)) * lanes if turned else 0
    fields = {
        "channels": problem.groups,
        "taps": taps,
        "band": band,
        "bands": bands,
        "turned": turned,
        "registers": block,
        "blocks": blocks,
    }
    fields |= {"together": together, "parts": max(1, min(units, -(-TASKS // blocks)))}
    fields["memory_size"] = tables.plane + (registers if face != "weight_gradient" else block) * lanes * taps + images
    return tables, {**_sizes(upright, tables.axes), **fields}


def _stays(problem: Problem, face: Face) -> bool:
    """Whether an image is read where it lies."""
    (depth, height, width), axes = problem.kernel, axes_of(problem, "spread" if face == "spread" else "correlate")
    plain = problem.stride == problem.dilation == (1, 1, 1) and depth == problem.size[0] == problem.out[0] == 1
    near = (ROWS + height - 1) * (width + PAIR - 1) * problem.groups * problem.dtype.itemsize <= STAY
    large = axes[1].outputs >= ROWS and axes[2].outputs >= PAIR
    return problem.channels_last and face != "weight_gradient" and plain and near and large


def _there(problem: Problem, face: Linear) -> tuple[Planes, dict[str, int]]:
    """Likewise for these: the runs of x, and then those of a patch."""
    alike, axes, lanes, taps = problem._replace(batch=0), axes_of(problem, face), lanes_of(problem), math.prod(problem.kernel)
    patch, rows = problem.kernel[2] + PAIR - 1, axes[1].outputs
    tables, patches = (planes_of(alike, face, width, 1, pitch) for width, pitch in ((problem.groups, axes[2].inputs), (lanes, patch)))
    bands, registers = max(1, rows // STAY_ROWS), -(-problem.groups // lanes)
    size = (ROWS + problem.kernel[1] - 1) * patch * lanes
    fields = {
        "channels": problem.groups,
        "taps": taps,
        "band": -(-rows // bands),
        "bands": bands,
        "patch": patch,
        "together": 1,
        "blocks": 1,
    }
    fields |= {"plane": size, "memory_size": size + registers * lanes * taps}
    return tables._replace(runs=np.concatenate([tables.runs, patches.runs])), {
        **_sizes(problem, axes),
        **fields,
        "grid1": tables.axes[1].grid,
    }


def _even(rows: int, most: int) -> int:
    """Rows of a band, where all have as many as possible, in whole blocks."""
    bands = -(-rows // most)
    return min(rows, -(-rows // (bands * ROWS)) * ROWS)


def pack(problem: Problem, face: Face, weight: Array) -> Array:
    """As it is: what is made of so few numbers depends on positions too."""
    return weight


def _linear(problem: Problem, face: Linear, given: Array, weight: Array, epilogue: Epilogue) -> Finished:
    sizes, channels, cost = (problem.size, problem.groups, int(problem.operations))
    if face == "correlate":
        sizes, channels = problem.out, problem.groups * problem.o
    made = problem.empty(channels, sizes)
    if reads_pixels(problem):
        tables, fields = _pixels(problem, face)
        record = _record(PixelsCall, tables, fields, given, made, weight, epilogue.bias)
        tasks = -(-problem.batch * fields["bands"] // fields["together"]) * fields["blocks"]
        run_tasks(pixels, record.more(tasks=tasks), has_options=False, tasks=tasks, cost=cost, dtype=problem.dtype)
    else:
        tables, fields = _planes(problem, face)
        out = empty(made.shape, problem.dtype) if problem.channels_last else made
        record = _record(PlanesCall, tables, fields, np.ascontiguousarray(given), out, weight, epilogue.bias)
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
    cost, shape = int(problem.operations), (problem.groups * problem.o, 1, *problem.kernel)
    if reads_pixels(problem):
        tables, fields = _pixels(problem, "weight_gradient")
        sums = np.empty((fields["parts"], *shape), problem.dtype)
        tasks, record = fields["parts"] * fields["blocks"], _record(PixelsCall, tables, fields, x, dy, sums, None)
        run_tasks(pixel_gradients, record.more(tasks=tasks), has_options=False, tasks=tasks, cost=cost, dtype=problem.dtype)
    else:
        tables, fields = _planes(problem, "correlate")
        parts = max(1, min(problem.batch, PARTS // problem.groups))
        sums = np.zeros((parts, *shape), problem.dtype)
        record = _record(PlanesCall, tables, fields, np.ascontiguousarray(x), np.ascontiguousarray(dy), sums, None)
        tasks = parts * problem.groups
        run_tasks(plane_gradients, record.more(tasks=tasks, parts=parts), has_options=False, tasks=tasks, cost=cost, dtype=problem.dtype)
    return sums[0] if len(sums) == 1 else sums.sum(axis=0)


DEPTHWISE = Algorithm("depthwise", True, takes, seconds, pack, correlate, spread, weight_gradient)
