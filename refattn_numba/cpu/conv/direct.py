"""The direct method: for each output a sum over channels and taps. It takes every problem."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numba
import numpy as np

from refattn._core import Array
from refattn_numba.cpu.conv.direct_call import blocks_of, described, record, sides, width_of
from refattn_numba.cpu.conv.direct_few import spread_few, suits
from refattn_numba.cpu.conv.direct_linear import convolve
from refattn_numba.cpu.conv.direct_pack import packed, runs_of_taps
from refattn_numba.cpu.conv.direct_tables import inside, tables
from refattn_numba.cpu.conv.direct_weight import weight_gradient
from refattn_numba.cpu.conv.epilogue import finish
from refattn_numba.cpu.conv.gathered import RUN
from refattn_numba.cpu.conv.layouts import panels
from refattn_numba.cpu.conv.problem import Algorithm, Axes, Epilogue, Face, Finished, Linear, Problem
from refattn_numba.cpu.products import REGISTERS, SPARE
from refattn_numba.cpu.threads import run_tasks

DEPTH = 128  # numbers of one sum before it is added to the result: their weights take two thirds of the first cache
BOX = 400  # positions of one task, at most: with a block of channels they fit the second cache, beside what they read,
READ = 1536 * 2**10  # which has as many bytes at most
TASKS = 4  # of each thread, at least, where there are positions enough
LOCAL = 700  # bytes from one channel to the next, from which on a task copies what it reads: pages of memory are few that a core knows
TURNED = 4  # blocks of channels that would each make such a copy: then there is one for all
RATE = 6e11  # operations in a second times bytes of a number, and bytes: of a thread of an Xeon with AVX-512 at 2.7 GHz
BANDWIDTH = 16e9
RESIDENT = 2**20  # bytes of packed weights that stay in the second cache


def takes(problem: Problem, face: Face) -> str | None:
    """Everything."""
    return None


def seconds(problem: Problem, face: Face) -> float:
    """Multiply-adds of whole registers with the taps that exist, and bytes."""
    made = problem.c if face == "spread" else problem.o
    lanes = width_of(problem.dtype) // REGISTERS
    registers = -(-made // lanes) % REGISTERS
    full = made // width_of(problem.dtype) * REGISTERS if registers else -(-made // lanes)
    filled = made / (lanes * (full + (REGISTERS if registers > 2 else registers))) if made else 1.0
    if face == "spread" and suits(problem):
        filled = 1.0
    inputs, outputs = (
        problem.batch * problem.groups * n for n in (problem.c * math.prod(problem.size), problem.o * math.prod(problem.out))
    )
    item = problem.dtype.itemsize
    weights = problem.groups * problem.c * problem.o * math.prod(problem.kernel)
    return problem.operations * inside(problem) / filled * item / RATE + 2 * (inputs + outputs + weights) * item / BANDWIDTH


def pack(problem: Problem, face: Face, weight: Array) -> Any:
    """In blocks of lanes; as it is where there are few channels."""
    if face == "spread" and suits(problem):
        return weight
    return packed(problem, "spread" if face == "spread" else "correlate", weight)


def correlate(problem: Problem, x: Array, packed: Any, epilogue: Epilogue) -> Finished:
    """The output."""
    return _linear(problem, "correlate", x, packed, epilogue)


def spread(problem: Problem, dy: Array, packed: Any, epilogue: Epilogue) -> Finished:
    """The gradient of the input."""
    if suits(problem):
        return _finished(spread_few(problem, dy, packed, epilogue), epilogue)
    return _linear(problem, "spread", dy, packed, epilogue)


def _linear(problem: Problem, face: Linear, x: Array, weight: Array, epilogue: Epilogue) -> Finished:
    inner, made, size = sides(problem, face)
    taps, by_taps = math.prod(problem.kernel), runs_of_taps(problem, face)
    y = problem.empty(problem.groups * made, size)
    found, blocks = tables(problem, face, _together(problem, inner)), blocks_of(made, problem.dtype)
    if taps > 1 and blocks >= TURNED:
        x = _turned(problem, x)
    read = inner * problem.dtype.itemsize * (math.prod(problem.stride) if face == "correlate" else 1)
    box, boxes = _box(problem.batch, size, problem.groups * blocks, min(BOX, max(1, READ // max(1, read))))
    rows, width = math.prod(box) + 1, width_of(problem.dtype)
    is_local = taps > 1 and not by_taps and x.strides[1] >= LOCAL
    local = inner * box[0] * math.prod(_spans(problem, face, box[1:])) if is_local else 0
    item = problem.dtype.itemsize
    sizes = (rows * width * item, 16 * taps, 8 * RUN * DEPTH, 8 * (rows + SPARE), 8 * (rows + SPARE), local * item)
    places = np.cumsum([0, *(-(-n // 64) * 64 for n in sizes)])
    fields = {
        **described(problem, found, x),
        "inner": inner,
        "made": made,
        "blocks": blocks,
        **{f"out_{axis}": n for axis, n in zip("dhw", size, strict=True)},
        **{f"box_{axis}": n for axis, n in zip("ndhw", box, strict=True)},
        "boxes": boxes,
        "by_taps": by_taps,
        "run_step": (problem.dilation[2] * x.strides[4] if by_taps else x.strides[1]) // x.itemsize,
        **{f"groups_{axis}": n for axis, n in zip("dhw", found.groups, strict=True)},
        "positions_first": weight.nbytes <= RESIDENT,
        "channels_first": not problem.channels_last,
        "relu": epilogue.activation == "relu",
        "depth": DEPTH,
        **dict(zip(("at_taps", "at_runs", "at_sources", "at_places"), map(int, places[1:]), strict=False)),
        "at_local": int(places[-2]) if is_local else 0,
        "memory_size": int(places[-1]) // item,
    }
    call = record(fields, source=x, weight=weight, output=y, classes=found.classes, taps=found.taps, cuts=found.cuts)
    if epilogue.bias is not None:
        call.add(bias=epilogue.bias)
    run_tasks(convolve, call, False, boxes * problem.groups * blocks if y.size else 0, int(problem.operations), problem.dtype)
    return _finished(y, epilogue)


def _turned(problem: Problem, x: Array) -> Array:
    """A copy with channels last, where they lie far apart."""
    if problem.groups > 1 or x.strides[1] < LOCAL or not x.size:
        return x
    batch, channels, *positions = x.shape
    return np.moveaxis(panels(problem, x, channels).reshape(batch, *positions, channels), -1, 1)


def _finished(y: Array, epilogue: Epilogue) -> Finished:
    """What is left of an epilogue after the bias and relu."""
    return finish(y, Epilogue(None, None if epilogue.activation == "relu" else epilogue.activation))


def _together(problem: Problem, inner: int) -> Axes:
    """How many taps of each axis make one sum: all of an axis before more than one of the next."""
    room, made = max(1, DEPTH // max(1, inner)), []
    for taps in reversed(problem.kernel):
        parts = -(-taps // room) if taps else 1
        made.append(max(1, -(-taps // parts)))
        room = max(1, room // max(1, taps)) if parts == 1 else 1
    return cast("Axes", tuple(reversed(made)))


def _spans(problem: Problem, face: Linear, box: Sequence[int]) -> Iterator[int]:
    """The most positions of its source that a box reads along each axis."""
    size = problem.size if face == "correlate" else problem.out
    for n, b, k, s, d in zip(size, box, problem.kernel, problem.stride, problem.dilation, strict=True):
        reach = d * (k - 1)
        yield min(n, (b - 1) * s + reach + 1 if face == "correlate" else (b - 1 + reach) // s + 1)


def _box(batch: int, size: Axes, blocks: int, most: int) -> tuple[tuple[int, ...], int]:
    """How many positions a task has along each axis, and how many boxes there are: positions of one box lie one after another."""
    shape = (max(1, batch), *size)
    limit = min(most, max(24, math.prod(shape) * blocks // (TASKS * numba.get_num_threads())))
    box = list(shape)
    for axis in range(len(shape)):
        if math.prod(box) <= limit:
            break
        box[axis] = max(1, limit // math.prod(shape[axis + 1 :]))
    return tuple(box), math.prod(-(-n // b) for n, b in zip(shape, box, strict=True))


DIRECT = Algorithm("direct", True, takes, seconds, pack, correlate, spread, weight_gradient)
