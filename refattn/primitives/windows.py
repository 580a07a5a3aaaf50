"""What pooling and resizing share: along each axis, an output position reads a few input positions.

Both are one axis at a time: a mean of means, and a maximum of maxima, taken along the last axis first so that of several
largest elements the first in row-major order is found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np

from refattn._core import Array, Booleans, Grads, Integers, Pullback, like
from refattn.primitives.indexing import gather
from refattn.primitives.reductions import max_over

PerAxis: TypeAlias = int | tuple[int, ...]
Stage: TypeAlias = Callable[[Array, int], tuple[Array, Callable[[Array], Array]]]
T = TypeVar("T")


class Window(NamedTuple):
    """The positions that each output reads along one axis, and which of them lie inside: two arrays (out, taps)."""

    positions: Integers
    inside: Booleans


def per_axis(value: PerAxis, axes: int) -> tuple[int, ...]:
    """One number for each axis."""
    return (value,) * axes if isinstance(value, int) else value


def sliding(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> Window:
    """Windows one stride apart; the last may hang over the padded end in `ceil_mode`, but not begin beyond the input."""
    reach = dilation * (kernel - 1) + 1
    spare = size + 2 * padding - reach
    if spare < 0:
        raise ValueError(f"kernel_size reaches over {reach} positions, but the padded x has {size + 2 * padding}")
    steps = -(-spare // stride) if ceil_mode else spare // stride
    if steps * stride >= size + padding:
        steps -= 1
    positions = stride * np.arange(steps + 1)[:, None] - padding + dilation * np.arange(kernel)
    inside = (positions >= 0) & (positions < size)
    if not inside.any(axis=1).all():
        raise ValueError(f"padding is {padding}, so that a window of kernel_size {kernel} holds none of the {size} positions of x")
    return Window(positions, inside)


def adaptive(size: int, out: int) -> Window:
    """As many bins as there are outputs; where they do not divide the input, neighbours overlap by one position."""
    if size == 0:
        raise ValueError("x has an axis without positions")
    starts, ends = np.arange(out) * size // out, -(-(np.arange(out) + 1) * size // out)
    positions = starts[:, None] + np.arange((ends - starts).max())
    return Window(positions, positions < ends[:, None])


def clipped(window: Window) -> Integers:
    """The positions, with the nearest inside its window for each that lies outside: repeats change no maximum."""
    positions, inside = window
    first = np.where(inside, positions, positions.max()).min(axis=1, keepdims=True)
    last = np.where(inside, positions, -1).max(axis=1, keepdims=True)
    return np.minimum(np.maximum(positions, first), last)


def in_turn(x: Array, stages: Sequence[Stage]) -> tuple[Array, Pullback]:
    """One stage for each of the last axes, the last axis first."""
    y, pullbacks = x, []
    for axis in range(-1, -len(stages) - 1, -1):
        y, stage_pullback = stages[axis](y, axis)
        pullbacks.append(stage_pullback)

    def pullback(dy: Array) -> Grads:
        for back in reversed(pullbacks):
            dy = back(dy)
        return {"x": dy}

    return y, pullback


def weighted(positions: Integers, weights: Array) -> Stage:
    """The stage that sums what it reads, times a weight (out, taps); what has weight 0 is not read."""

    def stage(x: Array, axis: int) -> tuple[Array, Callable[[Array], Array]]:
        rows, gather_pullback = gather.vjp(np.moveaxis(x, axis, 0), positions)
        wide = weights.reshape(*weights.shape, *(1,) * (x.ndim - 1))
        y = (np.where(wide == 0, 0, rows) * wide).sum(axis=1)

        def pullback(dy: Array) -> Array:
            d_rows = wide * np.moveaxis(dy, axis, 0)[:, None]
            return np.moveaxis(gather_pullback(d_rows)["x"], 0, axis)

        return np.moveaxis(y, 0, axis), pullback

    return stage


def largest(window: Window) -> Stage:
    """The stage that takes the largest of what it reads."""
    positions = clipped(window)

    def stage(x: Array, axis: int) -> tuple[Array, Callable[[Array], Array]]:
        rows, gather_pullback = gather.vjp(np.moveaxis(x, axis, 0), positions)
        y, max_pullback = max_over.vjp(rows, axes=1)

        def pullback(dy: Array) -> Array:
            d_rows = max_pullback(np.moveaxis(dy, axis, 0))["x"]
            return np.moveaxis(gather_pullback(d_rows)["x"], 0, axis)

        return np.moveaxis(y, 0, axis), pullback

    return stage


def mean(window: Window, counted: Integers, x: Array) -> Stage:
    """The stage that sums what it reads and divides by a count (out), in the precision of `x`."""
    return weighted(clipped(window), like(x, window.inside) / like(x, counted)[:, None])
