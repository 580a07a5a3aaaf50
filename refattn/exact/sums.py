"""Sums and products of matrices in an order that shapes alone decide: halves are added to each other until one term is left."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refattn._core import Array
from refattn.exact.number import Number, add, lifted, multiply

BLOCK = 2**15
"""Elements of the products that are formed at a time: some ten arrays of them fit a core's cache."""


def folded(x: Number, operation: Callable[[Number, Number], Number], empty: float) -> Number:
    """The first axis reduced: the first half is combined with the second, element by element, and again, down to one."""
    while (count := len(x.head)) > 1:
        half = (count + 1) // 2
        combined = operation(_taken(x, slice(count - half)), _taken(x, slice(half, None)))
        x = combined if count == 2 * half else _joined(combined, _taken(x, slice(half - 1, half)))
    if len(x.head):
        return _taken(x, 0)
    return lifted(np.full(x.head.shape[1:], empty), len(x.parts))


def total(x: Number) -> Number:
    """The sum over the first axis."""
    return folded(x, add, 0.0)


def running(x: Number) -> Number:
    """The sums over the first axis up to each place, one after the other."""
    sums = [_taken(x, i) for i in range(min(len(x.head), 1))]
    for i in range(1, len(x.head)):
        sums.append(add(sums[-1], _taken(x, i)))
    if not sums:
        return x
    return Number(
        tuple(np.stack([np.asarray(s.parts[i]) for s in sums]) for i in range(len(x.parts))), np.stack([np.asarray(s.error) for s in sums])
    )


def inner(a: Number, b: Number) -> Number:
    """The sum over the last axis of products, whose other axes broadcast: in blocks of that axis, and then over the blocks."""
    length = a.head.shape[-1]
    shape = np.broadcast_shapes(a.head.shape[:-1], b.head.shape[:-1])
    step = max(1, BLOCK // max(int(np.prod(shape)), 1))
    first_a, first_b = (_mapped(x, lambda p: np.moveaxis(np.broadcast_to(p, (*_ones(p, len(shape)), length)), -1, 0)) for x in (a, b))
    sums = None
    for start in range(0, length, step):
        block = slice(start, start + step)
        part = total(multiply(_taken(first_a, block), _taken(first_b, block)))
        sums = part if sums is None else add(sums, part)
    return lifted(np.zeros(shape), len(a.parts)) if sums is None else sums


def matrix_product(a: Number, b: Number) -> Number:
    """As ``@``, for vectors too."""
    one_a, one_b = a.head.ndim == 1, b.head.ndim == 1
    a = _mapped(a, lambda p: p[None] if one_a else p)
    b = _mapped(b, lambda p: p[:, None] if one_b else p)
    if a.head.shape[-1] != b.head.shape[-2]:
        raise ValueError(f"matmul: {a.head.shape} and {b.head.shape} do not fit")
    y = inner(_mapped(a, lambda p: p[..., :, None, :]), _mapped(b, lambda p: p.swapaxes(-1, -2)[..., None, :, :]))
    y = _mapped(y, lambda p: p[..., 0] if one_b else p)
    return _mapped(y, lambda p: p[..., 0] if one_a and one_b else p[..., 0, :] if one_a else p)


def _ones(p: Array, ndim: int) -> tuple[int, ...]:
    return (1,) * (ndim + 1 - p.ndim) + p.shape[:-1]


def _taken(x: Number, key: int | slice) -> Number:
    return _mapped(x, lambda p: p[key])


def _mapped(x: Number, move: Callable[[Array], Array]) -> Number:
    return Number(tuple(move(p) for p in x.parts), move(x.error))


def _joined(a: Number, b: Number) -> Number:
    return Number(
        tuple(np.concatenate([p, q]) for p, q in zip(a.parts, b.parts, strict=True)), np.concatenate([np.asarray(a.error), b.error])
    )
