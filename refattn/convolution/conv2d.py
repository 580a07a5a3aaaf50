"""Convolution of an image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from refattn._core import Array, BadCall, Pullback, Random, Sample, mechanism
from refattn.convolution.rule import Padding, PerAxis, by_taps, convolve, ungrouped
from refattn.primitives.padding import PaddingMode


def _inputs(random: Random) -> dict[str, Any]:
    return {"x": random.normal((2, 4, 5, 6)), "weight": random.normal((6, 2, 3, 2)), "groups": 2}


def samples(random: Random) -> Iterator[Sample]:
    """All options, for this and for the other ways to compute it."""
    inputs = _inputs(random)
    yield Sample("groups", inputs)
    yield Sample("bias and stride", {**inputs, "bias": random.normal(6), "stride": (2, 1), "padding": 1})
    yield Sample("dilation", {**inputs, "dilation": (2, 3), "padding": (1, 2)})
    yield Sample("more after", {**inputs, "padding": ((0, 2), (1, 0)), "stride": 2})
    yield Sample("same", {**inputs, "padding": "same", "dilation": (1, 2)})
    yield Sample("same, strided", {**inputs, "padding": "same", "stride": (2, 3)})
    yield Sample("reflect", {**inputs, "padding": (2, 3), "padding_mode": "reflect", "bias": random.normal(6)})
    yield Sample("replicate", {**inputs, "padding": ((6, 0), (1, 2)), "padding_mode": "replicate", "stride": 3})
    yield Sample("circular", {**inputs, "padding": ((5, 1), (0, 2)), "padding_mode": "circular", "dilation": 2})
    yield Sample("one group", {"x": random.normal((1, 3, 4, 4)), "weight": random.normal((2, 3, 3, 3)), "padding": "valid"})
    yield from ungrouped({"x": random.normal((2, 3, 4, 5)), "weight": random.normal((4, 3, 3, 2))}, random)
    yield Sample("no examples", {**inputs, "x": random.normal((0, 4, 5, 6)), "bias": random.normal(6)})


def bad_calls(random: Random) -> Iterator[BadCall]:
    """What each way to compute it refuses."""
    inputs = _inputs(random)
    yield BadCall("three strides", {**inputs, "stride": (1, 1, 1)}, ValueError, r"stride is \(1, 1, 1\), but must have 2 numbers")
    yield BadCall("one dilation", {**inputs, "dilation": (2,)}, ValueError, r"dilation is \(2,\), but must have 2 numbers")
    yield BadCall("three pads", {**inputs, "padding": (1, 1, 1)}, ValueError, r"padding is \(1, 1, 1\), but must have 2 entries")
    yield BadCall("stride 0", {**inputs, "stride": 0}, ValueError, "stride is 0, but must be positive int")
    yield BadCall("negative padding", {**inputs, "padding": -1}, ValueError, "padding is -1, but must be")
    yield BadCall("unknown padding", {**inputs, "padding": "full"}, ValueError, "padding is 'full', but must be")
    yield BadCall(
        "far reflection", {**inputs, "padding": 5, "padding_mode": "reflect"}, ValueError, "padding is .*, but reflect allows at most 4"
    )
    yield BadCall(
        "twice around", {**inputs, "padding": 6, "padding_mode": "circular"}, ValueError, "padding is .*, but circular allows at most 5"
    )
    yield BadCall(
        "kernel too high",
        {**inputs, "dilation": (3, 1)},
        ValueError,
        r"weight reaches over \(7, 2\) positions, but the padded x has \(5, 6\)",
    )
    yield BadCall("no width", {**inputs, "x": random.normal((2, 4, 5, 0)), "padding": 1}, ValueError, "width is 0, but must be at least 1")
    yield BadCall("no taps", {**inputs, "weight": random.normal((6, 2, 0, 2))}, ValueError, "kernel_height is 0")
    yield BadCall("groups that do not divide", {**inputs, "weight": random.normal((5, 2, 3, 2))}, ValueError, r"groups \* out_group is 5")


def _benchmark(random: Random) -> dict[str, Any]:
    return {"x": random.normal((8, 64, 56, 56)), "weight": random.normal((64, 64, 3, 3)), "padding": 1}


@mechanism(tags={"convolution"}, samples=samples, bad_calls=bad_calls, benchmark=_benchmark)
def conv2d(
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
    r"""Slide a small kernel over an image.

    This is what networks call a convolution, in mathematics a cross-correlation: the kernel is not flipped.

    Parameters
    ----------
    x : array, shape (batch, groups * in_group, height, width)
        Images.
    weight : array, shape (groups * out_group, in_group, kernel_height, kernel_width)
        One kernel for each output channel; output channel o reads the input channels of group ``o // out_group``.
    bias : array or None, shape (groups * out_group), optional
        Added to each output channel.
    stride : positive int or tuple of positive int, optional
        Step from one output position to the next; one number, or one for each axis.
    padding : non-negative int or tuple of non-negative int or tuple of (non-negative int, non-negative int) or {"same", "valid"}, optional
        Positions put before and after each axis: one number, one for each axis, or a pair for each axis. With "same" the output
        has ``ceil(size / stride)`` positions, and an odd number of added positions puts the extra one after; "valid" is 0.
    dilation : positive int or tuple of positive int, optional
        Step from one tap of the kernel to the next.
    groups : positive int, optional
        Into how many parts the channels fall, each convolved on its own.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}, optional
        What stands in the added positions, as in `pad`.

    Returns
    -------
    array, shape (batch, groups * out_group, out_height, out_width)
        Each axis has ``(padded - dilation * (kernel - 1) - 1) // stride + 1`` positions.

    Notes
    -----
    Sizes: ``height >= 1``, ``width >= 1``, ``kernel_height >= 1``, ``kernel_width >= 1``.

    With s the stride, d the dilation and x the padded input; c runs over the channels of the group of o:

    .. math::

        y_{b,o,p,q} = \beta_o + \sum_{c,t,u} w_{o,c,t,u}\, x_{b,c,sp + dt,sq + du}

    .. math::

        \bar x_{b,c,i,j} = \sum_{o}\ \sum_{sp + dt = i,\ sq + du = j} w_{o,c,t,u}\, \bar y_{b,o,p,q}, \quad
        \bar w_{o,c,t,u} = \sum_{b,p,q} \bar y_{b,o,p,q}\, x_{b,c,sp + dt,sq + du}, \quad
        \bar\beta_o = \sum_{b,p,q} \bar y_{b,o,p,q}

    References
    ----------
    .. [1] Dumoulin, Visin, "A Guide to Convolution Arithmetic for Deep Learning", 2016, chapters 2 and 5. arXiv:1603.07285.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> x = np.arange(9.0).reshape(1, 1, 3, 3)
    >>> refattn.conv2d(x, np.array([[[[1.0, 0.0], [0.0, -1.0]]]]))[0, 0]
    array([[-4., -4.],
           [-4., -4.]])
    >>> refattn.conv2d(x, np.ones((1, 1, 3, 3)), padding="same", stride=2)[0, 0]
    array([[ 8., 12.],
           [20., 24.]])
    """
    return convolve(by_taps, x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups, padding_mode=padding_mode)
