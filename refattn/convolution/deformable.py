"""Convolution whose taps stand where the input says, and not on a grid."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from refattn._core import Array, BadCall, Grads, Pullback, Random, Sample, like, mechanism
from refattn.convolution import rule
from refattn.convolution.conv2d import conv2d
from refattn.convolution.rule import Axes, Padding, Pairs, PerAxis
from refattn.primitives.arithmetic import multiply
from refattn.primitives.sampling import sample_bilinear


def deformed(
    x: Array,
    offset: Array,
    modulation: Array | None,
    weight: Array,
    bias: Array | None,
    *,
    stride: PerAxis,
    padding: Padding,
    dilation: PerAxis,
    groups: int,
    offset_groups: int,
) -> tuple[Array, Pullback]:
    """Sample the input at each tap of each position, modulate, and convolve what is there by a kernel of one tap."""
    batch, channels = x.shape[:2]
    kernel, out = weight.shape[2:], offset.shape[2:]
    steps, gaps, pairs = geometry(x, offset, weight, stride, padding, dilation, offset_groups)
    taps = math.prod(kernel)
    moves = np.moveaxis(offset.reshape(batch, offset_groups, taps, 2, *out), 3, 2)
    maps = x.reshape(batch, offset_groups, channels // offset_groups, *x.shape[2:])
    sampled, sample_pullback = sample_bilinear.vjp(maps, moves + like(x, grid(kernel, out, steps, gaps, pairs)))
    modulated, modulate_pullback = _modulated(sampled, modulation)
    kernels = weight.reshape(len(weight), weight.shape[1] * taps, 1, 1)
    output, conv_pullback = conv2d.vjp(modulated.reshape(batch, channels * taps, *out), kernels, bias, groups=groups)

    def pullback(dy: Array) -> Grads:
        d_conv = conv_pullback(dy)
        d_modulated = modulate_pullback(d_conv["x"].reshape(sampled.shape))
        d_sampled = sample_pullback(d_modulated["a"])
        return {
            "x": d_sampled["x"].reshape(x.shape),
            "offset": np.moveaxis(d_sampled["positions"], 2, 3).reshape(offset.shape),
            "modulation": None if modulation is None else d_modulated["b"].reshape(modulation.shape),
            "weight": d_conv["weight"].reshape(weight.shape),
            "bias": d_conv.get("bias"),
        }

    return output, pullback


def geometry(
    x: Array, offset: Array, weight: Array, stride: PerAxis, padding: Padding, dilation: PerAxis, offset_groups: int
) -> tuple[Axes, Axes, Pairs]:
    """Stride, dilation and border of each axis; ValueError where the offsets are not those of such a convolution."""
    size, kernel, out = x.shape[2:], weight.shape[2:], offset.shape[2:]
    if x.shape[1] % offset_groups:
        raise ValueError(f"offset_groups is {offset_groups}, but must divide the {x.shape[1]} channels of x")
    steps, gaps, pairs = rule.geometry(size, kernel, stride, padding, dilation)
    if (found := rule.places(size, kernel, steps, gaps, pairs)) != out:
        raise ValueError(f"offset is for {out} output positions, but the convolution has {found}")
    return steps, gaps, pairs


def grid(kernel: Axes, out: Axes, steps: Axes, gaps: Axes, pairs: Pairs) -> Any:
    """Row and column of each tap at each output position, before it is moved: integers (2, taps, *out)."""
    down, across = (
        s * np.arange(n) - before + d * np.arange(k)[:, None]
        for s, n, (before, _), d, k in zip(steps, out, pairs, gaps, kernel, strict=True)
    )
    full = (*kernel, *out)
    both = np.stack([np.broadcast_to(down[:, None, :, None], full), np.broadcast_to(across[:, None], full)])
    return both.reshape(2, math.prod(kernel), *out)


def _modulated(sampled: Array, modulation: Array | None) -> tuple[Array, Pullback]:
    """Each sample times its number; None leaves them as they are."""
    if modulation is None:
        return sampled, lambda d: {"a": d}
    batch, groups, _, *places = sampled.shape
    return multiply.vjp(sampled, modulation.reshape(batch, groups, 1, *places))


def inputs(random: Random) -> dict[str, Any]:
    """A small call, of two groups of channels that share their offsets."""
    return {"x": random.normal((2, 4, 4, 5)), "offset": random.normal((2, 12, 2, 4)), "weight": random.normal((6, 4, 3, 2))}


def samples(random: Random) -> Iterator[Sample]:
    """All options; offsets reach beyond the borders."""
    given = inputs(random)
    yield Sample("plain", given)
    yield Sample(
        "bias and padding", {**given, "padding": ((1, 0), (0, 1)), "offset": random.normal((2, 12, 3, 5)), "bias": random.normal(6)}
    )
    halves = {"weight": random.normal((6, 2, 3, 2)), "groups": 2}
    yield Sample("groups and stride", {**given, **halves, "stride": (1, 2), "offset": random.normal((2, 12, 2, 2))})
    yield Sample("offset groups", {**given, "offset_groups": 2, "offset": random.normal((2, 24, 2, 4)), "bias": random.normal(6)})
    yield Sample(
        "dilation, both groups",
        {**given, **halves, "offset_groups": 4, "dilation": (1, 3), "offset": random.normal((2, 48, 2, 2))},
    )
    yield Sample("same", {**given, "padding": "same", "stride": 2, "offset": random.normal((2, 12, 2, 3))})


def bad_calls(random: Random) -> Iterator[BadCall]:
    """What both refuse."""
    given = inputs(random)
    yield BadCall(
        "other positions", {**given, "padding": 1}, ValueError, r"offset is for \(2, 4\) output positions, but the convolution has \(4, 6\)"
    )
    yield BadCall(
        "one number a tap",
        {**given, "offset": random.normal((2, 6, 2, 4))},
        ValueError,
        r"kernel_width \* 2 is 6 in offset, but should be 12",
    )
    three = {"offset_groups": 3, "offset": random.normal((2, 36, 2, 4))}
    yield BadCall("groups that do not divide", {**given, **three}, ValueError, "offset_groups is 3, but must divide the 4 channels of x")
    yield BadCall("three strides", {**given, "stride": (1, 1, 1)}, ValueError, r"stride is \(1, 1, 1\), but must have 2 numbers")
    yield BadCall("kernel too high", {**given, "dilation": (2, 1)}, ValueError, r"weight reaches over \(5, 2\) positions")
    yield BadCall(
        "no taps", {**given, "weight": random.normal((6, 4, 0, 2)), "offset": given["offset"][:, :0]}, ValueError, "kernel_height is 0"
    )


def benchmark(random: Random) -> Mapping[str, Any]:
    """A layer of a detector, one example."""
    return {
        "x": random.normal((1, 64, 28, 28)),
        "offset": random.normal((1, 18, 28, 28)),
        "weight": random.normal((64, 64, 3, 3)),
        "padding": 1,
    }


@mechanism(tags={"convolution"}, samples=samples, bad_calls=bad_calls, benchmark=benchmark)
def deform_conv2d(
    x: Array,
    offset: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
    offset_groups: int = 1,
) -> tuple[Array, Pullback]:
    r"""Convolve an image with taps that are moved by learned offsets, other ones at each position.

    With offsets of 0 this is `conv2d`. In a network the offsets are a convolution of the same input.

    Parameters
    ----------
    x : array, shape (batch, groups * in_group, height, width)
        Images.
    offset : array, shape (batch, offset_groups * kernel_height * kernel_width * 2, out_height, out_width)
        How far each tap is moved at each output position, in pixels: for each group of channels and each tap, in row-major order,
        first down, then to the right.
    weight : array, shape (groups * out_group, in_group, kernel_height, kernel_width)
        One kernel for each output channel; output channel o reads the input channels of group ``o // out_group``.
    bias : array or None, shape (groups * out_group), optional
        Added to each output channel.
    stride : positive int or tuple of positive int, optional
        Step from one output position to the next; one number, or one for each axis.
    padding : non-negative int or tuple of non-negative int or tuple of (non-negative int, non-negative int) or {"same", "valid"}, optional
        Positions with zeros before and after each axis, as of `conv2d`.
    dilation : positive int or tuple of positive int, optional
        Step from one tap of the kernel to the next.
    groups : positive int, optional
        Into how many parts the channels fall, each convolved on its own.
    offset_groups : positive int, optional
        Into how many parts the input channels fall, each with offsets of its own; independent of `groups`.

    Returns
    -------
    array, shape (batch, groups * out_group, out_height, out_width)
        Each axis has ``(padded - dilation * (kernel - 1) - 1) // stride + 1`` positions.

    Notes
    -----
    Sizes: ``height >= 1``, ``width >= 1``, ``kernel_height >= 1``, ``kernel_width >= 1``.

    With s the stride, d the dilation, a the padding before, and x read between its pixels as by `sample_bilinear`, 0 outside;
    c runs over the channels of the group of o, and :math:`\delta` is the offset of the offset group of c:

    .. math::

        y_{o,p} = \beta_o + \sum_{c,t} w_{o,c,t}\, x_c(r_{p,t}), \quad r_{p,t} = sp - a + dt + \delta_{p,t}, \qquad
        \bar z_{c,t,p} = \sum_o w_{o,c,t}\, \bar y_{o,p}, \quad
        \bar\delta_{p,t} = \sum_c \nabla x_c(r_{p,t})\, \bar z_{c,t,p}, \quad
        \bar x_{c,i} = \sum_{p,t} G(i, r_{p,t})\, \bar z_{c,t,p}

    G is the weight of pixel i in the interpolation. At whole numbers, so at offsets of 0, where networks begin, the gradient is
    the one to the right.

    References
    ----------
    .. [1] Dai et al., "Deformable Convolutional Networks", ICCV 2017, eqs. (2) to (4). arXiv:1703.06211.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> x = np.array([[[[1.0, 2.0, 4.0]]]])
    >>> offset = np.zeros((1, 2, 1, 3))
    >>> offset[0, 1, 0] = [0.5, 1.0, 0.5]  # to the right
    >>> refattn.deform_conv2d(x, offset, np.ones((1, 1, 1, 1)))
    array([[[[1.5, 4. , 2. ]]]])
    """
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "offset_groups": offset_groups}
    return deformed(x, offset, None, weight, bias, **options)
