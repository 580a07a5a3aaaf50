"""Bias and activation after a convolution, and their gradients: each one pass over the numbers, on all cores.

Algorithms that hold their results in tiles call the functions of `activation` there; others `finish`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refattn._core import Array
from refattn_numba._activations import CODES
from refattn_numba.cpu.conv.activation import activated, before_activated
from refattn_numba.cpu.conv.problem import Activation, Epilogue, Finished
from refattn_numba.cpu.jit import compiled, kernel
from refattn_numba.cpu.simd import filled, lanes_of, largest_of, load, pointer_to, store, total_of
from refattn_numba.cpu.sizes import smaller
from refattn_numba.cpu.threads import run

BLOCK = 1 << 14  # numbers of one task
EXPENSIVE = 16  # an exponential beside a multiplication
ROWS = 128  # whose sum is made before it is added to others


def finish(y: Array, epilogue: Epilogue) -> Finished:
    """The output of a convolution, which is overwritten: itself, or what is before an activation that needs it for its gradient."""
    if epilogue.bias is None and epilogue.activation is None:
        return Finished(y, y)
    y = y if is_by_channel(y) or _rows(y).flags.c_contiguous else np.ascontiguousarray(y)
    in_place = epilogue.activation in {None, "relu"}
    out = y if in_place else np.empty_like(y)
    code, by_channel = CODES[epilogue.activation], is_by_channel(y)
    bias = np.zeros(y.shape[1], y.dtype) if epilogue.bias is None else epilogue.bias
    size = math.prod(y.shape[2:]) if by_channel else y.shape[1]
    run(finish_rows, _flat(y), _flat(out), _read_only(bias), by_channel, size, code, tasks=-(-y.size // BLOCK), cost=EXPENSIVE * y.size)
    return Finished(out, y)


def before_activation(done: Finished, activation: Activation | None, dy: Array) -> Array:
    """The cotangent of what the activation is given."""
    if activation is None:
        return dy
    given = done.output if activation == "relu" else done.before
    made = np.empty_like(given)
    if made.strides != dy.strides or not dy.dtype.isnative or not dy.flags.aligned:
        dy, theirs = np.empty_like(given), dy
        dy[...] = theirs
    run(
        pull_back, _read_only(_flat(given)), _read_only(_flat(dy)), _flat(made), CODES[activation],
        tasks=-(-dy.size // BLOCK), cost=EXPENSIVE * dy.size,
    )  # fmt: skip
    return made


def bias_gradient(dy: Array) -> Array:
    """The sum over examples and positions (channels)."""
    if not (is_by_channel(dy) or _rows(dy).flags.c_contiguous):
        dy = np.ascontiguousarray(dy)
    channels, size = dy.shape[1], math.prod(dy.shape[2:])
    if is_by_channel(dy):
        sums = np.zeros((dy.shape[0], channels), dy.dtype)
        run(sum_rows, _read_only(_flat(dy)), _flat(sums), size, tasks=sums.size, cost=dy.size)
    else:
        sums = np.zeros((-(-dy.shape[0] * size // ROWS), channels), dy.dtype)
        run(sum_columns, _read_only(_flat(dy)), _flat(sums), channels, tasks=len(sums), cost=dy.size)
    return sums.sum(axis=0)


def is_by_channel(x: Array) -> bool:
    """Whether the positions of a channel are next to one another."""
    return x.flags.c_contiguous


def _rows(x: Array) -> Array:
    return np.moveaxis(x, 1, -1)


def _flat(x: Array) -> Array:
    """In the order of memory."""
    return (x if is_by_channel(x) else _rows(x)).reshape(-1)


def _read_only(x: Array) -> Array:
    """One type, whether or not the caller's may be written."""
    view = np.require(x, x.dtype.newbyteorder("="), ("C", "A")).view()
    view.flags.writeable = False
    return view


@kernel
def finish_rows(y: Array, out: Array, bias: Array, by_channel: bool, size: int, code: int, share: int, shares: int) -> None:
    """To y its bias is added, of each row of `size` numbers one, or of each number in a row; out becomes the activation of that."""
    if size == 0:
        return
    p, q, numbers = pointer_to(y.ctypes.data, y), pointer_to(out.ctypes.data, out), pointer_to(bias.ctypes.data, bias)
    rows = y.size // size
    for row in range(share * rows // shares, (share + 1) * rows // shares):
        _finish_row(p + row * size, q + row * size, numbers + (row % bias.size if by_channel else 0), by_channel, size, code)


@compiled
def _finish_row(p: Any, q: Any, bias: Any, one_bias: bool, size: int, code: int) -> None:
    """By whole registers, and then one number at a time in a register's place."""
    lanes, number = lanes_of(p), filled(p, bias[0])
    whole = size // lanes * lanes
    for i in range(0, whole, lanes):
        x = load(p, i) + (number if one_bias else load(bias, i))
        store(p, i, x)
        store(q, i, activated(p, code, x))
    for i in range(whole, size):
        x = p[i] + (bias[0] if one_bias else bias[i])
        p[i] = x
        q[i] = largest_of(activated(p, code, filled(p, x)))


@kernel
def pull_back(x: Array, dy: Array, out: Array, code: int, share: int, shares: int) -> None:
    """The cotangents of x."""
    a, b, c = pointer_to(x.ctypes.data, x), pointer_to(dy.ctypes.data, dy), pointer_to(out.ctypes.data, out)
    lanes, first, end = lanes_of(c), share * x.size // shares, (share + 1) * x.size // shares
    whole = first + (end - first) // lanes * lanes
    for i in range(first, whole, lanes):
        store(c, i, before_activated(c, code, load(a, i), load(b, i)))
    for i in range(whole, end):
        c[i] = largest_of(before_activated(c, code, filled(c, a[i]), filled(c, b[i])))


@kernel
def sum_rows(x: Array, sums: Array, size: int, share: int, shares: int) -> None:
    """The sum of each row of `size` numbers, in parts."""
    p = pointer_to(x.ctypes.data, x)
    lanes = lanes_of(p)
    part = ROWS * lanes
    for row in range(share * sums.size // shares, (share + 1) * sums.size // shares):
        total = x.dtype.type(0)
        for first in range(row * size, (row + 1) * size, part):
            end = smaller(first + part, (row + 1) * size)
            whole, found = first + (end - first) // lanes * lanes, filled(p, 0.0)
            for i in range(first, whole, lanes):
                found = found + load(p, i)
            rest = total_of(found)
            for i in range(whole, end):
                rest += p[i]
            total += rest
        sums[row] = total


@kernel
def sum_columns(x: Array, sums: Array, size: int, share: int, shares: int) -> None:
    """Of each `ROWS` rows of `size` numbers the sum."""
    p, q = pointer_to(x.ctypes.data, x), pointer_to(sums.ctypes.data, sums)
    lanes, rows, blocks = lanes_of(p), x.size // size, sums.size // size
    whole = size // lanes * lanes
    for block in range(share * blocks // shares, (share + 1) * blocks // shares):
        for row in range(block * ROWS, smaller((block + 1) * ROWS, rows)):
            for i in range(0, whole, lanes):
                store(q, block * size + i, load(q, block * size + i) + load(p, row * size + i))
            for i in range(whole, size):
                q[block * size + i] += p[row * size + i]
