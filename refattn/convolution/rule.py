"""What all convolutions share: options for each axis, padding, and one product with three faces.

A convolution is linear in its input and in its kernel, so one trilinear form holds all of it::

    sum over examples, channels o and c, positions p and taps t of   d_output[o, p] * weight[o, c, t] * x[c, stride * p + dilation * t]

Leave out one of the three and the rest is its partial derivative: `correlate` leaves out d_output, `spread` x, and
`weight_gradient` the weight. A convolution is the first, and its pullback the other two; a transposed convolution is the
second, and its pullback the other two.

Each is a sum of matrix products over all positions at once. The taps along the last axis are stacked, as so many times the
channels; one product for each of the others then finds its operand in place where the stride is 1. Against one product for
every tap this makes a third of the calls for a 3x3 kernel, and against one product for all taps a third of the copies.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np

from refattn._core import Array, Grads, Pullback, Random, Sample
from refattn.primitives.padding import PaddingMode, pad

Axes: TypeAlias = tuple[int, ...]
Pairs: TypeAlias = tuple[tuple[int, int], ...]
PerAxis: TypeAlias = int | tuple[int, ...]
Padding: TypeAlias = str | int | tuple[int, ...] | Pairs
Correlation: TypeAlias = Callable[[Array, Array, Axes, Axes], tuple[Array, Callable[[Array], tuple[Array, Array]]]]
"""From padded input, kernel, stride and dilation to the output, and from its cotangent to theirs; groups are an axis."""

BLOCK = 2**18  # elements of a block of examples: small enough for a core's cache, large enough for one call of a matrix product


def convolve(
    correlation: Correlation,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
    padding_mode: PaddingMode = "zeros",
) -> tuple[Array, Pullback]:
    """Pad, correlate each group of channels, add the bias."""
    size, kernel = x.shape[2:], weight.shape[2:]
    steps, gaps, pairs = geometry(size, kernel, stride, padding, dilation)
    padded, pad_pullback = pad.vjp(x, padding=pairs, mode=padding_mode)
    refuse_small(padded.shape[2:], kernel, gaps)
    split, kernels = in_groups(padded, groups, axis=1), in_groups(weight, groups, axis=0)
    product, correlation_pullback = correlation(split, kernels, steps, gaps)
    output = joined(product, axis=1)
    if bias is not None:
        output = output + over_positions(bias, size)

    def pullback(dy: Array) -> Grads:
        d_split, d_kernels = correlation_pullback(in_groups(dy, groups, axis=1))
        return {
            "x": pad_pullback(joined(d_split, axis=1))["x"],
            "weight": joined(d_kernels, axis=0),
            "bias": bias_gradient(dy),
        }

    return output, pullback


def convolve_transposed(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: PerAxis = 1,
    padding: int | tuple[int, ...] | Pairs = 0,
    output_padding: PerAxis = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
) -> tuple[Array, Pullback]:
    """Spread each group of channels, cut off the padding, add the bias."""
    size, kernel = x.shape[2:], weight.shape[2:]
    steps, gaps, pairs, full = transposed_geometry(size, kernel, stride, padding, output_padding, dilation)
    inner = (..., *(slice(before, n - after) for (before, after), n in zip(pairs, full, strict=True)))
    split, kernels = in_groups(x, groups, axis=1), in_groups(weight, groups, axis=0)
    output = joined(spread(split, kernels, full, steps, gaps), axis=1)[inner]
    if bias is not None:
        output = output + over_positions(bias, size)

    def pullback(dy: Array) -> Grads:
        d_full = in_groups(pad(dy, padding=pairs), groups, axis=1)
        return {
            "x": joined(correlate(d_full, kernels, size, steps, gaps), axis=1),
            "weight": joined(weight_gradient(d_full, split, kernel, steps, gaps), axis=0),
            "bias": bias_gradient(dy),
        }

    return output, pullback


def geometry(size: Axes, kernel: Axes, stride: PerAxis, padding: Padding, dilation: PerAxis) -> tuple[Axes, Axes, Pairs]:
    """Stride, dilation and border of each axis."""
    steps, gaps = per_axis("stride", stride, len(size)), per_axis("dilation", dilation, len(size))
    return steps, gaps, border(padding, size, kernel, steps, gaps)


def places(size: Axes, kernel: Axes, stride: Axes, dilation: Axes, pairs: Pairs) -> Axes:
    """How many places a kernel has along each axis with its border; ValueError where it does not fit."""
    whole = tuple(n + before + after for n, (before, after) in zip(size, pairs, strict=True))
    refuse_small(whole, kernel, dilation)
    return out_size(whole, kernel, stride, dilation)


def transposed_geometry(
    size: Axes, kernel: Axes, stride: PerAxis, padding: int | tuple[int, ...] | Pairs, output_padding: PerAxis, dilation: PerAxis
) -> tuple[Axes, Axes, Pairs, Axes]:
    """Stride, dilation and what is cut off of each axis, and its size before that."""
    steps, gaps = per_axis("stride", stride, len(size)), per_axis("dilation", dilation, len(size))
    more, pairs = per_axis("output_padding", output_padding, len(size)), pairs_of(padding, len(size))
    if any(m >= max(s, d) for m, s, d in zip(more, steps, gaps, strict=True)):
        raise ValueError(f"output_padding is {output_padding}, but must be below stride {steps} or dilation {gaps}")
    full = tuple((n - 1) * s + d * (k - 1) + 1 + m for n, s, d, k, m in zip(size, steps, gaps, kernel, more, strict=True))
    if any(before + after >= n for (before, after), n in zip(pairs, full, strict=True)):
        raise ValueError(f"padding is {padding}, which cuts off all of {full}")
    return steps, gaps, pairs, full


def ungrouped(inputs: dict[str, Any], random: Random) -> Iterator[Sample]:
    """Few options at a time, for kernels that have no others; the last axis of the kernel is even."""
    yield Sample("plain", inputs)
    yield Sample("bias alone", {**inputs, "bias": random.normal(len(inputs["weight"]))})
    yield Sample("stride alone", {**inputs, "stride": 2})
    yield Sample("padding alone", {**inputs, "padding": 1})
    yield Sample("one more after", {**inputs, "padding": "same"})


def by_taps(x: Array, weight: Array, stride: Axes, dilation: Axes) -> tuple[Array, Callable[[Array], tuple[Array, Array]]]:
    """The correlation that convolutions use."""
    size, kernel = x.shape[3:], weight.shape[3:]
    y = correlate(x, weight, out_size(size, kernel, stride, dilation), stride, dilation)
    return y, lambda dy: (spread(dy, weight, size, stride, dilation), weight_gradient(x, dy, kernel, stride, dilation))


def correlate(x: Array, weight: Array, out: Axes, stride: Axes, dilation: Axes) -> Array:
    """From x (batch, groups, c, *size) and weight (groups, o, c, *kernel) to (batch, groups, o, *out)."""
    down, across = _windows(weight.shape[3:], out, stride, dilation)
    matrices = _matrices(weight)
    y = np.zeros_like(x, shape=(*x.shape[:2], weight.shape[1], *out))
    for block in _blocks(x):
        stacked = _stacked(x[block], across)
        total = flat(y[block])
        for matrix, seen in zip(matrices, down, strict=True):
            total = total + matrix @ flat(stacked[seen])
        y[block] = total.reshape(y[block].shape)
    return y


def spread(dy: Array, weight: Array, size: Axes, stride: Axes, dilation: Axes) -> Array:
    """From dy (batch, groups, o, *out) and weight to (batch, groups, c, *size): each position gives to all that it saw."""
    down, across = _windows(weight.shape[3:], dy.shape[3:], stride, dilation)
    matrices = _matrices(weight).swapaxes(-1, -2)
    x = np.zeros_like(dy, shape=(*dy.shape[:2], weight.shape[2], *size))
    for block in _blocks(x):
        stacked = np.zeros_like(x, shape=(*x[block].shape[:2], matrices.shape[2], *size[:-1], dy.shape[-1]))
        for matrix, seen in zip(matrices, down, strict=True):
            stacked[seen] += (matrix @ flat(dy[block])).reshape(stacked[seen].shape)
        for part, seen in zip(np.moveaxis(in_groups(stacked, len(across), axis=2), 2, 0), across, strict=True):
            x[block][seen] += part
    return x


def weight_gradient(x: Array, dy: Array, kernel: Axes, stride: Axes, dilation: Axes) -> Array:
    """From x (batch, groups, c, *size) and dy (batch, groups, o, *out) to (groups, o, c, *kernel)."""
    down, across = _windows(kernel, dy.shape[3:], stride, dilation)
    groups, c, o = *x.shape[1:3], dy.shape[2]
    d_matrices = np.zeros_like(x, shape=(len(down), groups, o, len(across) * c))
    for block in _blocks(x):
        stacked = _stacked(x[block], across)
        for i, seen in enumerate(down):
            d_matrices[i] += (flat(dy[block]) @ flat(stacked[seen]).swapaxes(-1, -2)).sum(axis=0)
    return np.moveaxis(np.moveaxis(d_matrices, 0, -1).reshape(groups, o, len(across), c, *kernel[:-1]), 2, -1)


def over_positions(bias: Array, size: Axes) -> Array:
    """The bias of each channel, so that it broadcasts over the spatial axes."""
    return bias.reshape(len(bias), *(1,) * len(size))


def bias_gradient(dy: Array) -> Array:
    """The sum over examples and positions."""
    return dy.sum(axis=(0, *range(2, dy.ndim)))


def taps(kernel: Axes, out: Axes, stride: Axes, dilation: Axes) -> Iterator[tuple[Any, ...]]:
    """For each tap of a kernel, in row-major order: the part of the last axes that it is multiplied with."""
    for t in itertools.product(*map(range, kernel)):
        yield (..., *(slice(i * d, i * d + s * (n - 1) + 1, s) for i, n, s, d in zip(t, out, stride, dilation, strict=True)))


def flat(x: Array) -> Array:
    """All spatial axes, which follow the channels, as one."""
    return x.reshape(*x.shape[:3], math.prod(x.shape[3:]))


def in_groups(x: Array, groups: int, *, axis: int) -> Array:
    """The channels as two axes, groups first."""
    return x.reshape(*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])


def joined(x: Array, *, axis: int) -> Array:
    """The two axes of `in_groups` as one again."""
    return x.reshape(*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])


def out_size(size: Axes, kernel: Axes, stride: Axes, dilation: Axes) -> Axes:
    """How many places a kernel has within each axis."""
    return tuple((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(size, kernel, stride, dilation, strict=True))


def per_axis(name: str, value: PerAxis, axes: int) -> Axes:
    """One number for each axis; ValueError where there are more or fewer."""
    numbers = (value,) * axes if isinstance(value, int) else value
    if len(numbers) != axes:
        raise ValueError(f"{name} is {value}, but must have {axes} {'numbers' if axes > 1 else 'number'}")
    return numbers


def border(padding: Padding, size: Axes, kernel: Axes, stride: Axes, dilation: Axes) -> Pairs:
    """How many positions stand before and after each axis."""
    if padding == "same":
        out = [-(-n // s) for n, s in zip(size, stride, strict=True)]
        short = [(o - 1) * s + d * (k - 1) + 1 - n for o, s, d, k, n in zip(out, stride, dilation, kernel, size, strict=True)]
        return tuple((max(m, 0) // 2, (max(m, 0) + 1) // 2) for m in short)
    return pairs_of(0 if isinstance(padding, str) else padding, len(size))


def pairs_of(padding: int | tuple[int, ...] | Pairs, axes: int) -> Pairs:
    """One pair for each axis; ValueError where there are more or fewer."""
    if isinstance(padding, tuple) and len(padding) != axes:
        raise ValueError(f"padding is {padding}, but must have {axes} {'entries' if axes > 1 else 'entry'}")
    entries = padding if isinstance(padding, tuple) else (padding,) * axes
    return tuple(p if isinstance(p, tuple) else (p, p) for p in entries)


def refuse_small(size: Axes, kernel: Axes, dilation: Axes, *, name: str = "weight") -> None:
    """ValueError where a kernel does not fit."""
    reach = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    if any(n < r for n, r in zip(size, reach, strict=True)):
        raise ValueError(f"{name} reaches over {reach} positions, but the padded x has {size}")


def _windows(kernel: Axes, out: Axes, stride: Axes, dilation: Axes) -> tuple[list[Any], list[Any]]:
    """The slices of the taps along all axes but the last, and of those along the last."""
    down = taps(kernel[:-1], out[:-1], stride[:-1], dilation[:-1])
    return [(*seen, slice(None)) for seen in down], list(taps(kernel[-1:], out[-1:], stride[-1:], dilation[-1:]))


def _stacked(x: Array, across: list[Any]) -> Array:
    """The taps along the last axis as so many times the channels."""
    return joined(np.stack([x[seen] for seen in across], axis=2), axis=2)


def _matrices(weight: Array) -> Array:
    """For each tap along all axes but the last, a matrix (groups, o, taps of the last axis * c), in memory order."""
    stacked = joined(np.moveaxis(weight, -1, 2), axis=2)
    return np.moveaxis(stacked.reshape(*stacked.shape[:3], math.prod(stacked.shape[3:])), -1, 0).copy()


def _blocks(x: Array) -> list[slice]:
    """The examples in blocks that fit a cache."""
    step = max(1, BLOCK * len(x) // max(x.size, 1))
    return [slice(i, i + step) for i in range(0, len(x), step)]
