"""The positions that a kernel of one tap reads in steps, as an array of their own, and back from there with zeros in between.

An array is rows of positions, of so many numbers each: one, where a channel's positions lie next to one another, or all channels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir

from refattn._core import Array, Integers
from refattn_numba.cpu.call import Record
from refattn_numba.cpu.conv.blocks import copy
from refattn_numba.cpu.conv.problem import Axes, Problem
from refattn_numba.cpu.conv.winograd_squares import load_some, store_some
from refattn_numba.cpu.jit import compiled, kernel
from refattn_numba.cpu.simd import I32, Builder, Value, filled, instruction, lanes_of, next_of, pointer_to
from refattn_numba.cpu.sizes import larger, smaller
from refattn_numba.cpu.threads import run_tasks

TASK = 1 << 14  # numbers of the larger array

FIELDS = (
    "dense", "sparse", "is_spread", "unit", "rows", "task", "out_d", "out_h", "out_w", "size_d", "size_h", "size_w",
    "step_d", "step_h", "step_w", "memory_size", "end_task",
)  # fmt: skip

StridedCall = np.dtype([(name, np.int64) for name in FIELDS], align=True)
"""dense, sparse : arrays of the positions ``out`` that are read, and of all.

is_spread : whether the second is made of the first.
unit : numbers of a position.
rows, task : along the last axis, in what is made, and of a task.
"""


def gathered(problem: Problem, x: Array, made: Array) -> Array:
    """The positions of x that are read; `made` has room for them."""
    return _moved(problem, x, made, made, problem.out, is_spread=False)


def spread_out(problem: Problem, dense: Array, dx: Array) -> Array:
    """The other way: zeros where nothing is read."""
    return _moved(problem, dx, dense, dx, problem.size, is_spread=True)


def _moved(problem: Problem, sparse: Array, dense: Array, made: Array, size: Axes, *, is_spread: bool) -> Array:
    channels = sparse.shape[1]
    outer, unit = (problem.batch, channels) if problem.channels_last else (problem.batch * channels, 1)
    rows, task = outer * size[0] * size[1], max(1, TASK // max(1, problem.size[2] * unit))
    fields = {"is_spread": int(is_spread), "unit": unit, "rows": rows, "task": task, "memory_size": 0}
    for name, numbers in (("out", problem.out), ("size", problem.size), ("step", problem.stride)):
        fields |= {f"{name}_{axis}": n for axis, n in zip("dhw", numbers, strict=True)}
    call = Record(fields, layout=StridedCall)
    call.add(sparse=sparse, dense=dense)
    tasks = -(-rows // task) if math.prod(sparse.shape) and math.prod(dense.shape) else 0
    run_tasks(move, call, False, tasks, 4 * made.size, problem.dtype)
    return made


@kernel
def move(calls: Any, options: Any, shared: Array, counters: Integers) -> None:
    """A task is some rows of what is made."""
    call = calls[0]
    dense, sparse, unit = pointer_to(call.dense, shared), pointer_to(call.sparse, shared), call.unit
    while True:
        task = next_of(counters, 0)
        if task >= call.end_task:
            return
        for row in range(task * call.task, smaller((task + 1) * call.task, call.rows)):
            if call.is_spread:
                d, h, outer = row // call.size_h % call.size_d, row % call.size_h, row // call.size_h // call.size_d
                _clear(sparse + row * call.size_w * unit, call.size_w * unit)
                at_d, at_h = d // call.step_d, h // call.step_h
                if d % call.step_d == 0 and h % call.step_h == 0 and at_d < call.out_d and at_h < call.out_h:
                    of_dense = ((outer * call.out_d + at_d) * call.out_h + at_h) * call.out_w
                    _spread(dense + of_dense * unit, call.out_w, unit, call.step_w, sparse + row * call.size_w * unit)
            else:
                d, h, outer = row // call.out_h % call.out_d, row % call.out_h, row // call.out_h // call.out_d
                of_sparse = ((outer * call.size_d + d * call.step_d) * call.size_h + h * call.step_h) * call.size_w
                _gather(sparse + of_sparse * unit, call.out_w, unit, call.step_w, dense + row * call.out_w * unit)


@compiled
def _clear(row: Any, size: int) -> None:
    lanes = lanes_of(row)
    for i in range(0, size, lanes):
        store_some(row, i, filled(row, 0.0), smaller(lanes, size - i))


@compiled
def _gather(sparse: Any, count: int, unit: int, step: int, dense: Any) -> None:
    lanes = lanes_of(dense)
    if unit > 1 or step == 1:
        rows, size = (1, count) if step == 1 else (count, 1)
        copy(sparse, step * unit, rows, size * unit, dense, unit)
    elif step == 2:
        for i in range(0, count, lanes):
            some = smaller(lanes, count - i)
            low, high = load_some(sparse, 2 * i, 2 * some - 1), load_some(sparse, 2 * i + lanes, larger(0, 2 * some - 1 - lanes))
            store_some(dense, i, even_lanes(low, high), some)
    else:
        for i in range(count):
            dense[i] = sparse[i * step]


@compiled
def _spread(dense: Any, count: int, unit: int, step: int, sparse: Any) -> None:
    lanes = lanes_of(dense)
    if unit > 1 or step == 1:
        rows, size = (1, count) if step == 1 else (count, 1)
        copy(dense, unit, rows, size * unit, sparse, step * unit)
    elif step == 2:
        for i in range(0, count, lanes):
            some = smaller(lanes, count - i)
            numbers, zeros = load_some(dense, i, some), filled(dense, 0.0)
            store_some(sparse, 2 * i, first_half(numbers, zeros), 2 * some - 1)
            store_some(sparse, 2 * i + lanes, second_half(numbers, zeros), larger(0, 2 * some - 1 - lanes))
    else:
        for i in range(count):
            sparse[i * step] = dense[i]


def _shuffled(order: Any) -> Any:
    """Lanes of two registers, by their numbers among both."""

    @instruction
    def shuffle(typing: Any, a: Any, b: Any) -> Any:
        lanes = order(a.lanes)

        def build(context: Any, builder: Builder, sig: Any, args: Any) -> Value:
            return builder.shuffle_vector(*args, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))

        return a(a, a), build

    return shuffle


even_lanes = _shuffled(lambda n: [*range(0, 2 * n, 2)])
first_half = _shuffled(lambda n: [i // 2 + i % 2 * n for i in range(n)])
second_half = _shuffled(lambda n: [(n + i) // 2 + i % 2 * n for i in range(n)])
"""Lanes of the first, each followed by one of the second."""
